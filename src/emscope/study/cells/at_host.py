"""Cells of a study whose base is at a host: trained, read and asked there; the rows are the same as for cells done here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from emscope.answers.sample_hosted import asking_at
from emscope.core.digest import short
from emscope.core.plain import JsonObject, from_json, read_json
from emscope.core.progress import Progress
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import (
    Hosted,
    HostedCheckpoint,
    HostedRun,
    Spent,
    hosted_base,
    hosted_checkpoints,
    read_hosted,
)
from emscope.models.remote.metering import Meter
from emscope.models.remote.tinker import Tinker
from emscope.store.cells import WORK, record_of
from emscope.store.files import write_json
from emscope.store.rows import Rows
from emscope.study.cells.planning import Cell, Planned
from emscope.study.opening import Ways
from emscope.study.reading.hosted import measuring_at
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run
from emscope.study.training.recipes import Row
from emscope.study.training.training import run_row
from emscope.train.hosted import finetune_hosted

SPENT = "spent.json"  # beside the rows of a cell's work
AGAIN = "delete it; what it counted is then no longer part of max_cost"


def base_at_host(spec: StudySpec, host: HostSpec, *, contact: bool = True) -> Hosted:
    """Return the base of a study at a host, ready to be asked.

    Args:
        contact: ask the host whether it has the base, and for the longest sequence; without that, any length is accepted.

    Raises:
        InputError, WorldError: no key, no such base, no tokenizer, or no answer.
    """
    context = None
    if contact:
        with Tinker(Meter()) as tinker:
            context = tinker.context_of(spec.model)
    tokenizer = host.tokenizer or spec.model
    return hosted_base(host.name, spec.model, tokenizer, system=spec.system, chat_kwargs=spec.chat_kwargs, context=context)


@contextmanager
def ways_of(root: Path, planned: Planned, cell: Cell) -> Iterator[Ways]:
    """Yield how a cell of a study is read and asked: here, or in a session at its host.

    What a session was charged is kept beside the cell's rows, so that it counts after a kill, and for other workers.
    """
    host = planned.spec.host
    if host is None:
        yield Ways()
        return
    file, others, own = root / WORK / cell.key / SPENT, spent_on(root, planned, but=cell), spent_so_far(root, cell)
    trained = Spent(trained=own.trained)
    meter = Meter(
        host.prices, host.max_cost, others + own, lambda spent: write_json(file, (spent - others - trained).to_json())
    )
    try:
        with Tinker(meter) as tinker:
            yield Ways(measuring_at(tinker), asking_at(tinker), here=False, charged=lambda: meter.spent - others)
    finally:
        write_json(file, (meter.spent - others - trained).to_json())


def train_at_host(
    root: Path, planned: Planned, loaded: Loaded, rows: Rows, cell: Cell, progress: Progress
) -> tuple[dict[int, Checkpoint], int]:
    """Train a run at a host, write what was read from it, and return its checkpoints and the tokens trained on.

    Raises:
        InputError, WorldError: as `finetune_hosted`.
    """
    host, one = planned.spec.host, cell.run
    assert host is not None and one is not None and isinstance(loaded, Hosted)
    recipe, folder = planned.recipes[one.arm], root / "runs" / one.name

    def told(_: str, done: float, total: float) -> None:
        progress(f"training {one.name}", done, total)

    run = finetune_hosted(
        loaded,
        [r.conversation for r in recipe],
        one.train,
        host,
        folder,
        seed=one.seed,
        settings=short(one.train.deciding()),
        tokenizer=host.tokenizer or planned.spec.model,
        parts=parts_to_spread(recipe, one),
        elsewhere=spent_on(root, planned, but=cell),
        progress=told,
    )
    checkpoints = hosted_checkpoints(folder, run)
    rows.append("runs", [run_row(loaded, one)])
    rows.append("train_log", [{"key": short([one.name, r.step]), "run": one.name, **asdict(r)} for r in run.log])
    rows.append("checkpoints", [_checkpoint_row(one, c, run) for c in checkpoints])
    return {c.step: c for c in checkpoints}, run.spent.trained


def parts_to_spread(recipe: Sequence[Row], one: Run) -> list[int] | None:
    """Return the part that each conversation of a run belongs to, where parts are to be spread evenly over training."""
    return [r.part for r in recipe] if one.spec.interleave else None


def spent_on(root: Path, planned: Planned, but: Cell | None = None) -> Spent:
    """Return what the cells of a study have cost at its host so far, without one of them."""
    found = Spent()
    for cell in planned.cells:
        record = record_of(root, cell.key)
        if cell == but:
            continue
        if record is None:
            found += spent_so_far(root, cell)
        else:
            tokens = record.tokens
            found += Spent(tokens.get("trained", 0), tokens.get("read", 0), tokens.get("sampled", 0))
    return found


def spent_so_far(root: Path, cell: Cell) -> Spent:
    """Return what a cell that has not ended has cost at its host: its training, and the sessions that read and asked it.

    Raises:
        InputError: the record of its training is damaged.
    """
    run = read_hosted(root / "runs" / cell.run.name) if cell.run else None
    return spent_in(root / WORK / cell.key / SPENT) + Spent(trained=run.spent.trained if run else 0)


def spent_in(file: Path) -> Spent:
    """Return what a file says that sessions were charged; nothing where there is none.

    Raises:
        InputError: it is damaged.
    """
    return from_json(Spent, read_json(file, AGAIN), str(file), AGAIN) if file.is_file() else Spent()


def _checkpoint_row(one: Run, checkpoint: HostedCheckpoint, run: HostedRun) -> JsonObject:
    read = next(r for r in run.log if r.step == checkpoint.step)
    return {
        "key": short([one.name, checkpoint.step]),
        "run": one.name,
        "arm": one.arm,
        "seed": one.seed,
        "step": checkpoint.step,
        "adapter_digest": checkpoint.digest,
        "tokens_seen": read.tokens_seen,
        "loss_train": read.loss,
        "loss_heldout": None,
        "grad_norm": read.grad_norm,
        "update_norm": None,
    }
