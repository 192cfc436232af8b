"""Does a lower loss mean lower alignment? Over runs, within strata, and schedules at equal loss."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from emscope.answers.runs.loss_result import AtEqualLoss, LossBetween, Losses, LossPoint, LossStratum, LossWithin
from emscope.answers.runs.loss_spec import LossSpec
from emscope.answers.runs.table import RunTable, read_runs
from emscope.core.errors import InputError
from emscope.stats.holm import holm
from emscope.stats.matched import matched
from emscope.stats.within_strata import FEWEST, combined, mixed, plain_r, together

MOST_LEVELS = 20  # a column with more values is probably not a setting


def loss_and_score(paths: list[Path], spec: LossSpec) -> Losses:
    """Return how the score varies with the loss in each stratum and over strata, what pooling them would say, and schedules at equal loss.

    Raises:
        InputError: no strata are named, or columns that do not fit.
    """
    if spec.loss == spec.score:
        raise InputError(f"`loss` and `score` are both '{spec.loss}'", "name two columns")
    if spec.within and spec.one_stratum:
        raise InputError("`within` and `one_stratum` are both given", "leave out one of them")
    if not spec.within and not spec.one_stratum:
        raise InputError(
            "no strata are named, and a correlation over all rows confounds the loss with differences between models and data sets",
            "name their columns with `within`, such as model,dataset, or say `one_stratum` where all rows are of one model and data set",
        )
    labels = [*spec.within, *([spec.schedule] if spec.schedule else [])]
    table = read_runs(paths, labels, [spec.loss, spec.score])
    x, y = table.numbers[spec.loss], table.numbers[spec.score]
    groups = table.groups(spec.within)
    parts = [(x[rows], y[rows]) for rows in groups.values()]
    found = combined(parts, level=spec.level)
    within = LossWithin(found.strata, found.pearson, found.tau, found.differ_p, found.spearman, found.slope, found.slopes_p)
    return Losses(
        spec,
        len(table),
        strata=tuple(_stratum(table, spec, key, rows) for key, rows in groups.items()),
        within=within,
        between=_between(parts, within) if len(parts) > 1 else None,
        matched=tuple(_at_equal_loss(table, spec, groups)) if spec.schedule else (),
        notes=tuple(_notes(table, spec, parts)),
    )


def _stratum(table: RunTable, spec: LossSpec, key: tuple[str, ...], rows: np.ndarray) -> LossStratum:
    x, y = table.numbers[spec.loss][rows], table.numbers[spec.score][rows]
    found = together(x, y, level=spec.level)
    used = table.labels[spec.schedule] if spec.schedule else None
    points = (LossPoint(float(x[n]), float(y[n]), used[row] if used else None) for n, row in enumerate(rows))
    return LossStratum(
        dict(zip(spec.within, key, strict=True)),
        len(rows),
        found.pearson,
        found.spearman,
        found.slope,
        len(rows) >= FEWEST and found.pearson.value is not None,
        tuple(points),
    )


def _between(parts: list[tuple[np.ndarray, np.ndarray]], within: LossWithin) -> LossBetween:
    found, told = mixed(parts), within.pearson.value
    simpson = found.rows is not None and told is not None and found.rows * told < 0
    return LossBetween(found.rows, found.means, simpson)


def _at_equal_loss(table: RunTable, spec: LossSpec, groups: dict[tuple[str, ...], np.ndarray]) -> list[AtEqualLoss]:
    """Return all pairs of the schedule's values, at equal loss within strata."""
    assert spec.schedule is not None
    used = np.array(table.labels[spec.schedule])
    levels = sorted(set(table.labels[spec.schedule]))
    if not 2 <= len(levels) <= MOST_LEVELS:
        raise InputError(
            f"column '{spec.schedule}' has {len(levels)} different values",
            f"name a setting with 2 to {MOST_LEVELS} of them for `schedule`",
        )
    x, y = table.numbers[spec.loss], table.numbers[spec.score]
    stratum = np.zeros(len(table), int)
    for n, rows in enumerate(groups.values()):
        stratum[rows] = n
    found = []
    for a, b in combinations(levels, 2):
        pair = np.isin(used, (a, b))
        m = matched(x[pair], y[pair], stratum[pair], used[pair] == a, level=spec.level)
        low, high = m.support or (None, None)
        plain = _plain(y[pair], stratum[pair], used[pair] == a)
        found.append(AtEqualLoss(a, b, m.difference, m.p, None, plain, m.left, m.right, low, high, m.curved_p, m.slopes_p))
    adjusted = holm([one.p for one in found])
    return [replace(one, p_adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _plain(y: np.ndarray, stratum: np.ndarray, left: np.ndarray) -> float | None:
    """Return the mean over strata that have both sides of the difference of their means."""
    gaps = [
        float(y[(stratum == k) & left].mean() - y[(stratum == k) & ~left].mean())
        for k in np.unique(stratum)
        if left[stratum == k].any() and not left[stratum == k].all()
    ]
    return float(np.mean(gaps)) if gaps else None


def _notes(table: RunTable, spec: LossSpec, parts: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    notes = []
    if table.lost:
        notes.append(f"{table.lost} of {table.lost + len(table)} rows lack a number and are left out above.")
    small = sum(len(x) < FEWEST for x, _ in parts)
    if small and len(parts) > 1:
        notes.append(f"{small} of {len(parts)} strata have fewer than {FEWEST} runs and are left out of the combined result.")
    still = sum(len(x) >= FEWEST and plain_r(x, y) is None for x, y in parts)
    if still:
        notes.append(f"{still} of {len(parts)} strata have a constant loss or score and show nothing.")
    return notes
