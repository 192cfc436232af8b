"""Cells of a study whose base is at a host: trained, read and asked there; the rows are the same as for cells done here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from emscope.answers.sample_hosted import asking_at
from emscope.core.digest import short
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import Hosted, HostedCheckpoint, HostedRun, Spent, hosted_base, hosted_checkpoints
from emscope.models.remote.metering import Meter
from emscope.models.remote.tinker import Tinker
from emscope.store.cells import record_of
from emscope.store.rows import Rows
from emscope.study.cells.planning import Planned
from emscope.study.opening import Ways
from emscope.study.reading.hosted import measuring_at
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run
from emscope.study.training.recipes import Row
from emscope.study.training.training import run_row
from emscope.train.hosted import finetune_hosted


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
def ways_of(root: Path, planned: Planned, trained: int = 0) -> Iterator[Ways]:
    """Yield how a cell of a study is read and asked: here, or in a session at its host.

    Args:
        trained: the tokens that this cell was trained on, which count against the study's budget too.
    """
    host = planned.spec.host
    if host is None:
        yield Ways()
        return
    before = spent_on(root, planned) + Spent(trained=trained)
    meter = Meter(host.prices, host.max_cost, before)
    with Tinker(meter) as tinker:
        yield Ways(measuring_at(tinker), asking_at(tinker), here=False, charged=lambda: meter.spent - before)


def train_at_host(
    root: Path, planned: Planned, loaded: Loaded, rows: Rows, one: Run, progress: Progress
) -> tuple[dict[int, Checkpoint], int]:
    """Train a run at a host, write what was read from it, and return its checkpoints and the tokens trained on.

    Raises:
        InputError, WorldError: as `finetune_hosted`.
    """
    host, recipe, folder = planned.spec.host, planned.recipes[one.arm], root / "runs" / one.name
    assert host is not None and isinstance(loaded, Hosted)

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
        elsewhere=spent_on(root, planned),
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


def spent_on(root: Path, planned: Planned) -> Spent:
    """Return what the finished cells of a study have cost at its host."""
    found = Spent()
    for cell in planned.cells:
        record = record_of(root, cell.key)
        if record is not None:
            tokens = record.tokens
            found += Spent(tokens.get("trained", 0), tokens.get("read", 0), tokens.get("sampled", 0))
    return found


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
