"""An effect against the logarithm of model size over published or own models, by meta-regression within families.

Models are few, and families differ for other reasons: each has its own intercept, and no line is drawn through three models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice, permutations, product
from math import atanh, comb, factorial, prod, sqrt, tanh

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.agreement import ranks
from emscope.stats.meta import coefficient, meta_regression
from emscope.stats.quantiles import normal, student
from emscope.stats.within_strata import plain_r

FREEDOM = 2  # of the line: four models of one family, one more for each further family
PERMUTATIONS = 2000
LEFT_OUT = 3  # models at most, at a time
MOST_SUBSETS = 1000
GRID = 400
SLOPE = "slope per decade of parameters within families, random effects (restricted maximum likelihood, Knapp-Hartung)"
PEARSON = "Pearson within families, Fisher's z"


@dataclass(frozen=True, slots=True)
class Models:
    """N models: log10 of their size, effect with standard error, family by index, and a further covariate or None [N]."""

    log_size: np.ndarray
    effect: np.ndarray
    se: np.ndarray
    family: np.ndarray
    covariate: np.ndarray | None = None

    def of(self, kept: np.ndarray) -> Models:
        """Return some of the models."""
        other = None if self.covariate is None else self.covariate[kept]
        return Models(self.log_size[kept], self.effect[kept], self.se[kept], self.family[kept], other)

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the line: models less families, slope and covariate."""
        return len(self.effect) - len(np.unique(self.family)) - 1 - (self.covariate is not None)


@dataclass(frozen=True, slots=True)
class WithoutSome:
    """The line with `count` models left out, each set of them in turn.

    Attributes:
        sets: how many. slope, pearson: smallest and largest. other_sign: sets whose slope has the other sign than that of all models.
        at_lowest, at_highest: the models left out where the slope is smallest and largest, by index.
    """

    count: int
    sets: int
    slope: tuple[float, float]
    pearson: tuple[float, float]
    other_sign: int
    at_lowest: tuple[int, ...]
    at_highest: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizeLine:
    """How an effect varies with size.

    Attributes:
        slope: per decade; p: two-sided. tau: sd of models around the line beyond their errors; differ_p: that there is none.
        pearson: of deviations from the families' means. spearman: of one family alone, else None.
        critical_r: what |r| must exceed at p .05. permutation_p: the slope's, sizes permuted within families; None with a covariate.
        permutations: how many there were; all of them where `exact`.
    """

    slope: Estimate
    p: float | None
    tau: float | None
    differ_p: float | None
    pearson: Estimate
    spearman: float | None
    critical_r: float | None
    permutation_p: float | None
    permutations: int
    exact: bool
    without: tuple[WithoutSome, ...]


def size_line(models: Models, *, level: float = 0.95, seed: int = 0) -> SizeLine:
    """Return the line through some models, with what it rests on; undefined, with the reason, where they are too few."""
    why = _too_few(models)
    n, families = len(models.effect), len(np.unique(models.family))
    if why:
        none = undefined(why, level=level, method=SLOPE, n=n, clusters=n)
        return SizeLine(
            none, None, None, None, undefined(why, level=level, method=PEARSON, n=n), None, None, None, 0, False, ()
        )
    columns = _columns(models)
    found = meta_regression(models.effect, models.se, columns)
    low, high = found.interval(0, level)
    slope = Estimate(float(found.coefficients[0]), low, high, level, SLOPE, n, n)
    p, count, exact = (None, 0, False) if models.covariate is not None else _permutation_p(models, seed)
    return SizeLine(
        slope,
        found.p(0),
        found.tau,
        found.heterogeneity_p,
        _pearson(models, level),
        plain_r(ranks(models.log_size), ranks(models.effect)) if families == 1 else None,
        critical_r(models.freedom),
        p,
        count,
        exact,
        tuple(w for k in range(1, LEFT_OUT + 1) if (w := _without(models, k, float(found.coefficients[0]))) is not None),
    )


def critical_r(df: int, p: float = 0.05) -> float:
    """Return the |r| with this two-sided p at `df` degrees of freedom, N - 2 for N models of one family: t / sqrt(t^2 + df)."""
    t = student(1 - p / 2, df)
    return float(t / sqrt(t * t + df))


def power_of_r(df: int, rho: float, p: float = 0.05) -> float:
    """Return the chance that |r| exceeds `critical_r`, of normal pairs with correlation `rho`.

    Given the x, t is noncentral with noncentrality rho / sqrt(1 - rho^2) times sqrt(sum (x - mean)^2), whose square is chi^2 with df + 1;
    the mean over its quantiles. (Anderson 2003, chapter 4)
    """
    t = student(1 - p / 2, df)
    squares = special.chdtri(df + 1, 1 - (np.arange(GRID) + 0.5) / GRID)
    shift = rho / sqrt(1 - rho * rho) * np.sqrt(squares)
    return float((1 - special.nctdtr(df, shift, t) + special.nctdtr(df, shift, -t)).mean())


