"""Efficiency, stability and significance of general and narrow solutions, from losses and divergences that were read. (Soligo et al. 2026)

Two intervals stand beside each other: over items at these runs ("questions like these"), and over runs ("seeds like these").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from emscope.core.estimate import undefined
from emscope.stats.means import WELCH, difference_of_means, mean_estimate, ratio_estimate

SIDES = GENERAL, NARROW = "general", "narrow"
TASK, KL = "task", "kl"
BASE, SCALED, MOVED, RANDOM = "base", "scaled", "moved", "random"


class Values:
    """What was read, by side, kind of reading, how much of it, and what was read: of each run, of each item, the mean over draws."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        cells: dict[tuple[Any, ...], dict[str, dict[str, list[float]]]] = {}
        for row in sorted(rows, key=lambda r: (r["run"], r["draw"], r["item"])):
            cell = cells.setdefault((row["solution"], row["kind"], row["amount"], row["set"]), {})
            cell.setdefault(row["run"], {}).setdefault(row["item"], []).append(row["value"])
        self._cells = {key: {run: _means(items) for run, items in cell.items()} for key, cell in cells.items()}

    def items(self, *key: Any) -> np.ndarray:
        """Return the mean over runs of each item [items], items in one order."""
        found: np.ndarray = np.mean(list(self._cells[key].values()), 0)
        return found

    def run_means(self, *key: Any) -> dict[str, float]:
        """Return the mean over items of each run."""
        return {run: float(items.mean()) for run, items in self._cells[key].items()}


def _means(items: Mapping[str, Sequence[float]]) -> np.ndarray:
    return np.array([np.mean(items[item]) for item in sorted(items)])


def _over_runs(by_run: Mapping[str, Mapping[str, float | None]], first: str, second: str) -> dict[str, Any]:
    """Return the values of single runs by side, and the difference of the sides with runs as what is resampled."""
    left, right = ([v for v in by_run[side].values() if v is not None] for side in (first, second))
    if len(left) < len(by_run[first]) or len(right) < len(by_run[second]):
        apart = undefined("it is not there for some runs", level=0.95, method=WELCH)
    else:
        apart = difference_of_means(np.array(left), np.array(right))
    return {"by_run": by_run, f"{first} - {second}, over runs": apart.to_json()}


def efficiency(values: Values, base: np.ndarray, norm: float, unit: float) -> dict[str, Any]:
    """Return the held-out loss of both sides at `norm` x `unit`, and what was gained per squared norm. (Soligo et al. 2026)

    Args:
        base: loss of the base on each item [items].
    """
    losses = {side: values.items(side, SCALED, norm, TASK) for side in SIDES}
    return {
        "norm": norm * unit,
        "loss": {side: mean_estimate(v).to_json() for side, v in losses.items()},
        "narrow - general": mean_estimate(losses[NARROW] - losses[GENERAL]).to_json(),
        "gain_per_squared_norm": {side: mean_estimate((base - v) / (norm * unit) ** 2).to_json() for side, v in losses.items()},
    } | _over_runs({side: values.run_means(side, SCALED, norm, TASK) for side in SIDES}, NARROW, GENERAL)


def norm_for_half(values: Values, base: np.ndarray, norms: Sequence[float], unit: float) -> dict[str, Any]:
    """Return the norm at which each run has learned half of what the general ones, as trained, have on average. (equal loss, Soligo et al. 2026)

    None for all runs where the general ones learned nothing.
    Between the norms that were read the loss is taken as a straight line, from the base's at 0 on; the first crossing counts.
    """
    start, learned = float(base.mean()), float(values.items(GENERAL, MOVED, 0.0, TASK).mean())
    target = (start + learned) / 2
    grid = sorted(norms)
    places = [0.0, *(norm * unit for norm in grid)]
    found = {}
    for side in SIDES:
        curves = [values.run_means(side, SCALED, norm, TASK) for norm in grid]
        found[side] = {
            run: _first_crossing(places, [start, *(c[run] for c in curves)], target) if learned < start else None
            for run in curves[0]
        }
    return {"loss": target} | _over_runs(found, NARROW, GENERAL)


def _first_crossing(x: Sequence[float], y: Sequence[float], target: float) -> float | None:
    """Return the first place where the broken line through (x, y) falls to `target`; None where it never does."""
    for (x0, y0), (x1, y1) in pairwise(zip(x, y, strict=True)):
        if y0 > target >= y1:
            return float(x0 + (x1 - x0) * (y0 - target) / (y0 - y1))
    return None


def stability(values: Values, base: np.ndarray, amount: float) -> dict[str, Any]:
    """Return how much of what was learned is lost when the trained tensors are moved by `amount`, in per cent. (Soligo et al. 2026)"""
    row: dict[str, Any] = {"amount": amount}
    by_run = {}
    for side in SIDES:
        start, after = values.items(side, MOVED, 0.0, TASK), values.items(side, MOVED, amount, TASK)
        row[side] = ratio_estimate(100 * (after - start), base - start).to_json()
        trained, moved = values.run_means(side, MOVED, 0.0, TASK), values.run_means(side, MOVED, amount, TASK)
        by_run[side] = {run: _share(moved[run] - trained[run], float(base.mean()) - trained[run]) for run in trained}
    return row | _over_runs(by_run, NARROW, GENERAL)


def _share(part: float, whole: float) -> float | None:
    """Return `part` in per cent of what was learned; None where nothing was."""
    return 100 * part / whole if whole > 0 else None


def significance(values: Values, norm: float, unit: float) -> dict[str, Any]:
    """Return KL(base || model) per token on plain texts of both sides at `norm` x `unit`, beside random updates. (Soligo et al. 2026)"""
    kl = {side: values.items(side, SCALED, norm, KL) for side in SIDES}
    control = {f"random {side}": values.items(side, RANDOM, norm, KL) for side in SIDES}
    return {
        "norm": norm * unit,
        "kl": {side: mean_estimate(v).to_json() for side, v in (kl | control).items()},
        "general - narrow": mean_estimate(kl[GENERAL] - kl[NARROW]).to_json(),
        "general / narrow": ratio_estimate(kl[GENERAL], kl[NARROW]).to_json(),
    } | _over_runs({side: values.run_means(side, SCALED, norm, KL) for side in SIDES}, GENERAL, NARROW)
