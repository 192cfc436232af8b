"""A file with one row per run: labels and numbers; rows without a number are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable

SMALLEST, LARGEST = 1e-100, 1e100  # of a column's largest number: squares of others overflow or underflow


@dataclass(frozen=True, slots=True)
class RunTable:
    """Rows of which every number is known.

    Attributes:
        labels: texts by column, numbers: values by column [N]. lost: rows of the file that lack a number. where: the file, for messages.
    """

    labels: dict[str, list[str]]
    numbers: dict[str, np.ndarray]
    lost: int
    where: str

    def __len__(self) -> int:
        return len(next(iter(self.numbers.values())))

    def groups(self, columns: Sequence[str]) -> dict[tuple[str, ...], np.ndarray]:
        """Return the rows [n] of each combination of the labels in these columns, in order."""
        keys = list(zip(*(self.labels[c] for c in columns), strict=True)) if columns else [()] * len(self)
        found: dict[tuple[str, ...], list[int]] = {}
        for row, key in enumerate(keys):
            found.setdefault(key, []).append(row)
        return {key: np.array(found[key]) for key in sorted(found)}


def read_runs(paths: Sequence[Path], labels: Sequence[str], numbers: Sequence[str]) -> RunTable:
    """Read the columns of a file of runs; an empty label is a label.

    Raises:
        InputError: a column that is not there, or in which no row with the others has a number.
    """
    names, values = list(dict.fromkeys(labels)), list(dict.fromkeys(numbers))
    with AnswerTable(paths) as table:
        table.named(*names, *values)
        rows, where = table.values(names, values), table.where
    for n, name in enumerate(values):
        if all(row[len(names) + n] is None for row in rows):
            raise InputError(f"column '{name}' of '{where}' holds no number", "name a column of numbers")
    for n, name in enumerate(values):
        found = [abs(row[len(names) + n]) for row in rows if row[len(names) + n] is not None]
        if not SMALLEST < max(found) < LARGEST and max(found) > 0:
            raise InputError(f"column '{name}' of '{where}' reaches {max(found):g}", "give it in another unit")
    kept = [row for row in rows if None not in row[len(names) :]]
    if not kept:
        raise InputError(
            f"no row of '{where}' has all of the numbers ({', '.join(values)})", "give a file whose rows have them"
        )
    return RunTable(
        {name: ["" if row[n] is None else str(row[n]) for row in kept] for n, name in enumerate(names)},
        {name: np.array([row[len(names) + n] for row in kept], float) for n, name in enumerate(values)},
        len(rows) - len(kept),
        where,
    )
