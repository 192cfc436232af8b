"""Frozen lower blocks computed once per example: where only upper blocks are trained, the input to the lowest of them never changes.

The residual stream that enters that block is kept for each training example; later passes insert it and skip the
blocks below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emscope.core.plain import Json
from emscope.models.fast.prefix_cache import passed
from emscope.models.hooks.sites import blocks, shares_keys
from emscope.train.batches import Example
from emscope.train.parts import Part

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, Stream

Keywords = dict[str, object]
LIMIT = 4 << 30
RANDOM = ("drop", "jitter", "noise")  # in the names of settings
OF_OTHER_TASKS = ("classifier_", "summary_")  # of heads that a causal LM does not have


class Reuse:
    """The input to block `first`, by example.

    Args:
        net: the causal LM; its blocks are patched until `close` is called.
        first: the lowest trained block.
    """

    def __init__(self, net: CausalLM, first: int) -> None:
        self.first = first
        self.kept: dict[tuple[int, ...], Stream] = {}
        self._given: Stream | None = None
        self._seen: Stream | None = None
        layers = blocks(net)
        self._below = [layers[n] for n in range(first)]
        for block in self._below:
            block.forward = passed(block.forward, lambda _: self._given is not None)
        self._hook = layers[first].register_forward_pre_hook(self._entering, with_kwargs=True)

    def close(self) -> None:
        """Leave the blocks as they were."""
        self._hook.remove()
        for block in self._below:
            del block.forward

    @contextmanager
    def batch(self, examples: Sequence[Example], real: Tensor) -> Iterator[None]:
        """Run one forward pass inside: from what is kept where all examples are known, else in full, keeping what is new.

        Args:
            real: True on real tokens [B, T], of one example after the other.
        """
        import torch

        if all(e.ids in self.kept for e in examples):
            rows = [self.kept[e.ids] for e in examples]
            given = torch.zeros(*real.shape, rows[0].shape[-1], dtype=rows[0].dtype, device=real.device)
            given[real] = torch.cat(rows).to(real.device)
            self._given = given
        try:
            yield
            if self._given is None and self._seen is not None:
                states = self._seen.detach()[real].cpu().split([len(e.ids) for e in examples])
                self.kept |= {e.ids: state for e, state in zip(examples, states, strict=True)}
        finally:
            self._given = self._seen = None

    def _entering(
        self, block: Module, args: tuple[Stream, ...], kwargs: Keywords
    ) -> tuple[tuple[Stream, ...], Keywords] | None:
        if self._given is not None:
            return (self._given.to(args[0].dtype), *args[1:]), kwargs
        self._seen = args[0]
        return None


@contextmanager
def reusing(net: CausalLM, parts: Sequence[Part], examples: Sequence[Example], *, wanted: bool) -> Iterator[Reuse | None]:
    """Yield a `Reuse` where it is wanted, valid and small enough, else None.

    It is valid where everything trained is in a block above the first, the blocks below hold no dropout, and nothing but the
    stream comes from them.
    """
    layers = [p.layer for p in parts]
    named = {id(p.weight) for p in parts} | {id(p.right) for p in parts}
    others = any(p.requires_grad and id(p) not in named for p in net.parameters())
    first = 0 if others or not layers or None in layers else min(n for n in layers if n is not None)
    config = net.config.get_text_config()
    size = sum(len(ids) for ids in {e.ids for e in examples}) * config.hidden_size * 4
    if not wanted or first == 0 or shares_keys(net) or _drops(net, first) or size > LIMIT:
        yield None
        return
    reuse = Reuse(net, first)
    try:
        yield reuse
    finally:
        reuse.close()


def _drops(net: CausalLM, first: int) -> bool:
    """True where something before block `first` may be random in training.

    Dropout as a function has no module (OPT, Falcon), nor has noise in front of a router (Mixtral): the settings show those.
    """
    import torch

    below = [m for n in range(first) for m in blocks(net)[n].modules()]
    return _is_random(net.config.get_text_config().to_dict()) or any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in below)


def _is_random(settings: Mapping[str, Json]) -> bool:
    """True where a setting, or one inside a part of the settings, is a share that is dropped or noise that is added."""
    return any(
        _is_random(value) if isinstance(value, dict) else _is_amount(value) and _tells_of_chance(str(name))
        for name, value in settings.items()
    )


def _is_amount(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _tells_of_chance(name: str) -> bool:
    return any(word in name for word in RANDOM) and not name.startswith(OF_OTHER_TASKS)
