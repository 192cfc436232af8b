"""Training by several processes at once (torchrun, accelerate launch): which is first, and how the others get its results."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from emscope.core.errors import InputError, WorldError

if TYPE_CHECKING:
    from torch.nn import Module

T = TypeVar("T")
SLACK = 1.2


def count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """True in the process that writes, reads and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` returns in the first process, in all of them; the others wait for it.

    Raises:
        WorldError: in the other processes, where `make` raised in the first.
    """
    if count() == 1:
        return make()
    import torch.distributed as dist
    from accelerate import PartialState

    PartialState(cpu=not _gpus())
    _part_at_exit()
    box: list[tuple[T] | None] = [None]
    try:
        if is_first():
            box = [(make(),)]
    finally:
        dist.broadcast_object_list(box)
    if box[0] is None:
        raise WorldError("the first process failed", "see its message")
    return box[0][0]


@cache
def _part_at_exit() -> None:
    """Make sure that the program ends its process group: a process that exits with the group's threads still running is aborted."""
    import torch.distributed as dist

    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


def meet() -> None:
    """Wait until every process is here."""
    from_first(lambda: None)
    summed([0.0])


def summed(values: list[float]) -> list[float]:
    """Return the sum over processes of each value."""
    if count() == 1:
        return values
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return [float(v) for v in total]


def share(micro: int) -> int:
    """Return how many of a micro-batch's examples this process takes.

    Raises:
        InputError: the processes cannot share them equally.
    """
    if micro % count():
        raise InputError(
            f"a micro-batch of {micro} cannot be shared by {count()} processes",
            f"make batch and micro_batch multiples of {count()}, or start a different number of processes",
        )
    return micro // count()


def check_shardable() -> None:
    """Reject sharding where it would silently not happen.

    Raises:
        InputError: no GPUs, or a single process.
    """
    if not _gpus():
        raise InputError(
            "sharding (FSDP) needs GPUs: on CPUs the Trainer would silently train unsharded copies", "leave out shard"
        )
    if count() == 1:
        raise InputError(
            "there is only one process, so nothing to shard over", "start several with torchrun, or leave out shard"
        )


def check_sharded(model: Module) -> None:
    """Refuse to continue where a process holds more than its share of the model.

    Raises:
        WorldError: naming both shares.
    """
    held = whole = 0
    for p in model.parameters():
        held += p.to_local().numel() if hasattr(p, "to_local") else p.numel()
        whole += p.numel()
    if held > SLACK * whole / count():
        raise WorldError(
            f"sharding did not engage: this process holds {held / whole:.0%} of the elements, but its share is {1 / count():.0%}",
            "train without shard, or check the versions of torch and accelerate",
        )


def _gpus() -> bool:
    import torch

    return bool(torch.cuda.is_available())
