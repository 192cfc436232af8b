"""How far judges agree: Krippendorff's alpha, Spearman, kappa at a threshold, Bland-Altman, and thresholds carried over.

Alphas are computed from sums over items (closed forms of the pairwise definition), since the usual matrix of distinct values
has no room where scores are log-probability means with a hundred thousand different values. Intervals resample clusters
(questions where they are known, else items), with ranks and mean square spread taken from the full data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import student

RESAMPLES = 1000
EXTREME = 0.5  # of a 0-100 scale: a score this near an end counts as extreme


def alpha(
    item: np.ndarray,
    cluster: np.ndarray,
    score: np.ndarray,
    kind: str,
    *,
    threshold: float = 30.0,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return Krippendorff's alpha, 1 - D_o / D_e, over items that two or more raters scored. (Krippendorff 2011)

    D_o = 1/n sum_u sum_{i != j in u} d(x_i, x_j) / (m_u - 1), D_e the same over all pairs. interval: d = (x - y)^2; ordinal:
    the same on mid-ranks, to which Krippendorff's ordinal metric reduces; nominal: d = [x < threshold] differs.

    Args:
        item, cluster: indices from 0 of what each score belongs to [N]; score: finite [N].
        kind: nominal, ordinal or interval; threshold: used by nominal alone.
    """
    method = f"Krippendorff's alpha, {kind}" + (f" at {threshold:g}" if kind == "nominal" else "")
    kept = np.bincount(item)[item] >= 2 if len(item) else np.zeros(0, bool)
    items, first, place = np.unique(item[kept], return_index=True, return_inverse=True)
    if len(items) < 2:
        return undefined("fewer than two items have two scores", level=level, method=method, n=len(items))
    x = score[kept].astype(float)
    if kind == "nominal":
        x = (x < threshold).astype(float)
    elif kind == "ordinal":
        x = stats.rankdata(x)
    x = x - x.mean()  # a shift changes no distance, and keeps the squares small
    sizes = np.bincount(place).astype(float)
    sums, squares = np.bincount(place, weights=x), np.bincount(place, weights=x * x)
    observed = 2 * (sizes * squares - sums**2) / (sizes - 1)
    parts = _by_cluster(cluster[kept][first], observed, sizes, sums, squares)

    def value(observed: np.ndarray, n: np.ndarray, total: np.ndarray, square: np.ndarray) -> np.ndarray:
        expected = 2 * (n * square - total**2) / (n * (n - 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - (observed / n) / expected

    return _resampled(parts, value, method, len(items), level, seed, "all scores are the same")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two raters on the items both scored.

    Attributes:
        spearman, kappa: rank correlation; Cohen's kappa of `score < threshold`.
        agree: share of items on the same side of the threshold.
        bias: mean of a - b; limits: bias +- 1.96 standard deviations of a - b. (Bland and Altman 1986)
    """

    spearman: Estimate
    kappa: Estimate
    agree: Estimate
    bias: Estimate
    limits: tuple[float, float] | None


def pair(
    a: np.ndarray, b: np.ndarray, cluster: np.ndarray, *, threshold: float = 30.0, level: float = 0.95, seed: int = 0
) -> Pair:
    """Return how two raters' scores [N] of the same items agree; cluster [N] as indices."""
    n = len(a)
    if n < 2:
        none = undefined("fewer than two items have both scores", level=level, method="agreement", n=n)
        return Pair(none, none, none, none, None)
    ranks = [stats.rankdata(v) for v in (a, b)]
    ra, rb = (r - r.mean() for r in ranks)
    ones = np.ones(n)

    def correlation(
        k: np.ndarray, sa: np.ndarray, sb: np.ndarray, aa: np.ndarray, bb: np.ndarray, ab: np.ndarray
    ) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (k * ab - sa * sb) / np.sqrt((k * aa - sa * sa) * (k * bb - sb * sb))

    spearman = _resampled(
        _by_cluster(cluster, ones, ra, rb, ra * ra, rb * rb, ra * rb),
        correlation,
        "Spearman",
        n,
        level,
        seed,
        "a rater's scores are all the same",
    )
    low_a, low_b = a < threshold, b < threshold
    cells = _by_cluster(cluster, ones, low_a & low_b, low_a, low_b)
    name = f"Cohen's kappa at {threshold:g}"
    kappa = _resampled(cells, _kappa, name, n, level, seed, "both raters put all items on one side of the threshold")
    agree = _resampled(cells, lambda k, both, x, y: (k - x - y + 2 * both) / k, "share on the same side", n, level, seed, "")
    gap = a - b
    bias = _resampled(_by_cluster(cluster, ones, gap), lambda k, s: s / k, "mean difference", n, level, seed, "")
    reach = 1.96 * float(gap.std(ddof=1))
    centre = float(gap.mean())
    return Pair(spearman, kappa, agree, bias, (centre - reach, centre + reach))


def extreme_share(scores: np.ndarray) -> float | None:
    """Return the share of scores [N] at either end of 0-100, within half a point."""
    if not len(scores):
        return None
    return float(((scores <= EXTREME) | (scores >= 100 - EXTREME)).mean())


@dataclass(frozen=True, slots=True)
class Transfer:
    """B's threshold that does what A's does: `value`, with the interval of its resamples, and the kappa it then has with A."""

    value: Estimate
    kappa: float | None
    flagged: tuple[float, float]


def transfer(
    a: np.ndarray, b: np.ndarray, cluster: np.ndarray, threshold: float, *, level: float = 0.95, seed: int = 0
) -> Transfer:
    """Return the threshold for rater b under which it flags as many of the shared items [N] as rater a below `threshold`.

    It is the quantile of b's scores at a's flagged share, between the two neighbouring scores. (equipercentile linking; for
    one cut-off: ours)
    """
    n, method = len(a), f"threshold flagging as many as {threshold:g} does"
    share = float((a < threshold).mean()) if n else 0.0
    if n < 2 or share in (0.0, 1.0):
        why = "the first rater flags none or all of the shared items"
        return Transfer(undefined(why, level=level, method=method, n=n), None, (share, share))
    value = _matching(b, share)
    drawn = []
    _, place = np.unique(cluster, return_inverse=True)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(200):
        chosen = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        part = float((a[chosen] < threshold).mean())
        if 0 < part < 1:
            drawn.append(_matching(b[chosen], part))
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2]) if len(members) > 1 and drawn else (None, None)
    estimate = Estimate(
        value, None if low is None else float(low), None if high is None else float(high), level, method, n, len(members)
    )
    both, flagged = (a < threshold) & (b < value), float((b < value).mean())
    kappa = _kappa(*(np.array([float(v)]) for v in (n, both.sum(), (a < threshold).sum(), (b < value).sum())))[0]
    return Transfer(estimate, float(kappa) if np.isfinite(kappa) else None, (share, flagged))


