"""What every engine's worker does: load the base once, then do any cell that nobody else is doing, until none is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from emscope.core.errors import EmscopeError
from emscope.core.limits import reason
from emscope.core.progress import Progress, silent
from emscope.store.cells import Record
from emscope.store.claims import Claims
from emscope.store.study import CLAIMS
from emscope.study.cells.doing import ClaimLost, Shared, attempt, fail, heeding
from emscope.study.cells.plan_file import planned_in
from emscope.study.cells.planning import Cell

AGAIN = 2.0  # seconds between looks at cells that others are doing


def work(
    shared: Shared, cells: Sequence[Cell], progress: Progress = silent, done: Callable[[Record], None] = lambda _: None
) -> None:
    """Do cells until all are settled; wait for those that another process is doing, and do them here if that process ends without them.

    Raises:
        EmscopeError: a fault that would affect other cells too; the cell is recorded as failed.
    """
    claims, waiting = Claims(shared.root / CLAIMS), list(cells)
    while waiting:
        later = []
        for cell in waiting:
            if shared.planned.settled(shared.root, cell) is not None:
                continue
            with claims.take(cell.key) as claim:
                if claim is None:
                    later.append(cell)
                elif shared.planned.settled(shared.root, cell) is None:  # nobody did it meanwhile
                    try:
                        done(_attempt(shared, cell, heeding(claim, progress)))
                    except ClaimLost:
                        later.append(cell)
        waiting = later
        if waiting:
            time.sleep(AGAIN)


def _attempt(shared: Shared, cell: Cell, progress: Progress) -> Record:
    """Do a cell; whatever ends it is recorded before it is raised."""
    began = time.monotonic()
    try:
        return attempt(shared, cell, progress)
    except ClaimLost:
        raise
    except Exception as error:
        why = error.fault if isinstance(error, EmscopeError) else reason(error)
        fail(shared.root, cell, why, "other", time.monotonic() - began, shared.planned.spec.threads)
        raise


@lru_cache(maxsize=1)
def shared_in(root: Path, plan: tuple[int, int]) -> Shared:
    """Return what the cells of a study share, loaded once a process.

    Args:
        plan: time and size of the plan's file: a changed plan is loaded again.
    """
    return Shared.loading(root, planned_in(root))


def shared_now(root: Path) -> Shared:
    """Return what the cells of the study currently planned in a folder share."""
    found = (root / "plan.json").stat()
    return shared_in(root, (found.st_mtime_ns, found.st_size))


@contextmanager
def computing_on(threads: int | None) -> Iterator[None]:
    """Compute with this many CPU threads; None leaves the number as it is."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work_in(root: Path, folder: str, threads: int, keys: Sequence[str] | None = None) -> list[str]:
    """Do the cells of the study planned in `root`, all or those with these keys; return the keys of those that are settled.

    Args:
        folder: what relative paths in the settings are relative to.
    """
    os.chdir(folder)
    with computing_on(threads):
        shared = shared_now(root)
        cells = [cell for cell in shared.planned.cells if keys is None or cell.key in keys]
        work(shared, cells)
    return [cell.key for cell in cells]


def end_with(parent: int) -> None:
    """Make sure that this process ends when its parent does, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
