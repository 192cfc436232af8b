"""How scores of the same questions move from one model to another: their location, their spread, and how well the first predict the second.

Each question has several answers, so its mean (and its standard deviation) is known with an error. That error flattens the
regression of the second on the first (regression to the mean); repeated answers show by how much (Fuller 1987).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from math import sqrt, tanh

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.means import mean_estimate
from emscope.stats.quantiles import normal, student
from emscope.stats.within_strata import pearson, slope

SWAPS = 2000
CHUNK = 4_000_000  # values of resampled distribution functions at a time
EXACT_UP_TO = 50  # questions up to which the signed-rank distribution is computed
NEAR_ONE = 0.98  # beyond it Fisher's scale does not help a corrected correlation
MOST_PAIRS = 3000  # questions whose pairwise means are formed
HODGES_LEHMANN = "median of pairwise means (Hodges and Lehmann), signed-rank interval"
CORRECTED_SLOPE = "slope corrected for sampling (errors in variables), jackknife over questions"
CORRECTED_R = "Pearson corrected for sampling (attenuation), jackknife over questions"
RELIABILITY = "share of the variance between questions that is not sampling, jackknife over questions"
SHARE = "square of Pearson, Fisher's z"
NOT_RELIABLE = "the questions differ by no more than their answers' sampling explains"


@dataclass(frozen=True, slots=True)
class Repeated:
    """A number of each question with its sampling variance [Q]; NaN where it is unknown."""

    value: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, slots=True)
class ScoreShift:
    """How one number per question moved over Q questions.

    Attributes:
        before, after: means over questions. shift: mean of after - before. typical: its Hodges-Lehmann estimate.
        wilcoxon: signed-rank statistic and p; None where nothing moved.
        ks: two-sample Kolmogorov-Smirnov statistic and p, as if both were independent samples. ks_swapped: p by swapping the two within questions.
        pearson, slope, explained: of after on before; explained is R^2.
        reliability: of before and of after. slope_corrected, pearson_corrected: without the sampling of a question's answers.
    """

    questions: int
    before: float
    after: float
    shift: Estimate
    typical: Estimate
    wilcoxon: tuple[float, float] | None
    ks: tuple[float, float]
    ks_swapped: float
    pearson: Estimate
    slope: Estimate
    explained: Estimate
    reliability: tuple[Estimate, Estimate]
    slope_corrected: Estimate
    pearson_corrected: Estimate


def means(question: np.ndarray, score: np.ndarray, count: int) -> Repeated:
    """Return each question's mean with its sampling variance s^2 / m.

    Args:
        question: from 0 to `count` - 1 of each score [N].
    """
    m, mean, squares = _moments(question, score, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Repeated(np.where(m > 0, mean, np.nan), np.where(m > 1, squares / (m - 1) / m, np.nan))


def deviations(question: np.ndarray, score: np.ndarray, count: int) -> Repeated:
    """Return each question's standard deviation, from 2 answers on, with its jackknife variance over answers, from 3 on.

    Without answer i the sum of squares is less by m/(m - 1) (x_i - mean)^2. (jackknife, Tukey 1958)
    """
    m, mean, squares = _moments(question, score, count)
    with np.errstate(invalid="ignore", divide="ignore"):
        sd = np.where(m > 1, np.sqrt(squares / (m - 1)), np.nan)
        own = m[question]
        less = squares[question] - own / (own - 1) * (score - mean[question]) ** 2
        without = np.sqrt(np.clip(less, 0, None) / (own - 2))
        centre = np.bincount(question, without, count) / m
        variance = (m - 1) / m * np.bincount(question, (without - centre[question]) ** 2, count)
    return Repeated(sd, np.where(m > 2, variance, np.nan))


def score_shift(before: Repeated, after: Repeated, *, level: float = 0.95, seed: int = 0) -> ScoreShift | None:
    """Return how a number moved over the questions that have it on both sides; None for fewer than 3."""
    both = np.isfinite(before.value) & np.isfinite(after.value)
    if both.sum() < 3:
        return None
    x, y = before.value[both], after.value[both]
    scale = float(max(np.abs(x).max(), np.abs(y).max()))
    moved = _without_rounding(y - x, scale)
    r = pearson(x, y, level=level)
    found = _Corrected.of(x, y, before.variance[both], after.variance[both])
    return ScoreShift(
        len(x),
        float(x.mean()),
        float(y.mean()),
        mean_estimate(moved, level=level),
        hodges_lehmann(moved, level=level),
        _wilcoxon(moved),
        _ks(_without_rounding(x, scale), _without_rounding(y, scale)),
        swapped_ks(_without_rounding(x, scale), _without_rounding(y, scale), seed=seed),
        r,
        slope(x, y, level=level),
        _explained(r),
        (found.reliability(0, level), found.reliability(1, level)),
        found.slope(level),
        found.pearson(level),
    )


def hodges_lehmann(shift: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the median of pairwise means of shifts [Q] with the interval that the signed-rank test does not reject. (Hodges and Lehmann 1963)

    Of the M = Q(Q + 1)/2 pairwise means in order, the k-th from each end, P(W < k) <= (1 - level)/2; W's distribution is exact up to
    `EXACT_UP_TO` questions without ties, else normal.
    """
    n = len(shift)
    if n > MOST_PAIRS:
        return undefined(f"{n} questions are too many to pair", level=level, method=HODGES_LEHMANN, n=n, clusters=n)
    first, second = np.triu_indices(n)
    pairs = np.sort((shift[first] + shift[second]) / 2)
    value, m, tail = float(np.median(pairs)), len(pairs), (1 - level) / 2
    if n <= EXACT_UP_TO:
        ways = np.ones(1)
        for rank in range(1, n + 1):
            ways = np.convolve(ways, np.r_[1.0, np.zeros(rank - 1), 1.0])
        k = int((np.cumsum(ways) / 2.0**n <= tail).sum())
    else:
        k = int(m / 2 - normal(1 - tail) * sqrt(n * (n + 1) * (2 * n + 1) / 24))
    if k < 1:
        why = f"{n} questions are too few for an interval of {level:.0%}"
        return Estimate(value, None, None, level, HODGES_LEHMANN, n, n, why)
    return Estimate(value, float(pairs[k - 1]), float(pairs[m - k]), level, HODGES_LEHMANN, n, n)


