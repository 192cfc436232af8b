"""Many checkpoints of one run, read on the same items: bounds that hold for all at once, and the checkpoint to ship.

Readings of neighbouring checkpoints share their items and nearly all of their noise, so that a correction must use their measured
correlation: of 100 checkpoints at a correlation of .98, 95 % bounds reach 2.7 standard errors, where Bonferroni's reach 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from emscope.stats.onset import LEVEL
from emscope.stats.quantiles import normal
from emscope.stats.skew import Moments, moments

DRAWS = 3000  # of each sign
SEED = 20806
FIRST = (
    0.5  # of the error, spent by `safe_stop` on the walk from the first checkpoint; the rest is for what comes after a failure
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """One-sided bounds of an effect at C checkpoints; each side holds at all of them at once with the level's probability.

    Attributes:
        means, lower, upper: [C], or [A, C] for A contrasts on the same items. Infinite where the items are too skewed.
        critical: reach in standard errors of a normal mean (1.645 for one alone at 95 %); each has the t quantile of that tail.
    """

    means: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    critical: float


@dataclass(frozen=True, slots=True)
class _Readings:
    """Moments of A x C readings and draws of their standardised errors [A, C, R]; `skewed`: whether bounds allow for skewness."""

    moments: Moments
    draws: np.ndarray
    skewed: bool

    def bound(self, critical: np.ndarray | float, side: int) -> np.ndarray:
        """Return the bounds [A, C] at normal quantiles `critical`, a number or [C]."""
        m = self.moments
        t = -special.stdtrit(m.df, special.ndtr(-np.asarray(critical, float)))
        return m.bound(t, side) if self.skewed else m.means + side * t * m.se


def _read(found: Moments, skewed: bool) -> _Readings:
    """Return readings [A, C] with draws from the normal law that has their estimated correlation.

    Items are multiplied by standard normals (multiplier bootstrap, Chernozhukov, Chetverikov and Kato 2013), whose covariance
    given the data is the estimated one. Each reading's draws are then replaced by the normal scores of their ranks, so that a
    single one has its exact quantile and many have theirs with less noise. (Latin hypercube with dependence, Packham and
    Schmidt 2010)
    """
    unit = found.parts / np.where(found.se > 0, found.se, 1.0)[..., None]
    flat = unit.reshape(-1, unit.shape[-1]).astype(np.float32)
    half = flat @ np.random.default_rng(SEED).standard_normal((flat.shape[1], DRAWS), np.float32)
    draws = np.concatenate([half, -half], axis=1)
    scores = special.ndtri((np.arange(2 * DRAWS) + 0.5) / (2 * DRAWS)).astype(np.float32)
    np.put_along_axis(draws, draws.argsort(axis=1), scores[None], axis=1)
    draws *= (found.se > 0).reshape(-1, 1)
    return _Readings(found, draws.reshape(*found.se.shape, -1), skewed)


def _critical(draws: np.ndarray, level: float) -> np.ndarray:
    """Return the order statistic of `draws` [..., R] that a share of 1 - level exceeds at most [...]."""
    place = min(int(np.ceil(level * draws.shape[-1])), draws.shape[-1] - 1)
    return np.partition(draws, place, axis=-1)[..., place]


def simultaneous_bounds(
    values: np.ndarray,
    strata: np.ndarray | None = None,
    level: float = LEVEL,
    *,
    skewed: bool = True,
    errors: tuple[np.ndarray, np.ndarray] | None = None,
) -> Bounds:
    """Return one-sided lower and upper bounds, each of which holds at all checkpoints at once with probability `level`.

    Max-t with the measured correlation: the critical value is the quantile of the largest standardised error, drawn from the
    normal law, and each checkpoint's t quantile is that of the same tail. (Westfall and Young 1993; Hothorn, Bretz and Westfall
    2008)

    Args:
        values: effect by item [C, Q], or [A, C, Q] for A contrasts on the same items, over all of which the bounds then hold.
        strata: category of each item [Q], None for a single one; categories weigh equally, as in `stratified_mean`.
        skewed: allow for skewed items, by `stats.skew`.
        errors: further ones that all items share, of the shape of `values` without its items, and their degrees of freedom [..., E], [E];
            see `Moments.with_errors`.

    Raises:
        ValueError: fewer than 2 items, no checkpoint, or values that are not finite.
    """
    found = moments(_contrasts(values), strata)
    if errors is not None:
        found = found.with_errors(_contrasts(errors[0]), errors[1])
    read = _read(found, skewed)
    shape = np.shape(values)[:-1]
    critical = float(_critical(read.draws.max((0, 1)), level))
    lower, upper = (read.bound(critical, side).reshape(shape) for side in (-1, +1))
    return Bounds(read.moments.means.reshape(shape), lower, upper, critical)


def _contrasts(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(f"values must be [checkpoints, items] or [contrasts, checkpoints, items], not of shape {values.shape}")
    return values if values.ndim == 3 else values[None]


def safe_stop(
    steps: Sequence[int],
    values: np.ndarray,
    strata: np.ndarray | None = None,
    *,
    delta: float,
    level: float = LEVEL,
    skewed: bool = True,
) -> int | None:
    """Return the last step shown to be below `delta` (in every contrast), before any that is surely above it; None where none is.

    P(the effect at the returned step is not below delta) <= 1 - level, whatever the curve over checkpoints, for items like
    these; harm on so few of them that none was drawn is beyond any such promise (`stats.skew.visible_share`). A fixed sequence
    with a fallback: checkpoints are walked from the first, each tested at half of the error. The first that is not shown takes
    nothing away from later ones, which may still pass by the max-t bound over all from that one on, so that one noisy
    reading does not end the walk. Nor does a lucky one buy a stop: after a failure the bound is simultaneous.

    It is a closed test (Marcus, Peritz and Gabriel 1976). Of a set of checkpoints whose first is i, "none is below" is rejected
    where i passes k1 (level 1 - half the error) or any passes k2(i), with P(Z_i > k1 or max_(c >= i) Z_c > k2(i)) = 1 - level.
    So a checkpoint fails where it passes neither of its own two (the last one's k2 is that of a single test), and c is shown
    where it passes k2 of each that failed up to it. It joins the fallback procedure (Wiens 2003; with correlation Huque and
    Alosh 2008) to Maurer's fixed sequence (1995), which ends at the first failure. (the combination is ours) Of two contrasts
    both must pass (Berger 1982), and the maximum runs over both, since either may be the one that is not below.

    Simulated (sd .05 growing to .27, 100 checkpoints, no effect): where neighbours correlate by .8, the median stop of 120
    items is at .71 of the run, of the plain fixed sequence at .47; by .98 at .70 and .69. Pooling three neighbours would ship a
    checkpoint just above delta in up to 83 % of runs, at the onset, and is not offered.

    Args:
        steps: of the checkpoints [C], ascending; leave out the base itself, whose items do not differ.
        values, strata, skewed: as for `simultaneous_bounds`.
        delta: the threshold, fixed before the run.

    Raises:
        ValueError: delta is not above zero, steps do not match, or as `simultaneous_bounds`.
    """
    if not delta > 0:
        raise ValueError(f"delta must be above 0, not {delta}")
    values = _contrasts(values)
    if len(steps) != values.shape[1]:
        raise ValueError(f"{len(steps)} steps for {values.shape[1]} checkpoints")
    read = _read(moments(values, strata), skewed)
    behind = _behind(read.draws, level)
    walk = np.minimum(normal(1 - FIRST * (1 - level)), behind)
    failed = ~_below(read, walk, delta)
    needed = np.maximum(walk, np.maximum.accumulate(np.where(failed, behind, walk.min())))
    shown = _below(read, needed, delta)
    surely = (read.bound(_critical(read.draws.max((0, 1)), level), -1) > delta).all(0)
    shown &= ~np.logical_or.accumulate(surely)
    return steps[int(np.flatnonzero(shown)[-1])] if shown.any() else None


def _below(read: _Readings, critical: np.ndarray | float, delta: float) -> np.ndarray:
    return np.all(read.bound(critical, +1) < delta, axis=0)


def _behind(draws: np.ndarray, level: float) -> np.ndarray:
    """Return k2(i) of `safe_stop` for each first checkpoint i [C] from draws [A, C, R]."""
    first = _critical(draws, 1 - FIRST * (1 - level))  # k1 as these draws have it, so that the share beyond is the wanted one
    rest = np.maximum.accumulate(draws.max(0)[::-1], axis=0)[::-1]  # [C, R]: the largest from each checkpoint on
    return np.max(
        [_critical(np.where(one > k1[:, None], np.inf, rest), level) for one, k1 in zip(draws, first, strict=True)], axis=0
    )
