"""Changing what flows between blocks. All are context managers and leave no trace on any exit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from emscope.models.adapters.updates import Change
from emscope.models.hooks.roles import acted_on
from emscope.models.hooks.sites import blocks, tensor_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, ModuleOutput, Stream, Vectors

Act = Callable[[int, "Stream"], "Stream"]


@contextmanager
def added(
    net: CausalLM, vectors: Vectors, scale: float = 1.0, *, tokens: str = "all"
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Add `scale * vectors[n]` [D] to the output of block n, in every sequence, inside the block. (x' = x + lambda v, convergent directions, Soligo et al. 2025)

    Yields a context manager that removes the vectors for a while.

    Args:
        tokens: `all`, `prompt` or `answer`; the last two in passes that mark them (`models.roles`).
    """
    state = {"scale": scale}

    @contextmanager
    def paused() -> Iterator[None]:
        state["scale"] = 0.0
        try:
            yield
        finally:
            state["scale"] = scale

    def change(layer: int, hidden: Stream) -> Stream:
        if not state["scale"]:
            return hidden
        shift = (state["scale"] * vectors[layer]).to(hidden.device, hidden.dtype)
        where = acted_on(tokens, hidden)
        return hidden + (shift if where is None else shift * where)

    with _changed(net, vectors, change):
        yield paused


@contextmanager
def ablated(net: CausalLM, vectors: Vectors, *, tokens: str = "all") -> Iterator[None]:
    """Take the component along `vectors[n]` [D] out of the output of block n inside the block. (x' = x - v v^T x, v unit, convergent directions, Soligo et al. 2025)

    Args:
        vectors: of any length but zero. tokens: as in `added`.
    """
    import torch

    units = {n: v / torch.linalg.vector_norm(v) for n, v in ((n, v.double()) for n, v in vectors.items())}

    def change(layer: int, hidden: Stream) -> Stream:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        unit = units[layer].to(hidden.device, wide.dtype)
        part = (wide @ unit)[..., None] * unit
        where = acted_on(tokens, hidden)
        return (wide - (part if where is None else part * where)).to(hidden.dtype)

    with _changed(net, vectors, change):
        yield


@contextmanager
def replaced(net: CausalLM, values: Mapping[int, Tensor], *, tokens: str = "all") -> Iterator[None]:
    """Put `values[n]`, which must broadcast to [B, T, D], in place of the output of block n inside the block. (patching)"""
    import torch

    def change(layer: int, hidden: Stream) -> Stream:
        new = values[layer].to(hidden.device, hidden.dtype).expand_as(hidden)
        where = acted_on(tokens, hidden)
        return new if where is None else torch.where(where, new, hidden)

    with _changed(net, values, change):
        yield


@contextmanager
def held_scalar(net: CausalLM, adapter: Change, value: float) -> Iterator[None]:
    """Hold the scalar A x of a rank-1 adapter that is merged into `net` at `value`, at every token, inside the block. (scalar patching, convergent directions, Soligo et al. 2025)

    Args:
        adapter: left B [out, 1], its scale included, right A [1, in].
    """
    module = net.get_submodule(adapter.name)
    assert adapter.right is not None
    a, b = (x.to(net.device, net.dtype) for x in (adapter.right[0], adapter.left[:, 0]))

    def hook(module: Module, given: tuple[Stream, ...], output: Tensor) -> Tensor:
        return output + (value - given[0] @ a)[..., None] * b

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _changed(net: CausalLM, at: Iterable[int], change: Act) -> Iterator[None]:
    layers = blocks(net)
    with ExitStack() as stack:
        for n in at:
            stack.callback(layers[n].register_forward_hook(_changing(n, change)).remove)
        yield


def _changing(layer: int, change: Act) -> Callable[..., ModuleOutput]:
    def hook(module: Module, given: object, output: ModuleOutput) -> ModuleOutput:
        moved = change(layer, tensor_of(output))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
