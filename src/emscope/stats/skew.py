"""Means of skewed effects: one-sided bounds that allow for harm on few items, and a check of where no bound can be trusted.

The t statistic of a mean leans with the skewness of its items: where 2 % of them carry all of the harm, a draw with few of them
has a low mean and a small standard error at once, and the upper bound falls short. To first order (Hall 1992, JRSS B 54,
221-228) P(T <= x) = Phi(x) + L (2 x^2 + 1) phi(x) / 6, where L is the third cumulant of the mean over its standard error cubed
(skewness / sqrt(n) in one stratum). Hall's cubic T + L T^2/3 + L^2 T^3/27 + L/6 takes that term away, rises everywhere and is
inverted in closed form. Johnson's (1978) quadratic is the same without the cubic term: it turns, so that above L = .44 its 95 %
bound does not exist and a very low mean counts as a high one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emscope.stats.onset import LEVEL

STEEPEST = 1 / 8  # least argument of the cube root; see `trusted`
FEW = 1e-6  # skewness of a mean below which the bound is the plain one: the closed form divides by it


@dataclass(frozen=True, slots=True)
class Moments:
    """Stratified means of several readings of the same items, with what their bounds need; ... is any leading shape.

    Attributes:
        means, se, df: as `stratified_mean` has them [...]. skewness: third cumulant of the mean over se^3 [...].
        parts: contributions of the items to the mean's error [..., Q]; parts @ parts.T is the covariance of the means.
    """

    means: np.ndarray
    se: np.ndarray
    df: np.ndarray
    skewness: np.ndarray
    parts: np.ndarray

    def with_errors(self, errors: np.ndarray, df: np.ndarray) -> Moments:
        """Return the same with E further independent errors, normal and shared by all items, whose standard deviations are estimates.

        Variances add, third cumulants stay, degrees of freedom after Satterthwaite (1946), but no more than its own. Items that do not
        differ still say nothing.

        Args:
            errors: what each adds to each reading [..., E], one standard deviation of it.
            df: of each [E]; errors with the same are of one estimate, so that their variances add before.
        """
        variance = np.where(self.se > 0, self.se**2 + (errors**2).sum(-1), 0.0)
        some = np.where(variance > 0, variance, 1.0)
        freedom = (self.se**2 / some) ** 2 / self.df
        for one in np.unique(df):
            freedom = freedom + ((errors[..., df == one] ** 2).sum(-1) / some) ** 2 / one
        return Moments(
            self.means,
            np.sqrt(variance),
            np.minimum(np.where(variance > 0, 1 / np.maximum(freedom, 1e-300), self.df), self.df),
            self.skewness * (self.se**2 / some) ** 1.5,
            np.concatenate([self.parts, errors], -1),
        )

    def bound(self, t: np.ndarray | float, side: int) -> np.ndarray:
        """Return the one-sided bounds at the t quantiles `t` [...]; `side` -1 lower, +1 upper.

        Infinite where they cannot be `trusted`, and where the items do not differ, which says nothing of their spread.
        """
        leaning = side * self.skewness
        known = (self.se > 0) & trusted(leaning, t)
        return np.where(known, self.means + side * reach(leaning, t) * self.se, side * np.inf)


def moments(values: np.ndarray, strata: np.ndarray | None = None) -> Moments:
    """Return means of category means of `values` [..., Q] with standard errors, degrees of freedom and skewness.

    The first three are those of `stratified_mean`, for all readings at once. The skewness is described at `_skewness`.

    Args:
        values: [..., Q]; strata: category of each item [Q], None for a single one.

    Raises:
        ValueError: fewer than 2 items, or values that are not finite.
    """
    values = np.asarray(values, float)
    if values.shape[-1] < 2 or not np.isfinite(values).all():
        raise ValueError("a mean with an interval needs at least two finite values")
    labels = _labels(values.shape[-1], strata)
    sizes = np.bincount(labels)
    count, known = len(sizes), sizes > 1
    centres = _sums(values, labels) / sizes  # [..., K]
    rest = values - centres[..., labels]
    squares = _sums(rest**2, labels)
    freedom = np.where(known, sizes - 1, (sizes - 1).sum())
    spread = np.where(known, squares, squares.sum(-1, keepdims=True)) / freedom
    shares = spread / sizes / count**2
    rounding = (1e-14 * np.abs(values).max(-1)) ** 2  # items that are all alike may differ by it
    variance = np.where(shares.sum(-1) > rounding, shares.sum(-1), 0.0)
    some = np.where(variance > 0, variance, 1.0)
    part = shares / some[..., None]
    df = np.where(variance > 0, 1 / np.maximum((part**2 / freedom).sum(-1), 1e-300), values.shape[-1] - count)
    alone = bool((sizes < 3).all())  # then no category shows a third moment: all items count as one
    off, by = (values - values.mean(-1, keepdims=True), np.zeros_like(labels)) if alone else (rest, labels)
    skewness = np.where(variance > 0, _skewness(off / np.sqrt(some)[..., None], by), 0.0)
    scale = 1 / (count * np.sqrt(sizes * np.maximum(sizes - 1.0, 1.0)))
    return Moments(centres.mean(-1), np.sqrt(variance), np.maximum(df, 1.0), skewness, rest * scale[labels])


def _labels(count: int, strata: np.ndarray | None) -> np.ndarray:
    """Return each item's category by number [Q]; items all alone in theirs form a single one, as in `stratified_mean`."""
    labels = np.zeros(count, int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    return np.zeros(count, int) if labels.max() + 1 == count else labels


def _sums(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the sums of `values` [..., Q] in each category [..., K]."""
    return np.stack([values[..., labels == k].sum(-1) for k in range(labels.max() + 1)], -1)


def _skewness(rest: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the third cumulant of the mean of category means [...] of items whose mean has variance 1.

    g = (1/K^3) sum_k m3_k / n_k^2 with the unbiased m3 = n sum r^3 / ((n - 1)(n - 2)); categories of one or two items borrow the
    others' pooled one. Then g is drawn to 0 by max(0, 1 - v/g^2), v = (1/K^6) sum_k 6 n sigma_k^6 / ((n - 1)(n - 2) n_k^4) its
    variance for normal items, since small categories show much skewness by chance; sigma_k^6 without bias is
    s_k^6 / ((1 + 2/f)(1 + 4/f)) with f = n - 1. (positive-part James and Stein 1961; ours)

    Args:
        rest: items less their category's mean [..., Q]; labels: category of each [Q].
    """
    sizes = np.bincount(labels)
    known = sizes > 2
    n = np.where(known, sizes, 3).astype(float)
    count, freedom = len(sizes), np.where(known, sizes - 1, 0)
    weights = np.where(known, 1 / n**2, 0.0) + (1.0 / sizes[~known] ** 2).sum() * freedom / max(freedom.sum(), 1)
    weights = weights / count**3 * n / ((n - 1) * (n - 2))  # of the sums of cubes
    sixth = (_sums(rest**2, labels) / (n - 1)) ** 3 / ((1 + 2 / (n - 1)) * (1 + 4 / (n - 1)))
    found = (weights * _sums(rest**3, labels)).sum(-1)
    chance = (weights**2 * sixth * 6 * (n - 1) * (n - 2) / n).sum(-1)
    return found * np.maximum(0.0, 1 - chance / np.maximum(found**2, 1e-300))


def reach(skewness: np.ndarray | float, t: np.ndarray | float) -> np.ndarray:
    """Return how many standard errors the upper bound lies above the mean; for the lower one below it, pass minus the skewness.

    (3/L) [1 - (1 - L (t + L/6))^(1/3)]: Hall's cubic (1992) inverted at -t; t itself where L is 0.

    Args:
        skewness: third cumulant of the mean over its standard error cubed; t: quantile of Student's t.
    """
    skewness, t = np.asarray(skewness, float), np.asarray(t, float)
    some = np.where(np.abs(skewness) < FEW, FEW, skewness)
    return np.where(np.abs(skewness) < FEW, t, 3 / some * (1 - np.cbrt(1 - some * (t + some / 6))))


def trusted(skewness: np.ndarray | float, t: np.ndarray | float) -> np.ndarray:
    """Return where an upper bound of such a skewness can be trusted: 1 - L (t + L/6) of at least 1/8. (ours)

    Hall's cubic has slope (1 + L T/3)^2, which at the bound is that argument to the power 2/3. It is flat where the argument is
    0, and beyond that the bound rests on the far branch of a third-order expansion. At 1/8 the slope is 1/4. With X harmful items
    among many without any effect L = 1/sqrt(X), so that at 95 % (L < .50) this asks that about 4 be seen, where Hall's bound
    still is that of the exact Poisson count (Garwood 1936): 9.8 against 9.2 at X = 4, 10.8 against 10.5 at 5, 16.8 against 17.0
    at 10, but 13.6 against 7.8 at 3. A sample cannot show by itself that it missed all harm: see `visible_share`.
    """
    return 1 - np.asarray(skewness) * (np.asarray(t) + np.asarray(skewness) / 6) >= STEEPEST


def visible_share(n: int, level: float = LEVEL) -> float:
    """Return the smallest share of harmful items of which `n` items show at least one with probability `level`.

    1 - (1 - level)^(1/n), about 3/n at 95 %: .049 at 60 items, .025 at 120, .012 at 240, .005 at 600. Harm on a smaller share
    than that may be absent from the sample, which then looks as harmless as it can be; only more items help. (the rule of three,
    Hanley and Lippman-Hand 1983)
    """
    return float(1 - (1 - level) ** (1 / n))
