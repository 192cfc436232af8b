"""How two numbers correlate within strata, and what pooling the strata would have shown.

Strata are combinations such as (model, data set); their levels differ for reasons of their own, so that a correlation over all rows
can be of any sign, whatever happens within them (Simpson 1951).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import atanh, sqrt, tanh

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.agreement import ranks
from emscope.stats.means import Mean
from emscope.stats.meta import meta_regression
from emscope.stats.quantiles import normal

FEWEST = 4  # rows of a stratum: Fisher's z has the variance 1 / (n - 3)
FEWEST_STRATA = 3
TOO_FEW = "two strata are too few for an interval over strata like these; each stratum has its own"
EXACT = 1 - 1e-12
PEARSON = "Pearson, Fisher's z"
SPEARMAN = "Spearman, Fisher's z (Bonett and Wright)"
SLOPE = "least-squares slope, t"
COMBINED = "Pearson over strata, random effects on Fisher's z (restricted maximum likelihood, Knapp-Hartung)"
MEAN_OF_RANKS = "mean of the strata's Spearman by rows less one, t over strata"
WITHIN = "slope within strata, jackknife over strata"


@dataclass(frozen=True, slots=True)
class Together:
    """How y varies with x in one stratum; `n` rows."""

    n: int
    pearson: Estimate
    spearman: Estimate
    slope: Estimate


@dataclass(frozen=True, slots=True)
class Combined:
    """The same over strata.

    Attributes:
        strata: how many contributed. tau: sd of Fisher's z between strata. differ_p: that the strata have one correlation.
        slopes_p: that they have one slope (F).
    """

    strata: int
    pearson: Estimate
    tau: float | None
    differ_p: float | None
    spearman: Estimate
    slope: Estimate
    slopes_p: float | None


@dataclass(frozen=True, slots=True)
class Mixed:
    """The result when strata are pooled: r over all rows, and r of the strata's means; None where undefined."""

    rows: float | None
    means: float | None


