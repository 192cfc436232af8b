"""How one cell is done: trained, read, asked, and its rows stored. Every engine uses this alone."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from emscope.answers.sample import Local
from emscope.core.errors import Diverged, EmscopeError
from emscope.core.limits import reason
from emscope.core.progress import Progress
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded, load
from emscope.models.remote.hosted import Spent
from emscope.store.cells import Fault, Record, begun, drop_work, land, write_record
from emscope.store.claims import Claim
from emscope.store.host import this_host
from emscope.store.rows import Rows, read_table
from emscope.study.asking import Asking, asking, judged_subjects
from emscope.study.cells.at_host import base_at_host, spent_so_far, train_at_host, ways_of
from emscope.study.cells.planning import Cell, Planned, readings
from emscope.study.opening import Ways
from emscope.study.reading.measuring import Reading, lacking
from emscope.study.training.plan import Run
from emscope.study.training.training import drop_weights, recorded, train_run

FAULTS: tuple[Fault, Fault] = ("diverged", "memory")
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class ClaimLost(EmscopeError):
    """Another machine took the cell over, because this one stalled for too long."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all cells of a study share: its folder, its plan, the base in memory, and the questions whose answers judges read."""

    root: Path
    planned: Planned
    loaded: Loaded
    asking: Asking | None

    @classmethod
    def loading(cls, root: Path, planned: Planned, *, contact: bool = True) -> Shared:
        """Load the base of a study, as a worker does once.

        Args:
            contact: as `base_at_host` has it.
        """
        spec = planned.spec
        if spec.host is None:
            loaded = load(planned.base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs)
        else:
            loaded = base_at_host(spec, spec.host, contact=contact)
        return cls(root, planned, loaded, asking(loaded, spec.judged) if spec.judged else None)


def attempt(shared: Shared, cell: Cell, progress: Progress) -> Record:
    """Do a cell and write its record; one that diverges, or has too little memory, is recorded with its reason.

    Raises:
        ClaimLost: another machine took it over. EmscopeError: any other fault, which would affect other cells too.
    """
    began, fault = time.monotonic(), FAULTS[0]
    try:
        return do_cell(shared, cell, progress)
    except Diverged as error:
        why = error.fault
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fault, why = FAULTS[1], f"not enough memory ({reason(error)})"
    give_back_memory()
    progress(f"{cell.name} ended: {why}", 1, 1)
    return fail(shared.root, cell, why, fault, time.monotonic() - began, shared.planned.spec.threads)


def fail(root: Path, cell: Cell, why: str, fault: Fault, seconds: float, threads: int | None) -> Record:
    """Write that a cell has failed, and what it has cost at a host, and return its record."""
    spent = spent_so_far(root, cell)
    tokens = asdict(spent) if spent != Spent() else {}
    record = Record(cell.key, cell.name, {}, 0, seconds, tokens, _host(), threads or 0, peak(), why, fault)
    if fault == FAULTS[0]:  # else the next run continues with its rows, which may have been paid for
        drop_work(root, cell.key)
    write_record(root, record)
    return record


def do_cell(shared: Shared, cell: Cell, progress: Progress) -> Record:
    """Finish a cell; whatever of it is already stored is not done again.

    Raises:
        Diverged: its training diverged, or its weights give values that are not numbers.
    """
    import torch

    began = time.monotonic()
    rows, spent = begun(shared.root, cell.key), {"trained": 0, "read": 0, "sampled": 0}
    known = recorded(rows, shared.root, cell.run) if cell.run else {}
    if cell.run is not None and (known is None or _lacks(shared, rows, readings(shared.planned, cell.run, known))):
        known, spent["trained"] = train_cell(shared, rows, cell, progress)
    assert known is not None
    wanted = readings(shared.planned, cell.run, known)
    named = f"reading {cell.name}"
    told: Progress = lambda _, done, total: progress(named, done, total)  # noqa: E731
    with ways_of(shared.root, shared.planned, cell) as ways:
        spent["read"] = ways.measure(rows, shared.loaded, wanted, shared.planned.asked, told)
        spent["sampled"] = _ask(shared, rows, wanted, progress, ways) + _tokens(rows, "responses")
        if (charged := ways.charged()) is not None:  # prompts of answers too, and the token that a reading samples
            spent = asdict(charged)
    record = Record(
        key=cell.key,
        name=cell.name,
        parts=land(shared.root, cell.key, rows),
        samples=shared.planned.samples,
        seconds=round(time.monotonic() - began, 3),
        tokens=spent,
        host=_host(),
        threads=torch.get_num_threads(),
        peak_bytes=peak(),
    )
    write_record(shared.root, record)
    drop_work(shared.root, cell.key)
    if cell.run is not None:
        drop_weights(shared.root, cell.run, kept(shared.planned, cell.run))
    return record


