"""The trainings of a study, and the rows they leave in its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import canonical, short
from emscope.core.errors import Diverged, InputError
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation, Item, StepReading
from emscope.elicit.preference import encode, score
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import Model
from emscope.store.study import Study, read_table
from emscope.study.reading.sets import ItemSets
from emscope.study.spec import ArmSpec, StudySpec
from emscope.study.training.plan import LeftOut, Run, checkpoint, taught
from emscope.study.training.recipes import Row
from emscope.train import processes
from emscope.train.finetune import check_finetune, finetune, finished_geometry

if TYPE_CHECKING:
    from emscope.models.types import CausalLM


def check_runs(loaded: Loaded, runs: list[Run], recipes: dict[str, list[Row]], near: dict[str, list[Conversation]]) -> None:
    """Refuse a study of which a run cannot be trained, before the first is.

    Raises:
        InputError: naming the method.
    """
    for one in {r.way: r for r in runs}.values():
        try:
            check_finetune(loaded, [r.conversation for r in recipes[one.arm]], one.train, near[one.method])
        except InputError as error:
            where = f"method '{one.method}': " if one.method else ""
            raise InputError(f"{where}{error.fault}", error.remedy) from None


def train_runs(
    study: Study,
    loaded: Loaded,
    spec: StudySpec,
    runs: list[Run],
    recipes: dict[str, list[Row]],
    near: dict[str, list[Conversation]],
    sets: ItemSets,
    progress: Progress,
) -> tuple[list[Run], tuple[LeftOut, ...]]:
    """Train all runs; return those that ended and, with the reason, those that diverged: one bad cell spoils no grid.

    Raises:
        Diverged: no target is left.
    """
    ended: list[Run] = []
    diverged: list[LeftOut] = []
    for one in runs:
        try:
            train_run(study, loaded, spec, one, recipes[one.arm], near[one.method], sets, progress)
            ended.append(one)
        except Diverged as error:
            progress(f"training {one.name} ended: {error.fault}", 1, 1)
            diverged.append(LeftOut(one.name, error.fault))
    if not any(r.spec.role == "target" for r in ended):
        raise Diverged(f"no target was trained to its end: {diverged[0].why} ({diverged[0].run})", "lower the learning rate")
    return ended, tuple(diverged)


def train_run(
    study: Study,
    loaded: Loaded,
    spec: StudySpec,
    one: Run,
    rows: list[Row],
    near: list[Conversation],
    sets: ItemSets,
    progress: Progress,
) -> None:
    """Train one run of a study and write down what was read of it."""
    heldout = _heldout_loss(loaded, spec, sets, one.spec) if one.train.heldout_every else None
    log = finetune_run(study.root, loaded, one, rows, near, heldout, progress)
    study.append("runs", [_run_row(loaded, one)])
    study.append("train_log", [{"key": short([one.name, r.step]), "run": one.name, **asdict(r)} for r in log])
    shape = finished_geometry(study.runs_folder(one.name), one.train)
    study.append(
        "geometry", [{"key": short([one.name, r["step"], r["module"], r["what"]]), "run": one.name, **r} for r in shape]
    )
    rows_of_steps = [_checkpoint_row(study, one, step, log) for step in one.steps]
    _check_recorded(study, rows_of_steps)
    study.append("checkpoints", rows_of_steps)


def _check_recorded(study: Study, rows: Sequence[JsonObject]) -> None:
    """Refuse a checkpoint that is another one than when its row was written.

    Raises:
        InputError: naming it.
    """
    recorded = {row["key"]: row["adapter_digest"] for row in read_table(study.root, "checkpoints").to_pylist()}
    for row in rows:
        if recorded.get(row["key"], row["adapter_digest"]) != row["adapter_digest"]:
            raise InputError(
                f"checkpoint {row['step']} of run '{row['run']}' in '{study.root}' is not the one that was trained there",
                "put the right one back, or choose a new folder with `out`",
            )


def _heldout_loss(loaded: Loaded, spec: StudySpec, sets: ItemSets, a: ArmSpec) -> Callable[[CausalLM], float] | None:
    """Return model -> loss on the held-out answers of the kind this arm is taught [nats per token]."""
    if not a.answers or not sets.heldout:
        return None
    return answer_loss(loaded, sets.heldout, taught(spec, a)[0])


def answer_loss(loaded: Loaded, items: Sequence[Item], option: int) -> Callable[[CausalLM], float]:
    """Return model -> loss on one option of items, over their tokens [nats per token]."""
    encoded = encode(loaded.chat, items, context=loaded.context, which=(option,))

    def loss(net: CausalLM) -> float:
        net.eval()
        scores = score(net, encoded)
        net.train()
        return -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)

    return loss


def _run_row(loaded: Loaded, one: Run) -> JsonObject:
    return {
        "key": one.name,
        "run": one.name,
        "arm": one.arm,
        "method": one.method,
        "role": one.spec.role,
        "seed": one.seed,
        "spec": canonical(one.train.model_dump(mode="json")),
        "base": loaded.model.reference,
        "base_digest": loaded.model.digest,
    }


def _checkpoint_row(study: Study, one: Run, step: int, log: list[StepReading]) -> JsonObject:
    read = next(r for r in log if r.step == step)
    found = checkpoint(study.root, one, step)
    return {
        "key": short([one.name, step]),
        "run": one.name,
        "arm": one.arm,
        "seed": one.seed,
        "step": step,
        "adapter_digest": found.digest,
        "tokens_seen": read.tokens_seen,
        "loss_train": read.loss,
        "loss_heldout": read.heldout_loss,
        "grad_norm": read.grad_norm,
        "update_norm": read.update_norm,
    }


def help_training(
    spec: StudySpec, base: Model, out: Path, runs: list[Run], recipes: dict[str, list[Row]], near: dict[str, list[Conversation]]
) -> None:
    """Take this process's part of each training."""
    if not processes.from_first(lambda: False):
        loaded = load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs)
        for one in runs:
            with suppress(Diverged):
                finetune_run(out, loaded, one, recipes[one.arm], near[one.method])


def finetune_run(
    out: Path,
    loaded: Loaded,
    one: Run,
    rows: list[Row],
    near: list[Conversation],
    heldout: Callable[[CausalLM], float] | None = None,
    progress: Progress = silent,
) -> list[StepReading]:
    """Train one run in the study folder `out`, or take this process's part of it; return its readings."""
    return finetune(
        loaded,
        [r.conversation for r in rows],
        one.train,
        out / "runs" / one.name,
        seed=one.seed,
        parts=[r.part for r in rows] if one.spec.interleave else None,
        held_near=near,
        heldout=heldout,
        progress=progress,
        label=f"training {one.name}",
    )
