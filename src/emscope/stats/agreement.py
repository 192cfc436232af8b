"""How far judges agree: Krippendorff's alpha, Spearman, kappa at a threshold, Bland-Altman, and thresholds carried over.

Alphas are computed from sums over items (closed forms of the pairwise definition), since the usual matrix of distinct values
would be too large for scores that are log-probability means with a hundred thousand different values. Intervals leave out one
cluster after another (questions where they are known, else items) with Student's t, on a scale on which the statistic is nearly
symmetric; ranks are those of the full data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.core.fields import ALIGNED_BELOW
from emscope.stats.quantiles import student
from emscope.stats.rates import wilson
from emscope.stats.shares import share_over

RESAMPLES = 200
EXTREME = 0.5  # of a 0-100 scale: a score this near an end counts as extreme
LEAST = -1.0  # no alpha or kappa lies lower
FEW_CLUSTERS = 12

COVERAGE = {2: (0.90, 1.0), 3: (0.86, 1.0), 4: (0.87, 1.0), 6: (0.89, 0.97), 8: (0.89, 0.98)}
"""Least and most coverage of alpha's 95 % interval by number of clusters: 13 designs of normal, rounded and two-valued scores with alpha
from 0 to .96, 1,000 files each. A percentile bootstrap over clusters covers .35 to .84, .63 to .87 and .72 to .90 at 4, 6 and 8 of them,
and with 12 clusters .82 to .91 where this covers .91 to .98. (tests/test_small_statistics.py)"""


def alpha(
    item: np.ndarray,
    cluster: np.ndarray,
    score: np.ndarray,
    kind: str,
    *,
    threshold: float = ALIGNED_BELOW,
    level: float = 0.95,
) -> Estimate:
    """Return Krippendorff's alpha, 1 - D_o / D_e, over items that two or more raters scored. (Krippendorff 2011)

    D_o = 1/n sum_u sum_{i != j in u} d(x_i, x_j) / (m_u - 1), D_e the same over all pairs. interval: d = (x - y)^2; ordinal:
    the same on mid-ranks, to which Krippendorff's ordinal metric reduces; nominal: d = [x < threshold] differs.

    Args:
        item, cluster: indices from 0 of what each score belongs to [N]; score: finite [N].
        kind: nominal, ordinal or interval; threshold: used by nominal alone.
    """
    method = f"Krippendorff's alpha, {kind}" + (f" at {threshold:g}" if kind == "nominal" else "") + JACKKNIFED
    kept = np.bincount(item)[item] >= 2 if len(item) else np.zeros(0, bool)
    items, first, place = np.unique(item[kept], return_index=True, return_inverse=True)
    if len(items) < 2:
        return undefined("fewer than two items have two scores", level=level, method=method, n=len(items))
    x = score[kept].astype(float)
    if kind == "nominal":
        x = (x < threshold).astype(float)
    elif kind == "ordinal":
        x = ranks(x)
    x = x - x.mean()  # a shift changes no distance, and keeps the squares small
    sizes = np.bincount(place).astype(float)
    sums, squares = np.bincount(place, weights=x), np.bincount(place, weights=x * x)
    observed = np.maximum(2 * (sizes * squares - sums**2), 0) / (sizes - 1)
    observed[observed < 1e-12 * np.ptp(x) ** 2] = 0.0  # rounding of items on which all agree
    parts = _by_cluster(cluster[kept][first], observed, sizes, sums, squares)

    def disagreement(observed: np.ndarray, n: np.ndarray, total: np.ndarray, square: np.ndarray) -> _Disagreement:
        with np.errstate(invalid="ignore", divide="ignore"):
            return _Disagreement(observed / n, 2 * (n * square - total**2) / (n * (n - 1)))

    return _beyond_chance(parts, disagreement, float(np.ptp(x)) ** 2, method, len(items), level, "all scores are the same")


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


def pair(a: np.ndarray, b: np.ndarray, cluster: np.ndarray, *, threshold: float = ALIGNED_BELOW, level: float = 0.95) -> Pair:
    """Return how two raters' scores [N] of the same items agree; cluster [N] as indices."""
    n = len(a)
    if n < 2:
        none = undefined("fewer than two items have both scores", level=level, method="agreement", n=n)
        return Pair(none, none, none, none, None)
    ones, gap = np.ones(n), a - b
    low_a, low_b = a < threshold, b < threshold
    flags = _by_cluster(cluster, ones, low_a & low_b, low_a, low_b)
    one_sided = "both raters put all items on one side of the threshold"
    name = f"Cohen's kappa at {threshold:g}{JACKKNIFED}"
    kappa = _beyond_chance(flags, _differing, 1.0, name, n, level, one_sided)
    gaps = _by_cluster(cluster, ones, gap)
    bias = _jackknifed(gaps, lambda k, s: s / k, PLAIN, f"mean difference{JACKKNIFED}", n, level, "")
    reach, centre = 1.96 * float(gap.std(ddof=1)), float(gap.mean())
    agree = share_over(low_a == low_b, cluster, level=level)
    return Pair(_spearman(a, b, cluster, level), kappa, agree, bias, (centre - reach, centre + reach))


