"""The trainings of a study, and their rows in its tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import Model
from emscope.models.remote.hosted import Hosted
from emscope.store.cells import clear
from emscope.store.rows import Rows, read_table
from emscope.study.arm_spec import ArmSpec
from emscope.study.reading.sets import ItemSets
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run, checkpoint, taught
from emscope.study.training.recipes import Row
from emscope.train import processes
from emscope.train.finetune import check_finetune, finetune, finished_geometry, finished_readings
from emscope.train.folders import drop_checkpoints, drop_training_state
from emscope.train.hosted import check_hosted

if TYPE_CHECKING:
    from emscope.models.types import CausalLM


def faults_of_runs(
    loaded: Loaded, runs: Sequence[Run], recipes: Mapping[str, Sequence[Row]], near: Mapping[str, Sequence[Conversation]]
) -> Iterator[InputError]:
    """Yield why runs cannot be trained, each way of training once, naming the method."""
    for one in {r.way: r for r in runs}.values():
        try:
            conversations = [r.conversation for r in recipes[one.arm]]
            if isinstance(loaded, Hosted):
                check_hosted(one.train, loaded, conversations)
            else:
                check_finetune(loaded, conversations, one.train, near[one.method])
        except InputError as error:
            where = f"method '{one.method}': " if one.method else ""
            yield InputError(f"{where}{error.fault}", error.remedy)


def train_run(
    rows: Rows,
    root: Path,
    loaded: Loaded,
    spec: StudySpec,
    one: Run,
    recipe: Sequence[Row],
    near: Sequence[Conversation],
    sets: ItemSets,
    progress: Progress,
) -> list[StepReading]:
    """Train one run in the study folder `root`, record its readings, and return them; nothing is trained if all its weights are there.

    If lost weights come out differently this time, as on another machine, the run's rows start afresh.

    Raises:
        InputError: a checkpoint has changed since its row was written.
    """
    folder, there = root / "runs" / one.name, all_there(root, one)
    log = finished_readings(folder, one.train)
    if there:
        drop_training_state(folder, one.steps)
    else:
        if log:
            drop_weights(root, one, ())  # the last one alone would look complete
        heldout = _heldout_loss(loaded, spec, sets, one.spec) if one.train.heldout_every else None
        log = finetune_run(root, loaded, one, recipe, near, heldout, progress)
    fresh = [_checkpoint_row(root, one, step, log) for step in one.steps]
    other = _other_than_recorded(rows, fresh)
    if other is not None and there:
        raise InputError(
            f"checkpoint {other['step']} of run '{one.name}' in '{root}' is not the one that was trained there",
            "put the right one back, or choose a new folder with `out`",
        )
    if other is not None:
        clear(rows)
    rows.append("runs", [run_row(loaded, one)])
    rows.append("train_log", [{"key": short([one.name, r.step]), "run": one.name, **asdict(r)} for r in log])
    shape = finished_geometry(folder, one.train)
    rows.append(
        "geometry", [{"key": short([one.name, r["step"], r["module"], r["what"]]), "run": one.name, **r} for r in shape]
    )
    rows.append("checkpoints", fresh)
    return log


def all_there(root: Path, one: Run) -> bool:
    """True where the weights of every planned step of a finished run are there."""
    folder = root / "runs" / one.name
    return bool(finished_readings(folder, one.train)) and all((folder / f"checkpoint-{step}").is_dir() for step in one.steps)


def recorded(rows: Rows, root: Path, one: Run) -> dict[int, Checkpoint] | None:
    """Return a run's checkpoints by step from its rows, whether or not their weights are there; None where a row is missing."""
    found = recorded_in(rows.root, [one], root)[one.name]
    logged = read_table(rows.root, "train_log", columns=["key", "run"]).column("run").to_pylist().count(one.name)
    return found if set(one.steps) <= found.keys() and logged >= one.train.steps else None


def recorded_in(folder: Path, runs: Sequence[Run], root: Path | None = None) -> dict[str, dict[int, Checkpoint]]:
    """Return runs' checkpoints by name and step, from the tables in a folder.

    Args:
        root: the study's folder, where the weights are or were; by default `folder`.
    """
    found: dict[str, dict[int, Checkpoint]] = {one.name: {} for one in runs}
    for row in read_table(folder, "checkpoints").to_pylist():
        if row["run"] in found:
            place = (root or folder) / "runs" / row["run"] / f"checkpoint-{row['step']}"
            found[row["run"]][row["step"]] = Checkpoint(row["step"], place, "", None, row["adapter_digest"])
    return found


def drop_weights(root: Path, one: Run, kept: Collection[int]) -> None:
    """Delete a run's checkpoints except those at the steps `kept`."""
    drop_checkpoints(root / "runs" / one.name, [step for step in one.steps if step not in kept])


def _other_than_recorded(rows: Rows, fresh: Sequence[JsonObject]) -> JsonObject | None:
    """Return the first checkpoint that has changed since its row was written."""
    before = {row["key"]: row["adapter_digest"] for row in read_table(rows.root, "checkpoints").to_pylist()}
    return next((row for row in fresh if before.get(row["key"], row["adapter_digest"]) != row["adapter_digest"]), None)


def _heldout_loss(loaded: Loaded, spec: StudySpec, sets: ItemSets, a: ArmSpec) -> Callable[[CausalLM], float] | None:
    """Return model -> loss on the held-out answers of the kind this arm is taught [nats per token]."""
    if not a.task or not sets.heldout:
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


def run_row(loaded: Loaded, one: Run) -> JsonObject:
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


def _checkpoint_row(root: Path, one: Run, step: int, log: list[StepReading]) -> JsonObject:
    read = next(r for r in log if r.step == step)
    found = checkpoint(root, one, step)
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
    spec: StudySpec, base: Model, out: Path, recipes: Mapping[str, Sequence[Row]], near: Mapping[str, Sequence[Conversation]]
) -> None:
    """Take this process's part of each training that the first process begins."""
    runs: list[Run] = processes.from_first(list)
    loaded = load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs) if runs else None
    for one in runs:
        assert loaded is not None
        with suppress(Diverged):
            finetune_run(out, loaded, one, recipes[one.arm], near[one.method])


def finetune_run(
    out: Path,
    loaded: Loaded,
    one: Run,
    rows: Sequence[Row],
    near: Sequence[Conversation],
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
