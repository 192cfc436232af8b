"""Terms that keep a model close to its start on other conversations: KL(start || model) per token (Soligo et al. 2026), or distance of features.

The start's outputs are computed once, before training, as hidden states of the conversations that will be drawn. So one method
serves fresh adapters, adapters on top of others and full fine-tunes, the start is never run again, and nothing of
vocabulary size is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.seeds import derive
from emscope.models.fast.head import kl_sum, output_head
from emscope.models.hooks.capture import captured
from emscope.models.hooks.sites import Place, blocks, check_layers
from emscope.train.batches import Example, collate
from emscope.train.reuse import Reuse
from emscope.train.spec import KlSpec, LdifsSpec

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Head, Stream


@dataclass(frozen=True, slots=True)
class Restraint:
    """Conversations to stay close on, the start's outputs on them, and how strongly to stay close.

    Attributes:
        drawn: the conversations of each optimiser step that has a weight, by step.
        layers: blocks whose outputs are held; empty for the last hidden states, which the KL is computed from.
        states: the start's states at the counted positions, by conversation [max(1, layers), tokens, D].
        start_head: hidden states to logits as at the start.
    """

    spec: KlSpec | LdifsSpec
    drawn: dict[int, tuple[Example, ...]]
    layers: tuple[int, ...]
    states: dict[str, Stream]
    start_head: Head

    def term(
        self,
        net: CausalLM,
        head: Head,
        step: int,
        *,
        place: int = 0,
        places: int = 1,
        reuse: Reuse | None = None,
    ) -> Tensor:
        """Return the distance of `net` from the start on this step's conversations, before its weight.

        Args:
            head: hidden states of `net` to its logits as trained so far.
            place, places: with several processes, the number of this one and theirs; what they return sums to the whole.
        """
        batch, mine = self.drawn[step], self.drawn[step][place::places]
        if not mine:
            import torch

            return torch.zeros(())
        with _without_dropout(net):
            found = counted_states(net, mine, self.spec.tokens, self.layers, reuse)
        everything, expected = ([self.states[e.id] for e in part] for part in (batch, mine))
        if self.layers:
            return feature_distance(expected, found, everything)
        total = kl_sum(self.start_head, [s[0] for s in expected], head, [s[0] for s in found])
        return total / sum(s.shape[1] for s in everything)


def restrain(
    net: CausalLM,
    examples: Sequence[Example],
    spec: KlSpec | LdifsSpec,
    *,
    steps: int,
    seed: int,
    trains_head: bool,
    reuse: Reuse | None = None,
    progress: Progress = silent,
    label: str = "training",
) -> Restraint:
    """Compute the outputs of `net`, as it is now, on the conversations that training will draw.

    Args:
        net: the causal LM at the start of training, in evaluation mode.
        trains_head: the output matrix is going to change, so a copy of it is kept.

    Raises:
        InputError: fewer conversations than a step draws, or a layer that the model does not have.
    """
    import torch

    check_held(net, spec, len(examples))
    layers = _layers(net, spec)
    steps_with = [s for s in range(1, steps + 1) if spec.weight_at(s) > 0]
    drawn = {s: tuple(Random(derive(seed, "kl", s)).sample(list(examples), spec.batch)) for s in steps_with}
    distinct = sorted({e.id: e for batch in drawn.values() for e in batch}.values(), key=lambda e: len(e.ids))
    states: dict[str, Stream] = {}
    with torch.no_grad():
        rows = 8 if spec.batch > 1 else 1  # a batch of 1 may have been chosen because the model misreads padding
        for at in range(0, len(distinct), rows):
            batch = distinct[at : at + rows]
            found = counted_states(net, batch, spec.tokens, layers, reuse)
            states |= {e.id: s.clone() for e, s in zip(batch, found, strict=True)}
            progress(f"reading the start for {label}", at + len(batch), len(distinct))
    return Restraint(spec, drawn, layers, states, output_head(net, frozen=trains_head))


def _computes_twice(net: CausalLM) -> bool:
    """True where activations are computed again in the backward pass (transformers 5.23 renames the flag)."""
    name = "is_activation_checkpointing" if hasattr(type(net), "is_activation_checkpointing") else "is_gradient_checkpointing"
    return bool(getattr(net, name, False))


@contextmanager
def _without_dropout(net: CausalLM) -> Iterator[None]:
    """The start was read without dropout, whose noise would count as distance from it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    # a block computes its activations twice only while it is in training
    twice = GradientCheckpointingLayer if _computes_twice(net) else ()
    switched = [m for m in net.modules() if m.training and not isinstance(m, twice)]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def check_held(net: CausalLM, spec: KlSpec | LdifsSpec, count: int) -> None:
    """Reject a term that cannot be computed on `count` conversations.

    Raises:
        InputError: fewer conversations than a step draws, or a layer that the model does not have.
    """
    if count < spec.batch:
        raise InputError(
            f"{spec.name}.batch is {spec.batch}, but there are only {count} conversations to draw from",
            "lower it, or give more",
        )
    if isinstance(spec, LdifsSpec):
        check_layers(net, spec.layers, "ldifs.layers")


def _layers(net: CausalLM, spec: KlSpec | LdifsSpec) -> tuple[int, ...]:
    if isinstance(spec, KlSpec):
        return ()
    depth = len(blocks(net))
    return spec.layers or tuple(sorted({round(depth * k / 5) - 1 for k in range(1, 6)} - {-1}))


def counted_states(
    net: CausalLM, batch: Sequence[Example], tokens: str, layers: Sequence[int] = (), reuse: Reuse | None = None
) -> list[Stream]:
    """Return hidden states at the counted positions of each conversation, [max(1, layers), tokens, D] each.

    Args:
        tokens: `answer` counts the positions whose next token is learned, `all` every position.
        layers: blocks whose outputs to take; none for the last hidden states after the final norm.
        reuse: skips the frozen blocks.
    """
    import torch

    inputs = {k: v.to(net.device) for k, v in collate(batch).items()}
    labels = inputs.pop("labels")
    may_skip = reuse is not None and all(n >= reuse.first for n in layers)
    skipped = reuse.batch(batch, inputs["attention_mask"].bool()) if reuse and may_skip else nullcontext()
    places = [Place("block", n) for n in layers]
    with captured(net, places) as found, skipped:
        last = net.base_model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            use_cache=False,
        ).last_hidden_state  # [B, T, D]
    states = torch.stack([found[p] for p in places]) if layers else last[None]  # [L, B, T, D]
    if tokens == "all":
        counted = inputs["attention_mask"].bool()
    else:
        counted = torch.zeros_like(labels, dtype=torch.bool)
        counted[:, :-1] = labels[:, 1:] >= 0
    return [states[:, n, counted[n]] for n in range(len(batch))]


def feature_distance(start: Sequence[Stream], now: Sequence[Stream], everything: Sequence[Stream]) -> Tensor:
    """Return sum ||h_now - h_start||^2 / sum ||h_start||^2 of each layer over positions, mean over layers.

    (LDIFS, Mukhoti et al. 2023, takes the plain squared distance; relative to the start's own size, so that a weight means
    the same in every layer and model: ours)

    Args:
        start, now: states of each conversation, [L, tokens, D].
        everything: the start's states that the lower sum runs over.
    """
    import torch

    before, after, whole = (torch.cat(list(s), 1) for s in (start, now, everything))
    before, after, whole = (s.to(torch.promote_types(s.dtype, torch.float32)) for s in (before, after, whole))
    return ((after - before).square().sum((1, 2)) / whole.square().sum((1, 2))).mean()
