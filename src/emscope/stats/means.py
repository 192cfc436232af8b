"""Means over items with categories as fixed strata, and ratios of paired means.

The item is the unit of resampling ("questions like these"); categories weigh equally whatever their size. Intervals are
closed forms (t with Satterthwaite degrees of freedom, Fieller), so that a number does not depend on a resampling seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import normal, student, student_tail

STRATIFIED = "mean of category means, stratified t over items"
FIELLER = "ratio of paired means over items, Fieller"
STRATIFIED_FIELLER = "ratio of means of category means over items, Fieller"
SEPARATE = "ratio of means over two sets of items, Fieller"
WELCH = "difference of means over two sets of runs, Welch"


@dataclass(frozen=True, slots=True)
class Mean:
    """A stratified mean: `value`, its standard error and degrees of freedom, over `n` items.

    Attributes:
        shared: the part of `se` that all items have in common, so that more of them do not shrink it.
        df_alone: degrees of freedom of the rest of `se`; None where there is no such part.
    """

    value: float
    se: float
    df: float
    n: int
    shared: float = 0.0
    df_alone: float | None = None

    def reach(self, level: float) -> float:
        """Return how far the one-sided bound at `level` lies from the value; an error that is added never brings it nearer."""
        found = student(level, self.df) * self.se
        if self.df_alone is None:
            return found
        return max(found, student(level, self.df_alone) * float(np.sqrt(max(self.se**2 - self.shared**2, 0.0))))

    def bound(self, level: float, side: int) -> float:
        """Return the one-sided `level` bound; `side` -1 lower, +1 upper."""
        return float(self.value + side * self.reach(level))

    def confidence_above(self, threshold: float) -> float:
        """Return the largest level at which the one-sided lower bound exceeds `threshold`; that of the upper one below it is 1 less this."""
        gap = self.value - threshold
        if not self.se > 0:
            return 0.5 if gap == 0 else float(gap > 0)
        found = 1 - student_tail(gap / self.se, self.df)
        alone = float(np.sqrt(max(self.se**2 - self.shared**2, 0.0)))
        if self.df_alone is None or alone == 0:
            return found
        return float(
            sorted((0.5, found, 1 - student_tail(gap / alone, self.df_alone)))[1]
        )  # the less sure of the two; .5 between them

    def estimate(self, level: float = 0.95, method: str = STRATIFIED) -> Estimate:
        """Return the two-sided interval."""
        reach = self.reach(0.5 + level / 2)
        return Estimate(self.value, self.value - reach, self.value + reach, level, method, self.n, self.n)

    def with_error(self, errors: Sequence[tuple[float, float]]) -> Mean:
        """Return the mean with further independent errors that all items share, each (standard deviation, degrees of freedom).

        Variances add; degrees of freedom after Satterthwaite (1946).
        """
        parts = [(self.se**2, self.df), *((sd**2, df) for sd, df in errors)]
        total = sum(part for part, _ in parts)
        if not errors or not total > 0:
            return self
        df = 1 / sum((part / total) ** 2 / df for part, df in parts)
        shared = self.shared**2 + sum(part for part, _ in parts[1:])
        alone = self.df if self.df_alone is None else self.df_alone
        return replace(self, se=float(np.sqrt(total)), df=float(df), shared=float(np.sqrt(shared)), df_alone=alone)

    def items_to_settle(self, threshold: float, level: float) -> int | None:
        """Return about how many items would put the one-sided bound on one side of `threshold` with a chance of 80 %, if the truth is this value.

        (se^2 - shared^2) n / ((gap / (z_level + z_.8))^2 - shared^2); None where no number does.
        """
        gap = abs(self.value - threshold)
        needed = (gap / (normal(level) + normal(0.80))) ** 2 - self.shared**2
        if needed <= 0:
            return None
        return max(self.n + 1, int(np.ceil(self.n * (self.se**2 - self.shared**2) / needed)))


def stratified_mean(values: np.ndarray, strata: np.ndarray | None = None) -> Mean:
    """Return the mean of category means of `values` [Q] with its standard error.

    mean = (1/K) sum_k mean_k, se^2 = (1/K^2) sum_k s_k^2 / n_k, df after Satterthwaite. Categories with a single item
    borrow the pooled variance of the others. (stratified sampling, Cochran 1977, section 5; equal weights: ours)

    Args:
        values: one number per item [Q]; strata: category of each [Q], None for a single one.

    Raises:
        ValueError: fewer than 2 values, or values that are not finite.
    """
    values = np.asarray(values, float)
    labels = _labels(values, strata)
    groups = [values[labels == k] for k in range(labels.max() + 1)]
    spread = np.array([g.var(ddof=1) if len(g) > 1 else np.nan for g in groups])
    return _mean(values, np.array([len(g) for g in groups], float), np.array([g.mean() for g in groups]), spread)


def stratified_means(values: np.ndarray, strata: np.ndarray | None = None) -> list[Mean]:
    """Return `stratified_mean` of each row of `values` [C, Q], whose items and categories are the same."""
    values = np.asarray(values, float)
    labels = _labels(values, strata)
    groups = [np.ascontiguousarray(values[:, labels == k]) for k in range(labels.max() + 1)]  # [C, n_k]
    sizes = np.array([g.shape[1] for g in groups], float)
    centres = np.stack([g.mean(1) for g in groups], 1)  # [C, K]
    alone = np.full(len(values), np.nan)
    spreads = np.stack([g.var(1, ddof=1) if g.shape[1] > 1 else alone for g in groups], 1)
    return [_mean(row, sizes, centre, spread) for row, centre, spread in zip(values, centres, spreads, strict=True)]


def _labels(values: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Return the category of each item by number [Q], where `values` [..., Q] can have a mean."""
    size = values.shape[-1]
    if size < 2 or not np.isfinite(values).all():
        raise ValueError("a mean with an interval needs at least two finite values")
    return np.zeros(size, int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]