def swapped_ks(x: np.ndarray, y: np.ndarray, *, swaps: int = SWAPS, seed: int = 0) -> float:
    """Return p of the largest distance between the distributions of paired x and y [Q], by swapping both at random within pairs.

    Under the null a pair's two values may change places, whatever they share. (Fisher 1935; p with the observed one counted, Phipson and
    Smyth 2010)
    """
    values = np.concatenate([x, y])
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order], append=np.inf) > 0)  # of runs of equal values
    pair, side = order % len(x), np.where(order < len(x), 1.0, -1.0)

    def distance(signs: np.ndarray) -> np.ndarray:
        return np.abs(np.cumsum(signs[:, pair] * side, axis=1)[:, ends]).max(axis=1)

    seen = float(distance(np.ones((1, len(x))))[0])
    rng, beyond, step = np.random.default_rng(seed), 0, max(1, CHUNK // len(values))
    for start in range(0, swaps, step):
        signs = rng.integers(0, 2, (min(step, swaps - start), len(x))) * 2.0 - 1
        beyond += int((distance(signs) >= seen - 1e-9).sum())
    return (beyond + 1) / (swaps + 1)


@dataclass(frozen=True, slots=True)
class _Corrected:
    """Variances of x and y over questions, their covariance, and mean sampling variances: of all questions, then without each [1 + Q].

    Attributes:
        known: sampling variances of x and of y are known for all questions.
    """

    n: int
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray
    vx: np.ndarray
    vy: np.ndarray
    known: tuple[bool, bool]

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, vx: np.ndarray, vy: np.ndarray) -> _Corrected:
        """Return the moments; without question i a sum of products is less by n/(n - 1) dx_i dy_i."""
        n = len(x)
        dx, dy = x - x.mean(), y - y.mean()

        def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            whole = float(a @ b)
            return np.r_[whole / (n - 1), (whole - n / (n - 1) * a * b) / (n - 2)]

        def average(v: np.ndarray) -> np.ndarray:
            return np.r_[v.mean(), (v.sum() - v) / (n - 1)]

        known = bool(np.isfinite(vx).all()), bool(np.isfinite(vy).all())
        return cls(n, products(dx, dx), products(dy, dy), products(dx, dy), average(vx), average(vy), known)

    def reliability(self, side: int, level: float) -> Estimate:
        """Return 1 - mean sampling variance / variance between questions; at least 0."""
        whole, noise = ((self.xx, self.vx), (self.yy, self.vy))[side]
        if not self.known[side]:
            return self._none("a question has too few answers to estimate its sampling variance", level, RELIABILITY)
        if not (whole > 0).all():
            return self._none("the questions do not differ", level, RELIABILITY)
        return self._jackknifed(1 - noise / whole, level, RELIABILITY, (0.0, 1.0))

    def slope(self, level: float) -> Estimate:
        """Return covariance / (variance of x - its sampling)."""
        why = self._too_noisy((0,))
        if why:
            return self._none(why, level, CORRECTED_SLOPE)
        return self._jackknifed(self.xy / (self.xx - self.vx), level, CORRECTED_SLOPE, (-np.inf, np.inf))

    def pearson(self, level: float) -> Estimate:
        """Return covariance / sqrt((variance of x - its sampling) (the same of y)), within -1 and 1.

        The interval is on Fisher's scale, where without each question it stays below `NEAR_ONE`. (Spearman 1904; jackknife: ours)
        """
        why = self._too_noisy((0, 1))
        if why:
            return self._none(why, level, CORRECTED_R)
        r = self.xy / np.sqrt((self.xx - self.vx) * (self.yy - self.vy))
        if np.abs(r).max() > NEAR_ONE:
            return self._jackknifed(r, level, CORRECTED_R, (-1.0, 1.0))
        z = self._jackknifed(np.arctanh(r), level, CORRECTED_R, (-np.inf, np.inf))
        assert z.low is not None and z.high is not None
        return replace(z, value=float(r[0]), low=tanh(z.low), high=tanh(z.high))

    def _too_noisy(self, sides: tuple[int, ...]) -> str:
        """Return why the true variance of a side is not surely above 0 by a one-sided bound of 97.5 %; "" where it is."""
        for side in sides:
            if not self.known[side]:
                return "a question has too few answers to estimate its sampling variance"
            true = ((self.xx - self.vx), (self.yy - self.vy))[side]
            if not (true > 0).all() or true[0] <= student(0.975, self.n - 1) * self._se(true):
                return NOT_RELIABLE
        return ""

    def _se(self, values: np.ndarray) -> float:
        left = values[1:]
        return sqrt((self.n - 1) / self.n * float(((left - left.mean()) ** 2).sum()))

    def _jackknifed(self, values: np.ndarray, level: float, method: str, ends: tuple[float, float]) -> Estimate:
        reach = student(0.5 + level / 2, self.n - 1) * self._se(values)
        value, low, high = (float(np.clip(v, *ends)) for v in (values[0], values[0] - reach, values[0] + reach))
        return Estimate(value, low, high, level, method, self.n, self.n)

    def _none(self, why: str, level: float, method: str) -> Estimate:
        return undefined(why, level=level, method=method, n=self.n, clusters=self.n)


