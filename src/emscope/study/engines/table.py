"""The engines by name: each is a function that finishes cells, or ends when it can do no more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from emscope.core.progress import Progress
from emscope.study.cells.planning import Cell, Planned
from emscope.study.engines.spec import EngineSpec


@dataclass(frozen=True, slots=True)
class Job:
    """A job for an engine: these cells of a study whose plan is in its folder, with this many workers of this many threads each."""

    root: Path
    planned: Planned
    cells: tuple[Cell, ...]
    how: EngineSpec
    workers: int
    threads: int
    _settled: set[str] = field(default_factory=set)  # settled cells are not looked up again

    def left(self) -> list[Cell]:
        """Return the cells that are neither finished nor failed."""
        waiting = [cell for cell in self.cells if cell.key not in self._settled]
        self._settled.update(cell.key for cell in waiting if self.planned.settled(self.root, cell) is not None)
        return [cell for cell in waiting if cell.key not in self._settled]

    def tell(self, progress: Progress) -> list[Cell]:
        """Report how many cells are settled; return those that are left."""
        left = self.left()
        progress("cells", len(self.cells) - len(left), len(self.cells))
        return left


Engine = Callable[[Job, Progress], None]
ENGINES: Mapping[str, str] = {
    "local": "emscope.study.engines.local:run",
    "ray": "emscope.study.engines.on_ray:run",
    "slurm": "emscope.study.engines.on_slurm:run",
}
"""Engines beside `serial`, which is `worker.work` in the driver's own process."""


def engine(name: str) -> Engine:
    """Return an engine, importing what it needs."""
    module, _, function = ENGINES[name].partition(":")
    found: Engine = getattr(import_module(module), function)
    return found


def hands(how: EngineSpec, threads: int | None) -> tuple[int, int]:
    """Return (workers, threads of each): one worker for each GPU, or the cores divided evenly."""
    import torch

    cores, cards = _cores(), torch.cuda.device_count()
    if how.engine == "serial":
        return 1, threads or torch.get_num_threads()
    workers = how.workers or cards or max(cores // (threads or 1), 1)
    return workers, threads or max(cores // workers, 1)


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
