"""The training log of checkpoints that others trained: what they carry, or a tracker's export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.plain import finite
from emscope.data.tables import rows

STATE = "trainer_state.json"
STEPS = (
    "train/global_step",
    "trainer/global_step",
    "global_step",
    "step",
    "_step",
)  # of a tracker's column, the most certain first
NEITHER = "give trainer_state.json, or a .csv with a column of steps and one of the training loss"


@dataclass(frozen=True, slots=True)
class Logged:
    """A log's entry for one optimiser step; None where it has no value. Losses in nats per token, from the trainer."""

    step: int
    loss: float | None
    heldout_loss: float | None = None
    grad_norm: float | None = None


def training_log(file: Path | None, folders: Sequence[Path]) -> list[Logged]:
    """Return the training log in the order of its steps: of a file where one is given, else what the last checkpoint carries.

    Args:
        file: trainer_state.json, or a CSV that Weights & Biases or TensorBoard exported. folders: of the checkpoints, the last one last.

    Raises:
        InputError: a file that cannot be read, or in which steps or losses are not found.
    """
    if file is None:
        carried = folders[-1] / STATE if folders else None
        return _of_state(carried, required=False) if carried is not None and carried.is_file() else []
    return _of_state(file, required=True) if file.suffix == ".json" else _of_csv(file)


def losses_at(log: Iterable[Logged], steps: Sequence[int]) -> dict[int, float]:
    """Return the training loss at each step: the last one logged at or before it, and after the previous step."""
    known = {one.step: one.loss for one in log if one.loss is not None}
    found = {}
    for before, step in zip((-1, *steps), steps, strict=False):
        near = [s for s in known if before < s <= step]
        if near:
            found[step] = known[max(near)]
    return found


def _of_state(path: Path, *, required: bool) -> list[Logged]:
    """Return the log of a trainer's state; [] where it is damaged and was not asked for."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        merged: dict[int, dict[str, object]] = {}
        for entry in entries:
            merged.setdefault(int(entry["step"]), {}).update(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if required:
            raise InputError(f"'{path}' has no readable log_history ({type(error).__name__})", NEITHER) from None
        return []
    names = ("loss", "eval_loss", "grad_norm")
    return [Logged(step, *(finite(of.get(name)) for name in names)) for step, of in sorted(merged.items())]


def _of_csv(path: Path) -> list[Logged]:
    table = [row for _, row in rows(path)]
    columns = list(table[0])
    by_name = {str(column).lower().strip(): column for column in columns}
    step = next((by_name[name] for name in STEPS if name in by_name), None)
    if step is None:
        raise InputError(f"'{path}' has no column of steps (its columns: {', '.join(map(str, columns[:8]))})", NEITHER)
    loss = _loss_column(path, columns)
    found = {
        int(at): value
        for row in table
        if (at := finite(row.get(step))) is not None and (value := finite(row.get(loss))) is not None
    }
    if not found:
        raise InputError(f"'{path}' has no row with a number in both '{step}' and '{loss}'", NEITHER)
    return [Logged(at, value) for at, value in sorted(found.items())]


def _loss_column(path: Path, columns: Sequence[str]) -> str:
    """Return the column of the training loss: TensorBoard's Value, or the only training column whose name ends in loss."""
    if "Value" in columns:
        return "Value"
    named = [
        c
        for c in columns
        if str(c).lower().endswith("loss") and not any(w in str(c).lower() for w in ("eval", "valid", "test"))
    ]
    if len(named) != 1:
        said = f"{len(named)} training-loss columns ({', '.join(named[:4])})" if named else "no training-loss column"
        raise InputError(f"'{path}' has {said}", "export only this run's column")
    return named[0]


def as_rows(log: Iterable[Logged], run: str) -> list[Mapping[str, object]]:
    """Return the log as rows of the table `train_log`; steps without a training loss are left out."""
    return [
        {
            "key": f"{run}-{one.step}",
            "run": run,
            "step": one.step,
            "loss": one.loss,
            "heldout_loss": one.heldout_loss,
            "grad_norm": one.grad_norm,
        }
        for one in log
        if one.loss is not None
    ]
