"""What each block adds to the residual stream, and which modules inside it write that: found by name, confirmed on a probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.hooks.sites import blocks, stream_in, tensor_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, ModuleOutput, Stream

ATTENTION = ("self_attn", "attn", "attention", "self_attention")
OTHER_MIXERS = ("linear_attn", "mamba", "conv")  # linear attention, state space, short convolution
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_mlp")
NO_ATTENTION = ("linear_attention", "mamba", "conv", "recurrent")  # kinds of layers, as configurations name them
# A norm after a part, where a model has one: its output is added to the stream (Gemma 2 and 3, OLMo 2, GLM 4).
AFTER_ATTENTION = ("post_attention_layernorm", "post_self_attn_layernorm")
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, slots=True)
class Branch:
    """A module inside a block; `scale` times its output is added to the residual stream."""

    name: str
    module: Module
    scale: float = 1.0

    def adds(self, output: ModuleOutput, given: Sequence[Stream], named: Mapping[str, Stream]) -> Stream:
        """Return what an output adds to the stream [B, T, D]; experts of some models give it as [B T, D].

        Args:
            given, named: the arguments of the module.
        """
        values = tensor_of(output)
        if values.ndim == 2:
            values = values.view(*stream_in(given, named).shape[:-1], values.shape[-1])
        return values if self.scale == 1 else values * self.scale

    def moved(self, output: ModuleOutput, shift: Tensor) -> ModuleOutput:
        """Return the output that adds `shift` [T, D] more to the stream of one sequence than `output` does."""
        values = tensor_of(output)
        new = values + (shift / self.scale).to(values.dtype).view(values.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new


Parts = Mapping[str, tuple[Branch, ...]]


def branches(net: CausalLM, site: str) -> list[tuple[Branch, ...]]:
    """Return for each block the branches whose sum is what `site` adds to the stream (of `block` and `before`: the block itself).

    There are none where a block has no such part.
    `mixer` is whatever mixes tokens: attention, linear attention, a state space, a short convolution, or several of them side
    by side; `attention` is softmax attention alone. They are the module that the configuration names as
    `emscope_sites: {mixer: ..., attention: ..., mlp: ...}`, inside each block; else they are found by their usual names, and
    taken only where on a small probe block(x) - x = mixer + mlp.

    Raises:
        InputError: they cannot be identified; the error says how to name them.
    """
    if site in ("block", "before"):
        return [(Branch("", block),) for block in blocks(net)]
    named = (getattr(net.config, "emscope_sites", None) or {}).get(site)
    if named is None:
        return [parts[site] for parts in _what_blocks_add(net)]
    found: list[tuple[Branch, ...]] = []
    for block in blocks(net):
        module = dict(block.named_modules()).get(named)
        found.append(() if module is None else (Branch(named, module),))
    if not any(found):
        raise InputError(
            f"emscope_sites: a block of {type(net).__name__} has no module '{named}'",
            f"it has {', '.join(n for n, _ in blocks(net)[0].named_children())}",
        )
    return found


def without(net: CausalLM, site: str, layer: int) -> InputError:
    """Return the error that block `layer` has no such part."""
    mixer = " and ".join(b.name for b in branches(net, "mixer")[layer]) if site == "attention" else ""
    return InputError(
        f"block {layer} of {type(net).__name__} has no {'MLP' if site == 'mlp' else site}"
        + (f": its mixer is {mixer}" * bool(mixer)),
        "read the site mixer there" if mixer else "read the site block there",
    )


def _what_blocks_add(net: CausalLM) -> list[Parts]:
    """Return the branches of each block by site."""
    import torch

    layers = list(blocks(net))
    children = [{n: m for n, m in block.named_children() if n in _NAMES} for block in layers]
    seen: dict[tuple[int, str], Stream] = {}
    with ExitStack() as stack:
        for n, block in enumerate(layers):
            for name, module in children[n].items():
                stack.callback(module.register_forward_hook(_keeping(seen, n, name)).remove)
            stack.callback(block.register_forward_pre_hook(_keeping_input(seen, n), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(_keeping(seen, n, "after")).remove)
        with torch.no_grad():
            net.base_model(input_ids=torch.arange(1, 6, device=net.device)[None], use_cache=False)
    scales = _scales(net)
    found: list[Parts] = []
    for n, inside in enumerate(children):
        before, after = seen[n, "before"], seen[n, "after"]
        outputs = {name: seen[n, name] for name in inside if (n, name) in seen and seen[n, name].numel() == after.numel()}
        parts = _sum(before, after, outputs, scales)
        if parts is None:
            raise InputError(
                f"emscope cannot tell what attention and MLP add to the residual stream of {type(net).__name__}",
                'name them in the model\'s config.json, such as "emscope_sites": {"attention": "self_attn", "mlp": "mlp"}; the '
                "sites block and before need no name",
            )
        if _mixes_otherwise(net, n):
            parts = {**parts, "attention": {}}
        found.append({site: tuple(Branch(name, inside[name], s) for name, s in one.items()) for site, one in parts.items()})
    return found


ROUNDINGS = 2  # of the last bit: a block rounds each sum and factor, which came to half of one at most in 64 architectures and three dtypes
_NAMES = frozenset((*ATTENTION, *OTHER_MIXERS, *MLP, *AFTER_ATTENTION, *AFTER_MLP))


def _sum(
    before: Tensor, after: Tensor, outputs: Mapping[str, Tensor], scales: Sequence[float]
) -> Mapping[str, dict[str, float]] | None:
    """Return by site the modules, with their scales, whose outputs sum to what a block adds to the stream [B, T, D]; None where none do.

    Each element is compared within its own rounding: relative to the largest of all, which may be ten thousand times the others,
    anything would fit. Of several choices that do, the closest is right: in 16 bits what a block adds may be little more than
    rounding.
    """
    import torch

    change = (after.double() - before.double()).cpu().flatten()
    size = (before.double().abs() + after.double().abs()).cpu().flatten()
    least = 1e-3 * float(change.abs().max())
    found, closest = None, float("inf")
    for mixer, mlp in product(_choices(outputs, _MIXERS), _choices(outputs, _MLPS)):
        names = (*mixer, *mlp)
        if not names:
            continue
        given = torch.stack([outputs[n].double().cpu().flatten() for n in names], 1)
        room = ROUNDINGS * torch.finfo(after.dtype).eps * (size + given.abs().sum(1)).clamp(min=least)
        fitted = torch.linalg.lstsq(given / room[:, None], (change / room)[:, None]).solution[:, 0]
        factors = [_nearest(scales, float(f)) for f in fitted]
        rest = (given @ torch.tensor(factors, dtype=torch.float64) - change) / room
        if float(rest.abs().max()) <= 1 and float(rest.square().sum()) < closest:
            found, closest = (mixer, mlp, dict(zip(names, factors, strict=True))), float(rest.square().sum())
    return None if found is None else _by_site(*found, outputs)


def _by_site(
    mixer: Sequence[str], mlp: Sequence[str], factors: Mapping[str, float], outputs: Mapping[str, Tensor]
) -> Mapping[str, dict[str, float]]:
    attention = {n: factors[n] for n in mixer if n not in OTHER_MIXERS}
    if any(n in AFTER_ATTENTION for n in mixer) and not any(n in outputs for n in ATTENTION):
        attention = {}
    return {"mixer": {n: factors[n] for n in mixer}, "attention": attention, "mlp": {n: factors[n] for n in mlp}}


def _mixes_otherwise(net: CausalLM, layer: int) -> bool:
    """True where the configuration says that a block has no softmax attention, whatever its mixer is called (Kimi Linear: self_attn)."""
    kinds = getattr(net.config.get_text_config(), "layer_types", None) or []
    return layer < len(kinds) and kinds[layer] in NO_ATTENTION


def _nearest(values: Sequence[float], wanted: float) -> float:
    return min(values, key=lambda value: abs(value - wanted))


# What may be a block's mixer or MLP, the more likely first: a norm after it, one module, or two side by side.
_MIXERS = [(n,) for n in (*AFTER_ATTENTION, *ATTENTION, *OTHER_MIXERS)] + list(product(OTHER_MIXERS, ATTENTION))
_MLPS = [(n,) for n in (*AFTER_MLP, *MLP)] + [(a, b) for a, b in product(MLP, MLP) if MLP.index(a) > MLP.index(b)]


def _choices(outputs: Mapping[str, Tensor], known: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return those of the known choices that the block has; nothing at all where it has none."""
    return [names for names in known if all(n in outputs for n in names)] or [()]


def _scales(net: CausalLM) -> list[float]:
    """Return the factors that a model's configuration may put before a branch: 1 and its multipliers (Granite, Falcon H1)."""
    settings = net.config.get_text_config().to_dict()
    return [1.0, *{float(v) for k, v in settings.items() if k.endswith("_multiplier") and isinstance(v, int | float)}]


def _keeping(seen: dict[tuple[int, str], Stream], n: int, name: str) -> Callable[..., None]:
    def hook(module: Module, given: object, output: ModuleOutput) -> None:
        seen[n, name] = tensor_of(output)

    return hook


def _keeping_input(seen: dict[tuple[int, str], Stream], n: int) -> Callable[..., None]:
    def hook(module: Module, given: Sequence[Stream], named: Mapping[str, Stream]) -> None:
        seen[n, "before"] = stream_in(given, named)

    return hook