def _too_few(models: Models) -> str:
    n, families = len(models.effect), len(np.unique(models.family))
    if models.freedom < FREEDOM:
        of = "" if families == 1 else f" of {families} families"
        reach = f" (|r| would have to exceed {critical_r(models.freedom):.3f})" if models.freedom > 0 else ""
        return f"{n} models{of} are too few for a line{reach}"
    if not np.ptp(models.log_size - _family_means(models.log_size, models.family)):
        return "no family has models of two sizes"
    if np.linalg.matrix_rank(_columns(models)) < _columns(models).shape[1]:
        return "size and the covariate cannot be told apart"
    return ""


def _columns(models: Models) -> np.ndarray:
    """Return log size, the covariate where there is one, and an intercept for each family [N, P]."""
    dummies = (models.family[:, None] == np.unique(models.family)).astype(float)
    other = [] if models.covariate is None else [models.covariate]
    return np.column_stack([models.log_size, *other, dummies])


def _family_means(values: np.ndarray, family: np.ndarray) -> np.ndarray:
    labels = np.unique(family, return_inverse=True)[1]
    return (np.bincount(labels, values) / np.bincount(labels))[labels]


def _r_within(models: Models) -> float | None:
    x, y = (v - _family_means(v, models.family) for v in (models.log_size, models.effect))
    return plain_r(x, y)


def _pearson(models: Models, level: float) -> Estimate:
    """Return r within families with Fisher's interval at variance 1 / (df - 1), as of a partial correlation."""
    n, df = len(models.effect), len(models.effect) - len(np.unique(models.family)) - 1
    r = _r_within(models)
    if r is None:
        return undefined("size or effect does not vary", level=level, method=PEARSON, n=n, clusters=n)
    if abs(r) > 1 - 1e-12:
        return Estimate(r, None, None, level, PEARSON, n, n, "the models lie exactly on a line, so the spread is unknown")
    reach = normal(0.5 + level / 2) / sqrt(df - 1)
    return Estimate(r, tanh(atanh(r) - reach), tanh(atanh(r) + reach), level, PEARSON, n, n)


def _permutation_p(models: Models, seed: int) -> tuple[float, int, bool]:
    """Return p of the slope's |t| among permutations of effects over sizes within families, how many there were, and whether all.

    Not all: the one observed is counted in. (Higgins and Thompson 2004; Phipson and Smyth 2010)
    """
    places = [np.flatnonzero(models.family == f) for f in np.unique(models.family)]
    exact = prod(factorial(len(p)) for p in places) <= PERMUTATIONS
    orders = _all_orders(places) if exact else _some_orders(places, np.random.default_rng(seed))
    columns = np.broadcast_to(_columns(models), (len(orders), *_columns(models).shape))
    b, se = coefficient(models.effect[orders], models.se[orders], columns, 0)
    t = np.abs(b) / np.where(se > 0, se, 1e-300)
    seen = t[0] * (1 - 1e-9)
    return float((t >= seen).mean()), len(orders), exact


def _all_orders(places: Sequence[np.ndarray]) -> np.ndarray:
    """Return every order of the models within their families, the given one first [B, N]."""
    total = sum(len(p) for p in places)
    found = []
    for each in product(*(permutations(p.tolist()) for p in places)):
        order = np.arange(total)
        for place, moved in zip(places, each, strict=True):
            order[place] = moved
        found.append(order)
    return np.array(found)


def _some_orders(places: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the given order and random ones within families [B, N]."""
    orders = np.tile(np.arange(sum(len(p) for p in places)), (PERMUTATIONS, 1))
    for place in places:
        orders[1:, place] = rng.permuted(np.tile(place, (PERMUTATIONS - 1, 1)), axis=1)
    return orders


def _without(models: Models, count: int, slope: float) -> WithoutSome | None:
    """Return the line without each set of `count` models, of `MOST_SUBSETS` of them at most; None where no set leaves enough for a line."""
    n = len(models.effect)
    sets, step = combinations(range(n), count), max(1, -(-comb(n, count) // MOST_SUBSETS))
    alike: dict[
        tuple[int, ...], list[tuple[tuple[int, ...], Models]]
    ] = {}  # by the families that are left, which have the same columns
    for left in islice(sets, 0, None, step):
        rest = models.of(np.setdiff1d(np.arange(n), left))
        if not _too_few(rest):
            alike.setdefault(tuple(np.unique(rest.family)), []).append((left, rest))
    found = []
    for some in alike.values():
        effect, se = (np.array([getattr(rest, name) for _, rest in some]) for name in ("effect", "se"))
        b, _ = coefficient(effect, se, np.array([_columns(rest) for _, rest in some]), 0)
        found += [(float(x), _r_within(rest) or 0.0, left) for x, (left, rest) in zip(b, some, strict=True)]
    if not found:
        return None
    slopes, r = [f[0] for f in found], [f[1] for f in found]
    lowest, highest = min(found), max(found)
    return WithoutSome(
        count,
        len(found),
        (min(slopes), max(slopes)),
        (min(r), max(r)),
        sum(s * slope < 0 for s in slopes),
        lowest[2],
        highest[2],
    )
