"""Changing what flows between blocks. All are context managers and leave nothing behind on any exit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from emscope.models.sites import blocks


@contextmanager
def added(net: Any, vectors: Mapping[int, Any], scale: float = 1.0) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Add `scale * vectors[n]` [D] to the output of block n, at every token of every sequence, inside the block.

    Yields a context manager that takes the vectors away for a while.
    """
    layers = blocks(net)
    state = {"scale": scale}

    @contextmanager
    def paused() -> Iterator[None]:
        state["scale"] = 0.0
        try:
            yield
        finally:
            state["scale"] = scale

    with ExitStack() as stack:
        for n, vector in vectors.items():
            stack.callback(layers[n].register_forward_hook(_adding(vector, state)).remove)
        yield paused


def _adding(vector: Any, state: Mapping[str, float]) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        scale = state["scale"]
        if not scale:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + (scale * vector).to(hidden.device, hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
