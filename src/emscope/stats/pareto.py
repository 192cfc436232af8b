"""Which settings trade task gain against harm better than any other: the Pareto front, with its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from emscope.stats.means import Mean, stratified_mean
from emscope.stats.onset import LEVEL
from emscope.stats.skew import moments

SEED = 20814
MOST_DRAWS, LEAST_DRAWS, MOST_WORK = 6000, 1000, 200_000_000  # draws; pairs of cells x draws


@dataclass(frozen=True, slots=True)
class Front:
    """N cells as points (gain, effect), more gain and less effect being better.

    Attributes:
        gain, effect: means [N].
        by: for each cell the one that surely dominates it [N], -1 where none does.
        on_front: share of the resamples in which no other cell is as good in both and better in one [N].
        critical: reach of the bounds in standard errors of a normal mean.
    """

    gain: np.ndarray
    effect: np.ndarray
    by: np.ndarray
    on_front: np.ndarray
    critical: float

    @property
    def dominated(self) -> np.ndarray:
        """Whether a cell is surely not on the front [N]."""
        return self.by >= 0


def pareto(
    gain: np.ndarray,
    effect: np.ndarray,
    gain_strata: np.ndarray | None = None,
    effect_strata: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    effect_error: tuple[float, float] | None = None,
) -> Front:
    """Return which cells are surely dominated by another, and how likely each is to be on the front.

    Cell i is dominated by j where the lower bounds of gain_j - gain_i and of effect_i - effect_j are both above 0. The bounds hold for all
    pairs of cells and both sides at once (max-T, Westfall and Young 1993), so that any cell of the true front is called dominated with
    a probability of at most 1 - level. One set of draws serves all cells: items, and from two seeds on seeds too, are
    multiplied by the same standard normals in every cell (multiplier bootstrap, Chernozhukov, Chetverikov and Kato 2013), which keeps what
    cells have in common out of their differences. (the rule: ours)

    A pair's standard error is that of its own differences: over items as in `stratified_mean`, and from two seeds on joined by the
    seeds' part, se^2 = by_seed + by_item. Among many pairs the by_seed of a few seeds is near 0 by chance in some, and those would
    pass: it is taken as no less than its mean over all pairs, with (N - 1)(S - 1) degrees of freedom (ours). Of simulated
    studies .00 to .02 call a cell of the true front dominated (`tests/test_pareto.py`), .01 to .05 where seeds of some cells spread 10 to 25
    times as far as those of the others, and with two seeds only up to .08.

    Args:
        gain: what was learned of the task, by seed and held-out item [N, S, H]. effect: harm, by seed and item [N, S, Q]. The seeds are
            the same in all cells and both arrays.
        gain_strata, effect_strata: category of each item [H], [Q]; None for a single one.
        effect_error: a further error of each cell's effect that all seeds and items share, independent between cells: standard
            deviation and degrees of freedom. (see `stats.model_error`)

    Raises:
        ValueError: cells or seeds do not match, or values that are not finite.
    """
    gain, effect = np.asarray(gain, float), np.asarray(effect, float)
    if gain.ndim != 3 or effect.ndim != 3 or gain.shape[:2] != effect.shape[:2] or not len(gain):
        raise ValueError(
            f"gain {gain.shape} and effect {effect.shape} must be [cells, seeds, items] with the same cells and seeds"
        )
    cells, seeds = gain.shape[:2]
    draws = int(np.clip(MOST_WORK // cells**2, LEAST_DRAWS, MOST_DRAWS))
    random = np.random.default_rng(SEED)
    of_seeds = random.standard_normal((seeds, draws), np.float32)  # a seed is the same run on both sides
    sides = [_Side.of(gain, gain_strata, of_seeds, random), _Side.of(-effect, effect_strata, of_seeds, random, effect_error)]
    critical = _critical(sides, level)
    by = np.array([_better(sides, i, critical) for i in range(cells)])
    return Front(sides[0].means, -sides[1].means, by, _on_front(sides), critical)


@dataclass(frozen=True, slots=True)
class _Side:
    """One of the two measures, more being better.

    Attributes:
        values: [N, S, Q]; means: [N]; draws: of the means' errors [N, R].
        apart: seeds' means less their own mean, over sqrt(S (S - 1)) [N, S]: squares sum to what seeds add to a mean's variance.
        error: a further one of each cell, shared by its seeds and items: standard deviation and degrees of freedom.
    """

    values: np.ndarray
    strata: np.ndarray | None
    means: np.ndarray
    draws: np.ndarray
    apart: np.ndarray
    error: tuple[float, float] | None

    @classmethod
    def of(
        cls,
        values: np.ndarray,
        strata: np.ndarray | None,
        of_seeds: np.ndarray,
        random: np.random.Generator,
        error: tuple[float, float] | None = None,
    ) -> _Side:
        seeds, items = values.shape[1:]
        found = moments(values.mean(1), strata)
        draws = found.parts.astype(np.float32) @ random.standard_normal((items, of_seeds.shape[1]), np.float32)
        apart = np.zeros((len(values), seeds))
        if seeds > 1:
            labels = np.zeros(items, int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
            sizes = np.bincount(labels)
            each = values @ (1 / (len(sizes) * sizes[labels]))  # [N, S]
            apart = (each - each.mean(1, keepdims=True)) / np.sqrt(seeds * (seeds - 1))
            draws += apart.astype(np.float32) @ of_seeds
        if error is not None:
            draws += np.float32(error[0]) * random.standard_normal(draws.shape, np.float32)
        return cls(values, strata, found.means, draws, apart, error)

    def gaps(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return draws of the error of each later cell's difference from cell `i` [N - i - 1, R], and their standard errors."""
        gap = self.draws[i + 1 :] - self.draws[i]
        return gap, np.sqrt(np.einsum("nr,nr->n", gap, gap) / gap.shape[1])

    @property
    def usual(self) -> float:
        """The variance that seeds add to the difference of two cells, mean over all pairs."""
        cells = len(self.apart)
        return float(2 * cells / (cells - 1) * self.apart.var(0).sum())

    def difference(self, j: int, i: int) -> Mean:
        """Return the mean of cell j less cell i; its standard error is infinite where no value differs from another."""
        mean = self._of_items_and_seeds(j, i)
        return mean.with_error([(2**0.5 * self.error[0], self.error[1])]) if self.error and np.isfinite(mean.se) else mean

    def _of_items_and_seeds(self, j: int, i: int) -> Mean:
        mean = stratified_mean((self.values[j] - self.values[i]).mean(0), self.strata)
        cells, seeds = self.apart.shape
        of_seeds = max(float(((self.apart[j] - self.apart[i]) ** 2).sum()), self.usual) if seeds > 1 else 0.0
        of_items = mean.se**2
        if of_seeds > 0:
            total = of_seeds + of_items
            df = 1 / ((of_seeds / total) ** 2 / ((cells - 1) * (seeds - 1)) + (of_items / total) ** 2 / mean.df)
            return Mean(mean.value, total**0.5, df, mean.n)
        return mean if of_items > 0 else Mean(mean.value, float("inf"), mean.df, mean.n)


