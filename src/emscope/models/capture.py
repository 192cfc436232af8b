"""Reading what flows between blocks, without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from emscope.models.sites import blocks


@contextmanager
def captured(net: Any, layers: Sequence[int]) -> Iterator[dict[int, Any]]:
    """Yield a dict that holds, after each forward pass inside the block, the output [B, T, D] of each block in `layers`.

    Graph and dtype are the pass's own; nothing is copied.
    """
    found: dict[int, Any] = {}
    every = blocks(net)

    def keeping(n: int) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            found[n] = output[0] if isinstance(output, tuple) else output

        return hook

    with ExitStack() as stack:
        for n in layers:
            stack.callback(every[n].register_forward_hook(keeping(n)).remove)
        yield found
