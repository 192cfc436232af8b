"""From one judge's scores to another's: monotone maps, and how far a mapped number may be off in a new study.

The unit is the study (a run, a data set, a model): answers within one are alike, and what breaks a bridge is another study, not another
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import student

METHOD = "isotonic map; between-study prediction interval from studies left out in turn"
FEWEST = 4  # studies


@dataclass(frozen=True, slots=True)
class Bridge:
    """A monotone map, linear between its knots: what the new judge gives on average, from the old judge's score. x, y [K]."""

    x: np.ndarray
    y: np.ndarray

    def moved(self, scores: np.ndarray) -> np.ndarray:
        """Return the map's values at scores [N]; beyond the outer knots it stays constant."""
        return np.interp(scores, self.x, self.y)

    def outside(self, scores: np.ndarray) -> float:
        """Return the share of scores outside the range that the map was fitted on."""
        return float(np.mean((scores < self.x[0]) | (scores > self.x[-1])))


def fit_bridge(old: np.ndarray, new: np.ndarray, *, rising: bool = True) -> Bridge:
    """Return the isotonic regression of `new` [N] on `old` [N]; falling where `rising` is False. (pool adjacent violators)"""
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(old, new)
    return Bridge(np.asarray(model.X_thresholds_, float), np.asarray(model.y_thresholds_, float))


@dataclass(frozen=True, slots=True)
class Crossing:
    """A bridge tried on studies that were left out in turn.

    Attributes:
        bridge: fitted on all studies. names [S]: the studies. errors [S]: what the new judge found on average in each, less what the
            bridge of the others says.
    """

    bridge: Bridge
    names: tuple[str, ...]
    errors: np.ndarray

    def reach(self, level: float = 0.95, without: int | None = None) -> float | None:
        """Return how far the mapped mean of one further study may be off at `level`, either way; None with fewer than `FEWEST` studies.

        t with S - 1 degrees of freedom times the root mean square of the errors, times sqrt(1 + 1/S): bias of the map counts as
        error. (prediction interval; ours)

        Args:
            without: a study whose own error is left out, to try the interval on it.
        """
        kept = np.delete(self.errors, [] if without is None else without)
        if len(kept) < FEWEST:
            return None
        return float(student(0.5 + level / 2, len(kept) - 1) * np.sqrt(np.mean(kept**2) * (1 + 1 / len(kept))))

    def held(self, level: float = 0.95) -> float | None:
        """Return the share of studies whose error lies within the interval from the others."""
        found = [self.reach(level, n) for n in range(len(self.errors))]
        if any(r is None for r in found):
            return None
        return float(np.mean([abs(e) <= r for e, r in zip(self.errors, found, strict=True) if r is not None]))


def cross(old: np.ndarray, new: np.ndarray, study: Sequence[str], *, rising: bool = True) -> Crossing:
    """Fit a bridge and try it on each study in turn by the others.

    Args:
        old, new: both judges' values of the same answers [N]; study: which study each answer is of [N].
    """
    names, number = np.unique(np.asarray(study), return_inverse=True)
    errors = []
    for n in range(len(names)):
        mine = number == n
        if mine.all():
            break
        errors.append(new[mine].mean() - fit_bridge(old[~mine], new[~mine], rising=rising).moved(old[mine]).mean())
    return Crossing(fit_bridge(old, new, rising=rising), tuple(map(str, names)), np.array(errors))


def moved_mean(
    found: Crossing, scores: np.ndarray, *, within: float, most_outside: float = 0.05, level: float = 0.95
) -> Estimate:
    """Return the new judge's mean over answers that only the old judge scored, or why it cannot be moved here.

    Args:
        scores: the old judge's [N]. within: the widest reach that is of use. most_outside: share of scores beyond all that was seen.
    """
    n = len(scores)
    reach = found.reach(level)
    if reach is None:
        why = f"both judges scored answers of {len(found.errors)} studies; a bridge needs at least {FEWEST}"
    elif (share := found.bridge.outside(scores)) > most_outside:
        why = f"{share:.0%} of the scores lie outside the range that the bridge was fitted on"
    elif reach > within:
        why = f"judged by studies left out, it may be off by up to {reach:.3g}, more than the {within:g} allowed"
    else:
        value = float(found.bridge.moved(scores).mean())
        return Estimate(value, value - reach, value + reach, level, METHOD, n, len(found.errors))
    return undefined(f"not transferable here: {why}", level=level, method=METHOD, n=n, clusters=len(found.errors))