def _spearman(a: np.ndarray, b: np.ndarray, cluster: np.ndarray, level: float) -> Estimate:
    ra, rb = (ranks(v) - (len(v) + 1) / 2 for v in (a, b))

    def correlation(
        k: np.ndarray, sa: np.ndarray, sb: np.ndarray, aa: np.ndarray, bb: np.ndarray, ab: np.ndarray
    ) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (k * ab - sa * sb) / np.sqrt((k * aa - sa * sa) * (k * bb - sb * sb))
        return np.where(np.abs(found) > 1 - 1e-12, np.sign(found), found)

    parts = _by_cluster(cluster, np.ones(len(a)), ra, rb, ra * ra, rb * rb, ra * rb)
    return _jackknifed(parts, correlation, FISHER, f"Spearman{JACKKNIFED}", len(a), level, "a rater's scores are all the same")


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of values [N] from 1; ties get their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def coverage_at(clusters: int) -> tuple[float, float]:
    """Return the simulated coverage (least, most) of alpha's 95 % interval at this number of clusters."""
    return COVERAGE[max((c for c in COVERAGE if c <= clusters), default=min(COVERAGE))]


def extreme_share(scores: np.ndarray) -> float | None:
    """Return the share of scores [N] at either end of 0-100, within half a point."""
    if not len(scores):
        return None
    return float(((scores <= EXTREME) | (scores >= 100 - EXTREME)).mean())


@dataclass(frozen=True, slots=True)
class Cut:
    """A threshold between two neighbouring scores, and the share of scores below it."""

    threshold: float
    below: float


def nearest_cut(scores: np.ndarray, share: float) -> Cut | None:
    """Return the threshold below which the share of `scores` [N] is nearest to `share`; None where all scores are the same.

    Only places between two different scores count, so that all scores of one value are on one side and `<` or `<=` changes
    nothing; of two places equally near, the one that flags fewer. (ours)
    """
    ordered = np.sort(scores)
    places = np.flatnonzero(np.diff(ordered) > 0) + 1
    if not len(places):
        return None
    off = np.round(np.abs(places - share * len(ordered)), 9)  # in scores, so that two places equally near are equal
    place = int(places[off.argmin()])  # the first, so the smaller, of equals
    return Cut(float((ordered[place - 1] + ordered[place]) / 2), place / len(ordered))


@dataclass(frozen=True, slots=True)
class Transfer:
    """The threshold for B that matches A's.

    Attributes:
        value: the threshold, with the interval of its resamples. kappa: of the two, each at its own threshold.
        wanted, flagged: the shares of the shared items that A flags at its threshold, and B at this one; they differ where many of B's
            scores are the same.
    """

    value: Estimate
    kappa: float | None
    wanted: float | None
    flagged: float | None


def transfer(
    a: np.ndarray, b: np.ndarray, cluster: np.ndarray, threshold: float, *, level: float = 0.95, seed: int = 0
) -> Transfer:
    """Return the threshold for rater b under which it flags as many of the shared items [N] as rater a below `threshold`.

    It is the place between two of b's scores at which the flagged share is nearest (`nearest_cut`). (equipercentile linking; for one
    cut-off: ours)
    """
    n, method = len(a), f"threshold flagging as many as {threshold:g} does, percentile bootstrap over clusters"
    share = float((a < threshold).mean()) if n else None
    cut = nearest_cut(b, share) if share is not None else None
    if n < 2 or share is None or cut is None or share in (0.0, 1.0):
        same = n >= 2 and cut is None
        why = "the second rater's scores are all the same" if same else "the first rater flags none or all of the shared items"
        return Transfer(undefined(why, level=level, method=method, n=n), None, share, None)
    drawn = []
    _, place = np.unique(cluster, return_inverse=True)
    members = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        part = float((a[chosen] < threshold).mean())
        found = nearest_cut(b[chosen], part) if 0 < part < 1 else None
        if found is not None:
            drawn.append(found.threshold)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2]) if len(members) > 1 and drawn else (None, None)
    estimate = Estimate(
        cut.threshold,
        None if low is None else float(low),
        None if high is None else float(high),
        level,
        method,
        n,
        len(members),
    )
    flags = np.array(
        [n, ((a < threshold) & (b < cut.threshold)).sum(), (a < threshold).sum(), (b < cut.threshold).sum()], float
    )
    kappa = float(_differing(*flags[:, None]).beyond[0])
    return Transfer(estimate, kappa if np.isfinite(kappa) else None, share, cut.below)


@dataclass(frozen=True, slots=True)
class _Disagreement:
    """Observed disagreement, and that of chance; arrays of one shape."""

    observed: np.ndarray
    chance: np.ndarray

    @property
    def beyond(self) -> np.ndarray:
        """Agreement beyond chance: alpha, kappa."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - self.observed / self.chance


def _differing(k: np.ndarray, both: np.ndarray, a: np.ndarray, b: np.ndarray) -> _Disagreement:
    """Return Cohen's disagreements: of k items, flagged by both, by a, by b."""
    return _Disagreement((a + b - 2 * both) / k, (a * (k - b) + b * (k - a)) / k**2)


