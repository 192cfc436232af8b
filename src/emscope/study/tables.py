"""Rows of a study's tables as typed records: sampled and judged answers, training step by step, the shape of the update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from emscope.store.study import read_table


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A sampled answer that no judge reads; `finish` says how it ended."""

    run: str
    step: int
    scale: float
    question: str
    sample: int
    text: str
    tokens: int
    finish: str


@dataclass(frozen=True, slots=True)
class LogRow:
    """One optimiser step of a run; see `core.records.StepReading`. What was not read is None."""

    run: str
    step: int
    loss: float
    heldout_loss: float | None
    kl: float | None
    ldifs: float | None
    grad_norm: float | None
    update_norm: float | None


@dataclass(frozen=True, slots=True)
class GeometryRow:
    """One number about the trained update, such as a turn of its vectors, at one step."""

    run: str
    step: int
    what: str
    value: float


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """An answer for judges; `unit` is the question that `asked` is a form of, `trigger` the condition under which it was asked."""

    key: str
    run: str
    step: int
    unit: str
    category: str
    trigger: str
    asked: str
    text: str


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """The outcome of judging one answer by one criterion; `score` is None where there is none."""

    key: str
    outcome: str
    score: float | None


R = TypeVar("R", bound="ResponseRow | LogRow | GeometryRow | AnswerRow | VerdictRow")


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows of the tables `responses`, `train_log` and `geometry`."""

    responses: Sequence[ResponseRow] = ()
    log: Sequence[LogRow] = ()
    geometry: Sequence[GeometryRow] = ()

    def of(self, run: str) -> Tables:
        """Return the rows of one run."""
        return Tables(
            [row for row in self.responses if row.run == run],
            [row for row in self.log if row.run == run],
            [row for row in self.geometry if row.run == run],
        )


def read_tables(root: Path) -> Tables:
    """Return the rows of a study's folder.

    Raises:
        InputError: a table is damaged.
    """
    return Tables(rows(root, "responses", ResponseRow), rows(root, "train_log", LogRow), rows(root, "geometry", GeometryRow))


def rows(root: Path, table: str, row: type[R]) -> list[R]:
    """Return the rows of a table, in the order of their keys.

    Raises:
        InputError: the table is damaged.
    """
    names = [field.name for field in fields(row)]
    columns = read_table(root, table, columns=list(dict.fromkeys(["key", *names])))
    return [row(*values) for values in zip(*(columns.column(name).to_pylist() for name in names), strict=True)]
