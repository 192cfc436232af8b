"""Changing what flows between blocks. All are context managers and leave nothing behind on any exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from emscope.models.sites import blocks


@contextmanager
def added(net: Any, vectors: Mapping[int, Any], scale: float = 1.0) -> Iterator[None]:
    """Add `scale * vectors[n]` [D] to the output of block n, at every token of every sequence, inside the block."""
    layers = blocks(net)
    with ExitStack() as stack:
        for n, vector in vectors.items():
            stack.callback(layers[n].register_forward_hook(_adding(vector, scale)).remove)
        yield


def _adding(vector: Any, scale: float) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + (scale * vector).to(hidden.device, hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
