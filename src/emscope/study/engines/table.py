"""The engines by name: each is a function that brings cells to their end, or ends where it can do no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from emscope.core.progress import Progress
from emscope.study.cells.planning import Cell, Planned
from emscope.study.engines.spec import EngineSpec


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is to do: these cells of a study whose plan is in its folder, by so many workers of so many threads each."""

    root: Path
    planned: Planned
    cells: tuple[Cell, ...]
    how: EngineSpec
    workers: int
    threads: int

    def left(self) -> list[Cell]:
        """Return the cells that are neither finished nor failed."""
        return [cell for cell in self.cells if self.planned.settled(self.root, cell) is None]

    def tell(self, progress: Progress) -> list[Cell]:
        """Tell how many cells are settled; return those that are left."""
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
    """Return an engine; what it needs is imported now."""
    module, _, function = ENGINES[name].partition(":")
    found: Engine = getattr(import_module(module), function)
    return found


def hands(how: EngineSpec, threads: int | None) -> tuple[int, int]:
    """Return (workers, threads of each): one worker for each card, or cores shared out evenly."""
    import os

    import torch

    cores, cards = os.cpu_count() or 1, torch.cuda.device_count()
    if how.engine == "serial":
        return 1, threads or torch.get_num_threads()
    workers = how.workers or cards or max(cores // (threads or 1), 1)
    return workers, threads or max(cores // workers, 1)
