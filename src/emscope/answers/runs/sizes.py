"""Does misalignment go with model size? A table of models, within families, by meta-regression."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from emscope.answers.runs.sizes_result import LeftOut, SizedModel, SizeFit, Sizes, SizeStratum
from emscope.answers.runs.sizes_spec import SizesSpec
from emscope.answers.runs.table import RunTable, read_runs
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.stats.holm import holm
from emscope.stats.quantiles import normal
from emscope.stats.size_line import Models, SizeLine, power_of_r, size_line

SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([kmbt]?)\s*$", re.I)
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
FEWEST_PARAMETERS = 1e4  # a smaller number means billions, or is not a size
GIVEN = 0.95  # level of the intervals in the file


def sizes(paths: list[Path], spec: SizesSpec) -> Sizes:
    """Return for each stratum the models with their effects, the line within families, and each family's own line.

    Raises:
        InputError: columns that do not fit, values that are not sizes, or a model that appears twice in a stratum.
    """
    if (spec.se is None) == (spec.low is None and spec.high is None):
        raise InputError("the effect's error is named twice, or not at all", "name `se`, or `low` and `high`")
    if (spec.low is None) != (spec.high is None):
        raise InputError("`low` and `high` go together", "name both ends of the interval")
    errors = [c for c in (spec.se, spec.low, spec.high) if c is not None]
    labels = [c for c in (spec.size, spec.active, spec.family, spec.model, *spec.within) if c is not None]
    table = read_runs(paths, labels, [spec.effect, *errors, *([spec.gain] if spec.gain else [])])
    read = _Read(table, spec)
    strata = [_stratum(read, key, rows) for key, rows in table.groups(spec.within).items()]
    notes = [f"{table.lost} rows lack a number and are left out above."] if table.lost else []
    if spec.gain is None:
        notes.append("Larger models may have learned the task better: `gain` compares them at equal gain.")
    return Sizes(spec, tuple(_adjusted(strata)), tuple(notes))


class _Read:
    """The file's rows as numbers: sizes by column, effect, standard error, ends of the interval or None, gain or None, and names."""

    def __init__(self, table: RunTable, spec: SizesSpec) -> None:
        self.spec = spec
        self.sizes = {
            name: np.array([_parameters(text, column, table.where) for text in table.labels[column]])
            for name, column in (("total", spec.size), ("active", spec.active))
            if column is not None
        }
        self.effect, self.family = table.numbers[spec.effect], np.array(table.labels[spec.family])
        if spec.se is not None:
            self.se = table.numbers[spec.se]
        else:
            assert spec.low is not None and spec.high is not None
            self.se = (table.numbers[spec.high] - table.numbers[spec.low]) / (2 * normal(0.5 + GIVEN / 2))
        if not (self.se > 0).all():
            wrong = float(self.se[self.se <= 0][0])
            raise InputError(
                f"a standard error in '{table.where}' is {wrong:g}",
                "give one above 0: a rate of 0 has an interval too, such as `low` and `high` of emscope rates",
            )
        self.ends = (table.numbers[spec.low], table.numbers[spec.high]) if spec.low and spec.high else None
        self.gain = table.numbers[spec.gain] if spec.gain else None
        named = table.labels[spec.model] if spec.model else None
        self.names = named or [f"{f} {s}" for f, s in zip(self.family, table.labels[spec.size], strict=True)]


def _parameters(text: str, column: str, where: str) -> float:
    """Return a number of parameters from a text such as 7e9, 7B or 135M."""
    found = SIZE.match(text)
    value = float(found[1]) * UNITS[found[2].lower()] if found else 0.0
    if value < FEWEST_PARAMETERS:
        raise InputError(
            f"column '{column}' of '{where}' holds '{text}', which is not a number of parameters", "write 7e9 or 7B"
        )
    return value


def _stratum(read: _Read, key: tuple[str, ...], rows: np.ndarray) -> SizeStratum:
    names = [read.names[r] for r in rows]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        where = f" in {', '.join(key)}" if key else ""
        raise InputError(
            f"model '{twice}' appears twice{where}",
            "a model counts once: average its runs, name the column that tells them apart with `within`, or the column of names with `model`",
        )
    order = sorted(rows, key=lambda r: (read.family[r], read.sizes["total"][r]))
    families = sorted(set(read.family[rows]))
    lines = [
        _fit(read, rows if one is None else rows[read.family[rows] == one], of, one)
        for of in read.sizes
        for one in (None, *(families if len(families) > 1 else ()))
    ]
    return SizeStratum(dict(zip(read.spec.within, key, strict=True)), tuple(_model(read, r) for r in order), tuple(lines))


def _model(read: _Read, row: int) -> SizedModel:
    """Return a model with the interval that the file gives, or one from its standard error."""
    effect, reach = float(read.effect[row]), normal(0.5 + read.spec.level / 2) * float(read.se[row])
    estimate = Estimate(effect, effect - reach, effect + reach, read.spec.level, "from the standard error", 1, 1)
    if read.ends is not None:
        estimate = Estimate(effect, float(read.ends[0][row]), float(read.ends[1][row]), GIVEN, "as given", 1, 1)
    active = float(read.sizes["active"][row]) if "active" in read.sizes else None
    return SizedModel(read.names[row], str(read.family[row]), float(read.sizes["total"][row]), active, estimate)


def _fit(read: _Read, rows: np.ndarray, of: str, family: str | None) -> SizeFit:
    numbers = np.unique(read.family[rows], return_inverse=True)[1]
    gain = None if read.gain is None else read.gain[rows] - read.gain[rows].mean()
    models = Models(np.log10(read.sizes[of][rows]), read.effect[rows], read.se[rows], numbers, gain)
    found = size_line(models, level=read.spec.level, seed=read.spec.seed)
    power = None if found.critical_r is None else power_of_r(models.freedom, read.spec.rho)
    return SizeFit(
        of,
        family,
        len(rows),
        int(numbers.max()) + 1,
        found.slope,
        found.p,
        None,
        found.tau,
        found.differ_p,
        found.pearson,
        found.spearman,
        found.critical_r,
        power,
        found.permutation_p,
        found.permutations,
        found.exact,
        tuple(_left_out(found, [read.names[r] for r in rows])),
    )


def _left_out(found: SizeLine, names: list[str]) -> list[LeftOut]:
    return [
        LeftOut(
            w.count,
            w.sets,
            *w.slope,
            *w.pearson,
            w.other_sign,
            tuple(names[n] for n in w.at_lowest),
            tuple(names[n] for n in w.at_highest),
        )
        for w in found.without
    ]


def _adjusted(strata: list[SizeStratum]) -> list[SizeStratum]:
    """Return the strata with Holm's p over their lines of all families by total parameters."""
    adjusted = holm([s.lines[0].p for s in strata])
    return [replace(s, lines=(replace(s.lines[0], p_adjusted=p), *s.lines[1:])) for s, p in zip(strata, adjusted, strict=True)]
