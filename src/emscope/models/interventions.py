"""Changing what flows between blocks. All are context managers and leave nothing behind on any exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from emscope.models.roles import acted_on
from emscope.models.sites import blocks, tensor_of

Change = Callable[[int, Any], Any]


@contextmanager
def added(
    net: Any, vectors: Mapping[int, Any], scale: float = 1.0, *, tokens: str = "all"
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Add `scale * vectors[n]` [D] to the output of block n, in every sequence, inside the block. (x' = x + lambda v, CL)

    Yields a context manager that takes the vectors away for a while.

    Args:
        tokens: `all`, `prompt` or `answer`; the last two in passes that say which are which (`models.roles`).
    """
    state = {"scale": scale}

    @contextmanager
    def paused() -> Iterator[None]:
        state["scale"] = 0.0
        try:
            yield
        finally:
            state["scale"] = scale

    def change(layer: int, hidden: Any) -> Any:
        if not state["scale"]:
            return hidden
        shift = (state["scale"] * vectors[layer]).to(hidden.device, hidden.dtype)
        where = acted_on(tokens, hidden)
        return hidden + (shift if where is None else shift * where)

    with _changed(net, vectors, change):
        yield paused


@contextmanager
def ablated(net: Any, vectors: Mapping[int, Any], *, tokens: str = "all") -> Iterator[None]:
    """Take the component along `vectors[n]` [D] out of the output of block n inside the block. (x' = x - v v^T x, v unit, CL)

    Args:
        vectors: of any length but zero. tokens: as in `added`.
    """
    import torch

    units = {n: v / torch.linalg.vector_norm(v) for n, v in ((n, v.double()) for n, v in vectors.items())}

    def change(layer: int, hidden: Any) -> Any:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        unit = units[layer].to(hidden.device, wide.dtype)
        part = (wide @ unit)[..., None] * unit
        where = acted_on(tokens, hidden)
        return (wide - (part if where is None else part * where)).to(hidden.dtype)

    with _changed(net, vectors, change):
        yield


@contextmanager
def replaced(net: Any, values: Mapping[int, Any], *, tokens: str = "all") -> Iterator[None]:
    """Put `values[n]`, which must broadcast to [B, T, D], in place of the output of block n inside the block. (patching)"""
    import torch

    def change(layer: int, hidden: Any) -> Any:
        new = values[layer].to(hidden.device, hidden.dtype).expand_as(hidden)
        where = acted_on(tokens, hidden)
        return new if where is None else torch.where(where, new, hidden)

    with _changed(net, values, change):
        yield


@contextmanager
def _changed(net: Any, at: Mapping[int, Any], change: Change) -> Iterator[None]:
    layers = blocks(net)
    with ExitStack() as stack:
        for n in at:
            stack.callback(layers[n].register_forward_hook(_changing(n, change)).remove)
        yield


def _changing(layer: int, change: Change) -> Any:
    def hook(module: Any, given: Any, output: Any) -> Any:
        moved = change(layer, tensor_of(output))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