def _mean(values: np.ndarray, sizes: np.ndarray, centres: np.ndarray, spread: np.ndarray) -> Mean:
    """Return the stratified mean of `values` [Q] from sizes, means and variances of categories [K]; nan: of a single item."""
    if np.isnan(spread).all():
        spread = np.full(len(sizes), values.var(ddof=1))
        freedom = np.full(len(sizes), (len(values) - 1) / len(sizes))
    else:
        known = sizes > 1
        pooled = float((spread[known] * (sizes[known] - 1)).sum() / (sizes[known] - 1).sum())
        freedom = np.where(known, sizes - 1, (sizes[known] - 1).sum())
        spread = np.where(known, spread, pooled)
    parts = spread / sizes
    total = parts.sum()
    shares = parts / total if total > 0 else parts  # before squaring, so that tiny variances do not underflow
    df = float(1 / (shares**2 / freedom).sum()) if total > 0 else float(len(values) - len(sizes))
    return Mean(float(centres.mean()), float(np.sqrt(total)) / len(sizes), max(df, 1.0), len(values))


def mean_estimate(values: np.ndarray, strata: np.ndarray | None = None, *, level: float = 0.95) -> Estimate:
    """Return `stratified_mean` as an Estimate; undefined, with the reason, for fewer than two values."""
    if len(values) < 2:
        return undefined("fewer than two items", level=level, method=STRATIFIED, n=len(values), clusters=len(values))
    return stratified_mean(values, strata).estimate(level)


def ratio_estimate(top: np.ndarray, bottom: np.ndarray, strata: np.ndarray | None = None, *, level: float = 0.95) -> Estimate:
    """Return mean(top) / mean(bottom) over paired items [Q] with Fieller's interval; the means as in `stratified_mean`.

    Undefined where the bottom's mean is not clearly above zero (its own two-sided interval holds zero): the interval
    would be unbounded. (Fieller 1954)
    """
    top, bottom = np.asarray(top, float), np.asarray(bottom, float)
    n = len(top)
    if n < 2:
        return undefined("fewer than two items", level=level, method=FIELLER, n=n, clusters=n)
    if strata is None:
        cov = np.cov(top, bottom, ddof=1) / n
        return _fieller((float(top.mean()), float(bottom.mean())), cov, n - 1, level, FIELLER, n)
    means = stratified_mean(top, strata), stratified_mean(bottom, strata)
    # the covariance of two such means from the variance of the mean of their sum
    crossed = (stratified_mean(top + bottom, strata).se ** 2 - means[0].se ** 2 - means[1].se ** 2) / 2
    cov = np.array([[means[0].se ** 2, crossed], [crossed, means[1].se ** 2]])
    df = min(m.df for m in means)
    return _fieller((means[0].value, means[1].value), cov, df, level, STRATIFIED_FIELLER, n)


def difference_of_means(left: np.ndarray, right: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return mean(left) - mean(right) of two separate sets of runs [A], [B] with Welch's interval.

    Runs are the unit of resampling here ("seeds like these"); with two runs a side the interval is very wide, as it should be.
    Undefined for fewer than two a side, and without an interval where neither side varies.
    """
    a, b = np.asarray(left, float), np.asarray(right, float)
    n = len(a) + len(b)
    if min(len(a), len(b)) < 2:
        return undefined("fewer than two runs on a side", level=level, method=WELCH, n=n, clusters=n)
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    value, total = float(a.mean() - b.mean()), float(parts.sum())
    if total == 0:
        return Estimate(value, None, None, level, WELCH, n, n, "the runs do not vary on either side")
    shares = parts / total
    df = float(1 / (shares**2 / [len(a) - 1, len(b) - 1]).sum())
    return Mean(value, total**0.5, df, n).estimate(level, WELCH)


def ratio_of_means(top: Mean, bottom: Mean, *, level: float = 0.95) -> Estimate:
    """Return top / bottom of means over two separate sets of items, with Fieller's interval.

    Undefined as `ratio_estimate`; the degrees of freedom are the smaller of the two, which errs on the wide side.
    """
    cov = np.diag([top.se**2, bottom.se**2])
    return _fieller((top.value, bottom.value), cov, min(top.df, bottom.df), level, SEPARATE, top.n + bottom.n)


def _fieller(means: tuple[float, float], cov: np.ndarray, df: float, level: float, method: str, n: int) -> Estimate:
    """Return the ratio of two means [2] with covariance [2, 2]."""
    a, b = means
    t = student(0.5 + level / 2, df)
    square = b * b - t * t * cov[1, 1]
    if b <= 0 or square <= 0:
        return undefined(f"the denominator ({b:.3g}) is not clearly above 0", level=level, method=method, n=n, clusters=n)
    cross = a * b - t * t * cov[0, 1]
    root = float(np.sqrt(max(cross * cross - square * (a * a - t * t * cov[0, 0]), 0.0)))
    return Estimate(a / b, float((cross - root) / square), float((cross + root) / square), level, method, n, n)
