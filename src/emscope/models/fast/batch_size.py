"""How much to compute at once: a CPU gains little from more, a GPU starves on little, and smaller batches are tried when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from emscope.core.errors import WorldError

if TYPE_CHECKING:
    from emscope.models.types import Placed

Part = TypeVar("Part")
Found = TypeVar("Found")

CPU_TOKENS, CPU_ROWS = 3072, 400
GPU_TOKENS, GPU_ROWS, GPU_WIDTH = 49_152, 1600, 576  # measured on a model of that hidden width


def batch_tokens(net: Placed) -> int:
    """Return how many tokens to read at once: on a GPU as many as take the memory that 49,152 take at a width of 576."""
    return _scaled(net, GPU_TOKENS, CPU_TOKENS)


def rows(net: Placed) -> int:
    """Return how many answers to write side by side: on a GPU 1,600 at a width of 576, fewer for wider models."""
    return _scaled(net, GPU_ROWS, CPU_ROWS)


def _scaled(net: Placed, most: int, least: int) -> int:
    if net.device.type == "cpu":
        return least
    width = int(getattr(net.config.get_text_config(), "hidden_size", None) or GPU_WIDTH)
    return max(least, min(most, most * GPU_WIDTH // width))


def halving(work: Callable[[Sequence[Part]], Found], batch: Sequence[Part]) -> Iterator[tuple[Sequence[Part], Found]]:
    """Yield (part, result of `work`) for a batch; when memory runs out, for its halves, each tried in the same way.

    Args:
        work: its result for a member must not depend on the others, and it must clean up when it runs out of memory.

    Raises:
        WorldError: a single member does not fit.
    """
    import torch

    try:
        found = work(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise WorldError(
                "the device runs out of memory with a single text beside the model",
                "use a smaller `dtype`, a device with more memory, or shorter texts",
            ) from None
    else:
        yield batch, found
        return
    # outside of the handler, whose error keeps the failed pass's tensors alive
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    for half in (batch[:middle], batch[middle:]):
        yield from halving(work, half)
