"""How far a study has got, from its folder alone, so that any machine that sees the folder can tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from emscope.core.plain import Result
from emscope.store.cells import settled
from emscope.store.claims import Claims, Holder
from emscope.store.study import CLAIMS
from emscope.study.cells.plan_file import read_plan
from emscope.study.cells.planning import BASE

State = Literal["finished", "running", "waiting", "failed"]
WHY = "no fine-tune has finished yet"


@dataclass(frozen=True, slots=True)
class CellStanding(Result):
    """One cell: where it runs or ran, how long it took [s], the most memory its process had [bytes], and why it failed."""

    cell: str
    key: str
    state: State
    host: str | None
    pid: int | None
    seconds: float | None
    peak_bytes: int | None
    why: str | None


@dataclass(frozen=True, slots=True)
class Standing(Result):
    """How far a study has got.

    Attributes:
        seconds_left: from the mean of the finished fine-tunes and the current number of workers; None where unknown, with the
            reason in `why`.
    """

    schema: ClassVar[str] = "emscope.status/1"

    study: str
    finished: int
    running: int
    waiting: int
    failed: int
    seconds_left: float | None
    why: str | None
    cells: tuple[CellStanding, ...]

    @property
    def left(self) -> int:
        """Cells that are not done."""
        return self.running + self.waiting


def standing(root: Path) -> Standing:
    """Return how far the study in a folder has got.

    Raises:
        InputError: there is none, or its plan is damaged.
    """
    plan, claims = read_plan(root), Claims(root / CLAIMS)
    cells = tuple(_cell(root, name, key, plan.samples, claims) for name, key in plan.cells.items())
    counts = Counter(cell.state for cell in cells)
    left = counts["running"] + counts["waiting"]
    took = [c.seconds for c in cells if c.state == "finished" and c.seconds is not None and c.cell != BASE]
    seconds: float | None = 0.0
    if left:
        at_once = counts["running"] or plan.workers
        whole = left - counts["running"] / 2  # running cells are half done, on average
        seconds = sum(took) / len(took) * whole / at_once if took else None
    return Standing(
        study=str(plan.spec.get("name", "study")),
        finished=counts["finished"],
        running=counts["running"],
        waiting=counts["waiting"],
        failed=counts["failed"],
        seconds_left=seconds,
        why=WHY if seconds is None else None,
        cells=cells,
    )


def _cell(root: Path, name: str, key: str, samples: int, claims: Claims) -> CellStanding:
    record = settled(root, key, samples)
    if record is not None:
        state: State = "failed" if record.why is not None else "finished"
        return CellStanding(name, key, state, record.host, None, record.seconds, record.peak_bytes, record.why)
    holder: Holder | None = claims.holder(key)
    if holder is None:
        return CellStanding(name, key, "waiting", None, None, None, None, None)
    return CellStanding(name, key, "running", holder.host.split()[0], holder.pid, None, None, None)