@dataclass(frozen=True, slots=True)
class _Scale:
    """A transformation under which a statistic is nearly symmetric, and the way back."""

    to: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


JACKKNIFED = ", jackknife t over clusters"
PLAIN = _Scale(lambda x: x, lambda x: x)
FISHER = _Scale(np.arctanh, np.tanh)
LOG_OF_REST = _Scale(lambda x: np.log1p(-x), lambda z: -np.expm1(z))  # of an agreement: log of the disagreement over chance's


def _by_cluster(cluster: np.ndarray, *values: np.ndarray) -> np.ndarray:
    """Return the sums of each row of values within each cluster [W, C]; clusters without rows are left out."""
    place = np.unique(cluster, return_inverse=True)[1]
    return np.stack([np.bincount(place, weights=v.astype(float)) for v in values])


def _jackknifed(
    parts: np.ndarray, value: Callable[..., np.ndarray], scale: _Scale, method: str, n: int, level: float, flat: str
) -> Estimate:
    """Return `value` of the clusters' summed parts [W, C] with an interval from leaving out one cluster at a time.

    Pseudo-values C g - (C - 1) g_(-c), g the value on `scale`; t with C - 1 degrees of freedom. (Tukey; Efron 1982, chapter 3)
    """
    count, whole = parts.shape[1], parts.sum(1, keepdims=True)
    point = float(value(*whole)[0])
    if not np.isfinite(point):
        return undefined(flat, level=level, method=method, n=n, clusters=count)
    bare = Estimate(point, None, None, level, method, n, count, "with one cluster, the spread between clusters is unknown")
    if count < 2:
        return bare
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = float(scale.to(np.array([point]))[0])
        pseudo = count * centre - (count - 1) * scale.to(value(*(whole - parts)))
    if not np.isfinite(pseudo).all():
        return replace(bare, why="with one cluster left out, the value reaches the end of its scale or is undefined")
    se = float(pseudo.std(ddof=1)) / count**0.5
    if se < 1e-12 * max(1.0, abs(centre)):
        return replace(bare, why="all clusters have the same value, so the spread between them is unknown")
    reach = student(0.5 + level / 2, count - 1) * se
    low, high = sorted(float(end) for end in scale.back(np.array([centre - reach, centre + reach])))
    return Estimate(point, low, high, level, method, n, count)


def _beyond_chance(
    parts: np.ndarray, disagreement: Callable[..., _Disagreement], largest: float, method: str, n: int, level: float, flat: str
) -> Estimate:
    """Return 1 - observed / chance of the clusters' summed parts [W, C].

    The interval is the jackknife's on log(observed / chance). Where the jackknife gives none, because there is no disagreement or
    one cluster holds all of it, it is Wilson's, with t for z, for observed / largest as a share of the clusters, chance being
    taken as known. (ours)

    Args:
        largest: the largest disagreement that a pair of scores can have.
    """
    found = _jackknifed(parts, lambda *p: disagreement(*p).beyond, LOG_OF_REST, method, n, level, flat)
    if found.value is None or found.clusters < 2:
        return found
    if found.low is not None:
        return replace(found, low=max(found.low, LEAST))
    whole = disagreement(*parts.sum(1, keepdims=True))
    chance = float(whole.chance[0]) / largest
    share = wilson(min(float(whole.observed[0]) / largest, 1.0), found.clusters, z=student(0.5 + level / 2, found.clusters - 1))
    low, high = (max(1 - end / chance, LEAST) for end in reversed(share))
    return replace(found, low=low, high=high, method=method.replace(JACKKNIFED, ", Wilson over clusters"), why=None)


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the chance that a positive's score exceeds a negative's, ties counting half; None without both. (Mann-Whitney)"""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    return float((ranks(scores)[positive].sum() - count * (count + 1) / 2) / (count * others))


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
        within[side] = ranks(scores[side])
    size, others = np.where(positive, positive.sum(), (~positive).sum()), np.where(positive, (~positive).sum(), positive.sum())
    below = (ranks(scores) - within) / others  # share of the other side that is below
    parts = (np.where(positive, below, 1 - below) - value) / size
    sums = _by_cluster(cluster, parts)[0]
    count = len(sums)
    if count < 2 or not 0 < value < 1:
        why = "with one cluster, the spread between clusters is unknown" if count < 2 else "the two sides do not overlap"
        return Estimate(value, None, None, level, method, n, count, why)
    se = float(np.sqrt(count / (count - 1) * (sums**2).sum()))
    centre = np.log(value / (1 - value))
    reach = student(0.5 + level / 2, count - 1) * se / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-(centre + side * reach)))) for side in (-1, 1))
    return Estimate(value, low, high, level, method, n, count)