def _critical(sides: list[_Side], level: float) -> float:
    """Return the quantile of the largest standardised error over all pairs and both sides."""
    largest = np.zeros(sides[0].draws.shape[1], np.float32)
    for i in range(len(sides[0].means) - 1):
        for side in sides:
            gap, se = side.gaps(i)
            some = se > 0
            if some.any():
                np.maximum(largest, np.abs(gap[some] / se[some, None]).max(0), out=largest)
    return float(np.quantile(largest, level))


def _better(sides: list[_Side], i: int, critical: float) -> int:
    """Return the cell that most clearly dominates cell `i`; -1 where none surely does.

    The draws' own standard error is no larger than the pair's but for chance, and Student's quantiles no smaller than `critical`: pairs
    that lie less than .9 of it apart cannot pass, and are not computed.
    """
    tail = float(special.ndtr(-critical))
    distance = np.min([_distance(side, i) for side in sides], axis=0)
    for j in np.argsort(-distance):
        if distance[j] < 0.9 * critical:
            break
        found = [side.difference(int(j), i) for side in sides]
        if all(m.bound(1 - tail, -1) > 0 for m in found):
            return int(j)
    return -1


def _distance(side: _Side, i: int) -> np.ndarray:
    """Return how far each cell lies above cell `i`, in standard errors of the draws [N]; 0 for itself."""
    gap = side.draws - side.draws[i]
    se = np.sqrt(np.einsum("nr,nr->n", gap, gap) / gap.shape[1])
    return np.where(se > 0, (side.means - side.means[i]) / np.where(se > 0, se, 1.0), 0.0)


def _on_front(sides: list[_Side]) -> np.ndarray:
    """Return the share of resamples in which no other cell is as good on both sides and better on one [N]."""
    points = [_points(side) for side in sides]
    found = np.empty(len(points[0]))
    for i in range(len(found)):
        no_worse, better = np.ones(points[0].shape, bool), np.zeros(points[0].shape, bool)
        for point in points:
            no_worse &= point >= point[i]
            better |= point > point[i]
        found[i] = 1 - (no_worse & better).any(0).mean()
    return found


def _points(side: _Side) -> np.ndarray:
    """Return the resampled means [N, R], on a grid much finer than their errors, on which cells that are alike coincide."""
    points = side.means[:, None] + side.draws
    grid = 1e-6 * max(float(np.abs(points).max()), 1e-300)
    return np.round(points / grid)
