"""Efficiency, stability and significance of general and narrow solutions, from measured losses and divergences. (Soligo et al. 2026)

There are two intervals: over items at these runs ("questions like these"), and over runs ("seeds like these").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypedDict

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.represent.compared import BothSides, BothSidesAndRandom, ByRun, Efficiency, NormForHalf, Significance, Stability
from emscope.stats.means import WELCH, difference_of_means, mean_estimate, ratio_estimate

SIDES = GENERAL, NARROW = "general", "narrow"
TASK, KL = "task", "kl"
BASE, SCALED, MOVED, RANDOM = "base", "scaled", "moved", "random"


class Row(TypedDict):
    """One measured value: a run's fine-tune moved by `amount` of a `kind`, on one item of a set."""

    solution: str
    run: str
    kind: str
    amount: float
    draw: int
    set: str
    item: str
    value: float


class Values:
    """What was read, by side, kind of reading, how much of it, and what was read: of each run, of each item, the mean over draws."""

    def __init__(self, rows: Sequence[Row]) -> None:
        cells: dict[tuple[str, str, float, str], dict[str, dict[str, list[float]]]] = {}
        for row in sorted(rows, key=lambda r: (r["run"], r["draw"], r["item"])):
            cell = cells.setdefault((row["solution"], row["kind"], row["amount"], row["set"]), {})
            cell.setdefault(row["run"], {}).setdefault(row["item"], []).append(row["value"])
        self._cells = {key: {run: _means(items) for run, items in cell.items()} for key, cell in cells.items()}

    def items(self, side: str, kind: str, amount: float, what: str) -> np.ndarray:
        """Return the mean over runs of each item [items], items in one order."""
        found: np.ndarray = np.mean(list(self._cells[side, kind, amount, what].values()), 0)
        return found

    def run_means(self, side: str, kind: str, amount: float, what: str) -> dict[str, float]:
        """Return the mean over items of each run."""
        return {run: float(items.mean()) for run, items in self._cells[side, kind, amount, what].items()}


def _means(items: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.array([np.mean(items[item]) for item in sorted(items)])


def _apart(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Estimate:
    """Return the difference of two sides' values of single runs, with runs as what is resampled."""
    left, right = ([v for v in by_run.values() if v is not None] for by_run in (first, second))
    if len(left) < len(first) or len(right) < len(second):
        return undefined("it is missing for some runs", level=0.95, method=WELCH)
    return difference_of_means(np.array(left), np.array(right))


def efficiency(values: Values, base: np.ndarray, norm: float, unit: float) -> Efficiency:
    """Return the held-out loss of both sides at `norm` x `unit`, and what was gained per squared norm. (Soligo et al. 2026)

    Args:
        base: loss of the base on each item [items].
    """
    general, narrow = (values.items(side, SCALED, norm, TASK) for side in SIDES)
    gained = (mean_estimate((base - loss) / (norm * unit) ** 2) for loss in (general, narrow))
    by_run = ByRun(*(values.run_means(side, SCALED, norm, TASK) for side in SIDES))
    return Efficiency(
        norm=norm * unit,
        loss=BothSides(mean_estimate(general), mean_estimate(narrow)),
        narrow_less_general=mean_estimate(narrow - general),
        gain_per_squared_norm=BothSides(*gained),
        by_run=by_run,
        over_runs=_apart(by_run.narrow, by_run.general),
    )


def norm_for_half(values: Values, base: np.ndarray, norms: Sequence[float], unit: float) -> NormForHalf:
    """Return the norm at which each run has learned half of what the general ones, as trained, have on average. (equal loss, Soligo et al. 2026)

    None for all runs where the general ones learned nothing.
    Between the norms that were read the loss is taken as a straight line, from the base's at 0 on; the first crossing counts.
    """
    start, learned = float(base.mean()), float(values.items(GENERAL, MOVED, 0.0, TASK).mean())
    target = (start + learned) / 2
    grid = sorted(norms)
    places = [0.0, *(norm * unit for norm in grid)]

    def crossings(side: str) -> dict[str, float | None]:
        curves = [values.run_means(side, SCALED, norm, TASK) for norm in grid]
        return {
            run: _first_crossing(places, [start, *(c[run] for c in curves)], target) if learned < start else None
            for run in curves[0]
        }

    by_run = ByRun(crossings(GENERAL), crossings(NARROW))
    return NormForHalf(target, by_run, _apart(by_run.narrow, by_run.general))


def _first_crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """Return the first place where the broken line through (x, y) falls to `target`; None where it never does."""
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if y0 > target >= y1:
            return float(x0 + (x1 - x0) * (y0 - target) / (y0 - y1))
    return None


def stability(values: Values, base: np.ndarray, amount: float) -> Stability:
    """Return how much of what was learned is lost when the trained tensors are moved by `amount`, in per cent. (Soligo et al. 2026)"""

    def rise(side: str) -> Estimate:
        start, after = values.items(side, MOVED, 0.0, TASK), values.items(side, MOVED, amount, TASK)
        return ratio_estimate(100 * (after - start), base - start)

    def rises(side: str) -> dict[str, float | None]:
        trained, moved = values.run_means(side, MOVED, 0.0, TASK), values.run_means(side, MOVED, amount, TASK)
        return {run: _share(moved[run] - trained[run], float(base.mean()) - trained[run]) for run in trained}

    by_run = ByRun(rises(GENERAL), rises(NARROW))
    return Stability(amount, rise(GENERAL), rise(NARROW), by_run, _apart(by_run.narrow, by_run.general))


def _share(part: float, whole: float) -> float | None:
    """Return `part` in per cent of what was learned; None where nothing was."""
    return 100 * part / whole if whole > 0 else None


def significance(values: Values, norm: float, unit: float) -> Significance:
    """Return KL(base || model) per token on plain texts of both sides at `norm` x `unit`, beside random updates. (Soligo et al. 2026)"""
    general, narrow = (values.items(side, SCALED, norm, KL) for side in SIDES)
    control = (values.items(side, RANDOM, norm, KL) for side in SIDES)
    by_run = ByRun(*(values.run_means(side, SCALED, norm, KL) for side in SIDES))
    return Significance(
        norm=norm * unit,
        kl=BothSidesAndRandom(*map(mean_estimate, (general, narrow, *control))),
        general_less_narrow=mean_estimate(general - narrow),
        general_over_narrow=ratio_estimate(general, narrow),
        by_run=by_run,
        over_runs=_apart(by_run.general, by_run.narrow),
    )
