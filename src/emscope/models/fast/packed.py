"""One forward pass over many sequences that share beginnings: each distinct beginning is computed once, nothing is padded.

The sequences form a trie (a tree of tokens). Its nodes are laid out flat and go through the model as one row, so that every
matrix product sees exactly the distinct tokens; attention alone is computed per sequence, from the nodes on its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from emscope.models.fast.cpu_kernels import cpu_kernels, is_known
from emscope.models.fast.head import first_pass

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.fast.cpu_kernels import Attention
    from emscope.models.types import Attends, CausalLM, Device, Stream

ATTENTION = "emscope_packed"
PROBE = ([1, 2, 3, 4, 5], [1, 2, 6])
# Arguments that transformers passes to attention and that do not matter here; any other number or tensor is a term that a packed pass would miss.
UNDERSTOOD = {"dropout", "position_ids", "cache_position"}
STRETCHED = ("dynamic", "longrope")  # rotations whose angles depend on the longest sequence of a pass


class _CannotPack(Exception):
    """This model's attention does something that a packed pass would get wrong."""


@dataclass(frozen=True)
class Pack:
    """A trie of S sequences with T distinct nodes.

    ids, positions [T]: the token of each node and its place in its sequences.
    paths [S, L]: the nodes of each sequence, right-padded with node 0.
    home [T]: for each node one place in the flattened `paths` that holds it.
    longest: tokens of the longest sequence that the attention has to reach over.
    lasting: whether what is computed of it may be kept for another pass. (`models.kept`)
    """

    ids: Tensor
    positions: Tensor
    paths: Tensor
    home: Tensor
    longest: int
    lasting: bool = True

    @cached_property
    def key(self) -> bytes:
        """For a given model, the lower blocks' output depends only on this."""
        told = hashlib.sha256()
        for part in (self.ids, self.positions, self.paths):
            told.update(f"{tuple(part.shape)}".encode() + part.cpu().numpy().tobytes())
        return told.digest()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Return causal attention along each path [T, H, e] of q [T, H, d] over k [T, K, d] and v [T, K, e].

        Each of the K serves H / K heads in a row. Right-padded rows need no mask: padding comes after every real token.
        """
        import torch

        q, k, v = (self._on_paths(x) for x in (q, k, v))
        groups = q.shape[1] // k.shape[1]
        out = torch.empty(len(self.home), k.shape[1], groups, v.shape[3], dtype=q.dtype, device=q.device)
        for g in range(groups):  # in turn, so that keys and values need not be repeated
            part = torch.nn.functional.scaled_dot_product_attention(q[:, g::groups], k, v, is_causal=True, scale=scale)
            out[:, :, g] = part.transpose(1, 2).flatten(0, 1).index_select(0, self.home)
        return out.flatten(1, 2)

    def _on_paths(self, x: Tensor) -> Tensor:
        """Return the values at the nodes of each path, [S, H, L, d], of x [T, H, d]."""
        return x.index_select(0, self.paths.flatten()).view(*self.paths.shape, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class _Probe(Pack):
    """A pack that notes which blocks ask it for attention."""

    asked: set[int] = field(default_factory=set)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        self.asked.add(layer)
        return super().attend(layer, q, k, v, scale)


def pack(sequences: Sequence[Sequence[int]], device: Device = "cpu") -> Pack:
    """Lay out token sequences as a trie."""
    import torch

    nodes: dict[tuple[int, int], int] = {}  # (parent node, token) -> node
    tokens: list[int] = []
    depth: list[int] = []
    home: list[int] = []
    longest = max(map(len, sequences))
    paths = torch.zeros(len(sequences), longest, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        node, path = -1, []
        for place, token in enumerate(sequence):
            parent, node = node, nodes.setdefault((node, token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                depth.append(depth[parent] + 1 if place else 0)
                home.append(row * longest + place)
            path.append(node)
        paths[row, : len(path)] = torch.tensor(path)
    return Pack(
        torch.tensor(tokens, device=device),
        torch.tensor(depth, device=device),
        paths.to(device),
        torch.tensor(home, device=device),
        longest,
    )


def hidden_states(net: CausalLM, packed: Pack) -> Stream:
    """Return the last hidden state [T, D] of every node; call it inside `packed_attention`, where that yields True."""
    out = net.base_model(input_ids=packed.ids[None], position_ids=packed.positions[None], use_cache=False, emscope_pack=packed)
    return out.last_hidden_state[0]


@contextmanager
def packed_attention(net: CausalLM, longest: int) -> Iterator[bool]:
    """Switch `net` to packed attention inside the block; yield False where a small probe shows that it does not fit.

    No architecture is named. It fits where nothing but attention mixes tokens, every block's attention is ours, none has a term that ours lacks
    or a window shorter than the sequences to come, and two short sequences match one plain pass of each.

    Args:
        longest: tokens of the longest sequence expected; a shorter attention window does not fit.
    """
    import torch

    if not _only_attention_mixes(net) or not _heeds_positions(net) or not turns_alike(net, longest):
        yield False
        return
    with first_pass(net):
        plain = [net.base_model(input_ids=torch.tensor([s], device=net.device), use_cache=False) for s in PROBE]
    expected = [out.last_hidden_state[0] for out in plain]
    with ExitStack() as stack:
        switched = stack.enter_context(_attention_of_ours(net))
        if not switched or not _probe(net, expected, longest):
            stack.close()  # the rest of the block is a plain pass
            yield False
            return
        calls = _calls(net, longest)
        with cpu_kernels(net) as lean:
            if lean and all(call.same() for call in calls):
                yield True
                return
        yield True


@contextmanager
def _attention_of_ours(net: CausalLM) -> Iterator[bool]:
    before = net.config._attn_implementation
    _register()
    try:
        net.set_attn_implementation(ATTENTION)
        switched = net.config._attn_implementation == ATTENTION
    except (ValueError, AttributeError):
        switched = False
    try:
        yield switched
    finally:
        if net.config._attn_implementation != before:
            net.set_attn_implementation(before)


@dataclass(frozen=True)
class _Call:
    """What a module was given in a pass, and what it gave."""

    module: Module
    args: tuple[object, ...]
    kwargs: dict[str, object]
    out: Tensor

    def same(self) -> bool:
        """True where the module as it is now gives the same."""
        return _near(_first(self.module(*self.args, **self.kwargs)), self.out)


def _calls(net: CausalLM, longest: int) -> list[_Call]:
    """Return the calls that a pass over the sequences of `PROBE` makes of the modules which `cpu_kernels` would change.

    Each module is compared on its own inputs: over a whole model in 16 bits the rounding of one block is the next one's input, and two exact
    ways end far apart.
    """
    found: list[_Call] = []

    def note(module: Module, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
        found.append(_Call(module, args, kwargs, _first(out)))

    laid = pack(PROBE, net.device)
    handles = [m.register_forward_hook(note, with_kwargs=True) for m in net.base_model.modules() if is_known(m)]
    try:
        hidden_states(net, Pack(laid.ids, laid.positions, laid.paths, laid.home, max(longest, laid.longest), lasting=False))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _first(out: object) -> Tensor:
    return out[0] if isinstance(out, tuple) else out  # type: ignore[return-value]


def _near(mine: Tensor, theirs: Tensor) -> bool:
    """True where two results differ by rounding alone."""
    import torch

    tolerance = 1e-4 if theirs.dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(mine, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


def _probe(net: CausalLM, expected: Sequence[Stream], longest: int) -> bool:
    """True where a packed pass over the sequences of `PROBE` gives the hidden states of one plain pass each."""

    laid = pack(PROBE, net.device)
    packed = _Probe(laid.ids, laid.positions, laid.paths, laid.home, max(longest, laid.longest), lasting=False)
    try:
        mine = hidden_states(net, packed)
    except Exception:  # `_CannotPack`, or whatever a forward makes of a pass that it was not written for
        return False
    if packed.asked != set(range(net.config.get_text_config().num_hidden_layers)):
        return False
    for row, (s, theirs) in enumerate(zip(PROBE, expected, strict=True)):
        if not _near(mine[packed.paths[row, : len(s)]], theirs):
            return False
    return True


def _only_attention_mixes(net: CausalLM) -> bool:
    """False where a convolution runs along the tokens, as in front of every state-space and linear attention: it would run from one sequence into the next."""
    import torch

    return not any(isinstance(m, torch.nn.Conv1d) for m in net.get_decoder().modules())


def _heeds_positions(net: CausalLM) -> bool:
    """False where attention counts a token's place in the row, whatever its given position (Llama 4's temperature, from place 8,192 on)."""
    return not getattr(net.config.get_text_config(), "attn_temperature_tuning", False)


def turns_alike(net: CausalLM, longest: int) -> bool:
    """False where a sequence of this length turns positions by other angles than a short one (dynamic NTK, LongRoPE).

    It would change those read beside it, and its own earlier tokens would have to be rotated again.
    """
    config = net.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [k for k in (rope, *rope.values()) if isinstance(k, dict) and k.get("rope_type") in STRETCHED]
    return all(longest <= (k.get("original_max_position_embeddings") or config.max_position_embeddings) for k in kinds)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    if ATTENTION not in AttentionInterface._global_mapping:
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, _reach)


def _reach(*, local_size: int | None = None, use_vmap: bool = False, **_: object) -> Tensor | None:
    """Return, in the place of a mask, how many tokens back a token may look: None for all, 0 for an unknown rule."""
    import torch

    reach = 0 if use_vmap else local_size
    return None if reach is None else torch.tensor(reach)


def _attend(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    emscope_pack: Attends | None = None,
    **given: object,
) -> tuple[Tensor, None]:
    """Causal attention along each path; query [1, H, T, d], key and value [1, K, T, d], returns [1, T, H, d]."""
    import torch

    reaches = [int(r) for r in (sliding_window, attention_mask) if r is not None]
    if emscope_pack is None or any(r < emscope_pack.longest for r in reaches):
        raise _CannotPack("the pack does not reach the attention, or the attention not the whole sequence")
    if given.get("is_causal") is False or any(
        isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)
        for name, value in given.items()
        if name not in UNDERSTOOD
    ):
        raise _CannotPack("the attention has terms of its own, such as a soft cap or sinks")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return emscope_pack.attend(module.layer_idx, q, k, v, scaling)[None], None