def _matching(scores: np.ndarray, share: float) -> float:
    ordered = np.sort(scores)
    place = round(share * len(ordered))
    place = min(max(place, 1), len(ordered) - 1)
    return float((ordered[place - 1] + ordered[place]) / 2)


def _kappa(k: np.ndarray, both: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    observed = (k - a - b + 2 * both) / k
    chance = (a * b + (k - a) * (k - b)) / k**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (observed - chance) / (1 - chance)


def _by_cluster(cluster: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Return the sums of each row of values within each cluster [W, C]; clusters without rows are left out."""
    place = np.unique(cluster, return_inverse=True)[1]
    return np.stack([np.bincount(place, weights=v.astype(float)) for v in values])


def _resampled(
    parts: np.ndarray, value: Callable[..., np.ndarray], method: str, n: int, level: float, seed: int, flat: str
) -> Estimate:
    """Return `value` of the clusters' summed parts [W, C] with a percentile interval over resamples of clusters."""
    count = parts.shape[1]
    point = float(value(*parts.sum(1, keepdims=True))[0])
    if not np.isfinite(point):
        return undefined(flat, level=level, method=method, n=n, clusters=count)
    if count < 2:
        return Estimate(point, None, None, level, method, n, count, "one cluster has no spread between clusters")
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [value(*(parts @ _draw(rng, count, size).T)) for size in _chunks(RESAMPLES, max(1, 10_000_000 // count))]
    )
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(point, float(low), float(high), level, method, n, count)


def _draw(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Return how often each of `count` clusters is drawn in each of `size` resamples."""
    return np.stack([np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(size)])


def _chunks(total: int, most: int) -> list[int]:
    return [min(most, total - start) for start in range(0, total, most)]


def mean_over(hits: np.ndarray, cluster: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean of `hits` [N] with a percentile interval over resamples of clusters [N]."""
    if not len(hits):
        return undefined("there is nothing to take a share of", level=level, method="share")
    parts = _by_cluster(cluster, np.ones(len(hits)), hits)
    return _resampled(parts, lambda k, s: s / k, "share", len(hits), level, seed, "")


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the chance that a positive's score exceeds a negative's, ties counting half; None without both. (Mann-Whitney)"""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    ranks = stats.rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))


def auc_estimate(scores: np.ndarray, positive: np.ndarray, cluster: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the area under the curve with an interval over clusters [N].

    Every answer contributes (its placement among the other side - area) / its side's size; se^2 = C/(C-1) x the sum of the
    clusters' squared contributions; t on the logit scale. (DeLong and others 1988, clustered as in Obuchowski 1997)
    """
    method, n = "area under the curve, logit t over clusters", len(scores)
    value = auc(scores, positive)
    if value is None:
        return undefined("all verdicts are on one side", level=level, method=method, n=n)
    positive = positive.astype(bool)
    within = np.zeros(n)
    for side in (positive, ~positive):
        within[side] = stats.rankdata(scores[side])
    size, others = np.where(positive, positive.sum(), (~positive).sum()), np.where(positive, (~positive).sum(), positive.sum())
    below = (stats.rankdata(scores) - within) / others  # share of the other side that is below
    parts = (np.where(positive, below, 1 - below) - value) / size
    sums = _by_cluster(cluster, parts)[0]
    count = len(sums)
    if count < 2 or not 0 < value < 1:
        why = "one cluster has no spread between clusters" if count < 2 else "the two sides do not overlap"
        return Estimate(value, None, None, level, method, n, count, why)
    se = float(np.sqrt(count / (count - 1) * (sums**2).sum()))
    centre = np.log(value / (1 - value))
    reach = student(0.5 + level / 2, count - 1) * se / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-(centre + side * reach)))) for side in (-1, 1))
    return Estimate(value, low, high, level, method, n, count)