def _moments(question: np.ndarray, score: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return number, mean and sum of squared deviations of each question's scores [Q]."""
    m = np.bincount(question, minlength=count).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(question, score, count) / m
    return m, mean, np.bincount(question, (score - mean[question]) ** 2, count)


def _without_rounding(values: np.ndarray, scale: float) -> np.ndarray:
    """Return values [Q] with those made equal that differ only by rounding, since rank tests depend on ties."""
    return np.round(values / scale, 10) * scale if scale > 0 else values


def _wilcoxon(shift: np.ndarray) -> tuple[float, float] | None:
    from scipy import stats  # a second of start-up that other commands do without

    if not np.any(shift):
        return None
    found = stats.wilcoxon(shift)
    return float(found.statistic), float(found.pvalue)


def _ks(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that an exact p was out of reach and an asymptotic one is given
        found = stats.ks_2samp(x, y)
    return float(found.statistic), float(found.pvalue)


def _explained(r: Estimate) -> Estimate:
    """Return r^2; its ends are those of the interval's squares."""
    if r.value is None or r.low is None or r.high is None:
        square = None if r.value is None else r.value**2
        return Estimate(square, None, None, r.level, SHARE, r.n, r.clusters, r.why)
    ends = sorted((r.low**2, r.high**2))
    low = 0.0 if r.low <= 0 <= r.high else ends[0]
    return Estimate(r.value**2, low, ends[1], r.level, SHARE, r.n, r.clusters)