def train_cell(shared: Shared, rows: Rows, cell: Cell, progress: Progress) -> tuple[dict[int, Checkpoint], int]:
    """Train a cell's run unless its weights are there, write what was read from it, and return its checkpoints and the tokens it saw."""
    p, one = shared.planned, cell.run
    assert one is not None
    if p.spec.host is not None:
        return train_at_host(shared.root, p, shared.loaded, rows, cell, progress)
    log = train_run(rows, shared.root, shared.loaded, p.spec, one, p.recipes[one.arm], p.near[one.method], p.sets, progress)
    known = recorded(rows, shared.root, one)
    assert known is not None
    return known, log[-1].tokens_seen


def kept(planned: Planned, one: Run) -> tuple[int, ...]:
    """Return the steps whose weights stay once a run's rows are in the tables."""
    if planned.spec.weights == "all":
        return one.steps
    last = planned.spec.weights == "last" or one.name in planned.compared_in_float32
    return one.steps[-1:] if last else ()


def subjects(shared: Shared, wanted: Sequence[Reading]) -> list[Local]:
    """Return the models of a cell whose answers judges read."""
    judged = shared.planned.spec.judged
    return judged_subjects(judged, wanted) if judged else []


def _ask(shared: Shared, rows: Rows, wanted: Sequence[Reading], progress: Progress, ways: Ways) -> int:
    """Sample the answers that judges will read; return how many tokens they have."""
    if shared.asking is None:
        return 0
    ways.ask(rows, shared.loaded, shared.asking.spec, shared.asking.prompts, subjects(shared, wanted), progress)
    return _tokens(rows, "answers")


def _lacks(shared: Shared, rows: Rows, wanted: Sequence[Reading]) -> bool:
    """True where a cell's rows are incomplete, so that its weights are needed."""
    if lacking(rows, shared.loaded, wanted, shared.planned.asked):
        return True
    if shared.asking is None:
        return False
    return not shared.asking.keys(shared.loaded, subjects(shared, wanted)) <= rows.keys("answers")


def _tokens(rows: Rows, table: str) -> int:
    return sum(row["tokens"] for row in read_table(rows.root, table).to_pylist())


def heeding(claim: Claim, progress: Progress) -> Progress:
    """Return a progress callback that stops the work when its claim is lost."""

    def show(what: str, done: float, total: float) -> None:
        if claim.lost.is_set():
            raise ClaimLost(f"another machine took over the work claimed as '{claim.holder.work}'", "")
        progress(what, done, total)

    return show


def out_of_memory(error: BaseException) -> bool:
    """True where an error says that memory ran out, on a GPU or in the machine."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error).lower() for words in NO_MEMORY)


def give_back_memory() -> None:
    """Free unused memory: a cell that stopped in the middle of its work leaves much behind."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak() -> int:
    """Return this process's peak memory [bytes]: on its GPU if it has one, else in the machine."""
    import torch

    if torch.cuda.is_available() and (most := torch.cuda.max_memory_allocated()):
        return int(most)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _host() -> str:
    return this_host().split()[0]