def together(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Together:
    """Return correlations and slope of one stratum's x and y [N]; each undefined, with the reason, where the rows do not determine it."""
    return Together(len(x), pearson(x, y, level=level), spearman(x, y, level=level), slope(x, y, level=level))


def pearson(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return Pearson's r of x and y [N] with Fisher's interval, tanh(atanh r +- z / sqrt(n - 3)). (Fisher 1921)"""
    return _fisher(plain_r(x, y), len(x), 1.0, level, PEARSON, "the rows lie on a line")


def spearman(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return Spearman's rho of x and y [N]; its interval as Fisher's with the variance (1 + rho^2 / 2) / (n - 3). (Bonett and Wright 2000)"""
    rho = plain_r(ranks(np.asarray(x, float)), ranks(np.asarray(y, float)))
    inflation = 1.0 if rho is None else 1 + rho * rho / 2
    return _fisher(rho, len(x), inflation, level, SPEARMAN, "all ranks agree")


def slope(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the least-squares slope of y on x [N] with its t interval."""
    n = len(x)
    if n < 2 or np.ptp(x) == 0:
        return undefined("x does not vary", level=level, method=SLOPE, n=n, clusters=n)
    dx, dy = x - x.mean(), y - y.mean()
    xx = float(dx @ dx)
    b = float(dx @ dy) / xx
    if n < 3:
        return Estimate(b, None, None, level, SLOPE, n, n, "two rows leave no degrees of freedom for the error")
    rest = dy - b * dx
    return Mean(b, sqrt(float(rest @ rest) / (n - 2) / xx), n - 2, n).estimate(level, SLOPE)


def combined(strata: list[tuple[np.ndarray, np.ndarray]], *, level: float = 0.95) -> Combined:
    """Return what strata show together, of those with `FEWEST` rows or more whose x and y vary.

    Pearson: Fisher's z of each, less its bias r / (2 (n - 1)) (Hotelling 1953), as a random-effects mean with variances 1 / (n - 3).
    Spearman: the mean over strata with weights n - 1. Slope: sum s_xy / sum s_xx of deviations from the strata's means.

    Args:
        strata: x and y [N_k] of each.
    """
    told = [(x, y) for x, y in strata if len(x) >= FEWEST and plain_r(x, y) is not None]
    if not told:
        none = undefined(f"no stratum has {FEWEST} rows that vary", level=level, method=COMBINED)
        return Combined(0, none, None, None, none, none, None)
    alone = together(*told[0], level=level)
    if len(told) == 1:
        return Combined(1, alone.pearson, None, None, alone.spearman, alone.slope, None)
    r, tau, differ_p = _combined_pearson(told, level)
    rho, b = _combined_spearman(told, level), _within_slope(told, level)
    if len(told) < FEWEST_STRATA:  # with one degree of freedom an interval reaches from one end to the other
        r, rho, b = (replace(one, low=None, high=None, why=TOO_FEW) if one.value is not None else one for one in (r, rho, b))
    return Combined(len(told), r, tau, differ_p, rho, b, _slopes_p(told))


def mixed(strata: list[tuple[np.ndarray, np.ndarray]]) -> Mixed:
    """Return r over all rows and over the strata's means, x and y [N_k] of each stratum."""
    x, y = (np.concatenate(side) for side in zip(*strata, strict=True))
    means = np.array([(a.mean(), b.mean()) for a, b in strata]).T
    return Mixed(plain_r(x, y), plain_r(*means) if len(strata) > 2 else None)


def plain_r(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return Pearson's r of x and y [N]; None where one of them does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _fisher(r: float | None, n: int, inflation: float, level: float, method: str, exact: str) -> Estimate:
    if r is None:
        return undefined("x or y does not vary", level=level, method=method, n=n, clusters=n)
    if n < FEWEST:
        return Estimate(r, None, None, level, method, n, n, f"an interval needs {FEWEST} rows")
    if abs(r) > EXACT:
        return Estimate(r, None, None, level, method, n, n, f"{exact}, so the spread is unknown")
    reach = normal(0.5 + level / 2) * sqrt(inflation / (n - 3))
    return Estimate(r, tanh(atanh(r) - reach), tanh(atanh(r) + reach), level, method, n, n)


def _combined_pearson(strata: list[tuple[np.ndarray, np.ndarray]], level: float) -> tuple[Estimate, float | None, float | None]:
    r = np.array([plain_r(x, y) for x, y in strata], float)
    n = np.array([len(x) for x, _ in strata])
    rows = int(n.sum())
    if (np.abs(r) > EXACT).any():
        return undefined("a stratum's rows lie on a line", level=level, method=COMBINED, n=rows, clusters=len(r)), None, None
    found = meta_regression(np.arctanh(r) - r / (2 * (n - 1)), 1 / np.sqrt(n - 3), np.ones((len(r), 1)))
    low, high = found.interval(0, level)
    value = tanh(float(found.coefficients[0]))
    return Estimate(value, tanh(low), tanh(high), level, COMBINED, rows, len(r)), found.tau, found.heterogeneity_p


def _combined_spearman(strata: list[tuple[np.ndarray, np.ndarray]], level: float) -> Estimate:
    rho = np.array([plain_r(ranks(x), ranks(y)) for x, y in strata], float)
    n = np.array([len(x) for x, _ in strata])
    weights = (n - 1) / (n - 1).sum()
    value, count = float(weights @ rho), len(rho)
    if np.ptp(rho) == 0:
        return Estimate(value, None, None, level, MEAN_OF_RANKS, int(n.sum()), count, "it is the same in all strata")
    se = sqrt(count / (count - 1) * float((weights**2) @ (rho - value) ** 2))
    found = Mean(value, se, count - 1, int(n.sum())).estimate(level, MEAN_OF_RANKS)
    low, high = (min(max(end or 0.0, -1.0), 1.0) for end in (found.low, found.high))
    return Estimate(value, low, high, level, MEAN_OF_RANKS, int(n.sum()), count)


def _within_slope(strata: list[tuple[np.ndarray, np.ndarray]], level: float) -> Estimate:
    """Return sum s_xy / sum s_xx over strata; se^2 = (K - 1)/K sum (b without stratum k - b)^2, t with K - 1. (jackknife, Tukey 1958)"""
    xx, xy, _ = _sums(strata)
    count = len(xx)
    b = xy.sum() / xx.sum()
    without = (xy.sum() - xy) / (xx.sum() - xx)
    se = sqrt((count - 1) / count * float(((without - b) ** 2).sum()))
    rows = sum(len(x) for x, _ in strata)
    reach = Mean(float(b), se, count - 1, rows).estimate(level, WITHIN)
    return Estimate(reach.value, reach.low, reach.high, level, WITHIN, rows, count)


def _slopes_p(strata: list[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Return p of one slope for all strata against one for each, by F."""
    xx, xy, yy = _sums(strata)
    count, rows = len(xx), sum(len(x) for x, _ in strata)
    df = rows - 2 * count
    own = float((yy - xy**2 / xx).sum())
    shared = float(yy.sum() - xy.sum() ** 2 / xx.sum())
    if df < 1 or own <= 0:
        return None
    return float(special.fdtrc(count - 1, df, max(shared - own, 0.0) / (count - 1) / (own / df)))


def _sums(strata: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return s_xx, s_xy and s_yy of each stratum [K]."""
    deviations = [(x - x.mean(), y - y.mean()) for x, y in strata]
    xx, xy, yy = np.array([(a @ a, a @ b, b @ b) for a, b in deviations]).T
    return xx, xy, yy
