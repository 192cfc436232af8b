"""Two groups compared at equal values of a covariate, within strata, where both groups have such values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.means import Mean
from emscope.stats.quantiles import student_tail

MATCHED = "difference at equal covariate within strata, analysis of covariance on the common support, HC3, t"
FREEDOM = 2  # the fewest degrees of freedom that an interval is given with
ROUNDING = 1e-9
LEAST_LEFT = 0.01  # of a row's variance beside its own pull on the fit


@dataclass(frozen=True, slots=True)
class Matched:
    """left - right at equal x.

    Attributes:
        difference: with interval; p: two-sided, None without an interval.
        left, right: rows that were compared; support: their least and largest x, None where there are none.
        curved_p, slopes_p: p that y is linear in x there, and that both sides share one slope; None where it cannot be tested.
    """

    difference: Estimate
    p: float | None
    left: int
    right: int
    support: tuple[float, float] | None
    curved_p: float | None
    slopes_p: float | None


def matched(x: np.ndarray, y: np.ndarray, stratum: np.ndarray, left: np.ndarray, *, level: float = 0.95) -> Matched:
    """Return the difference of y between rows that are `left` and the others, at equal x within strata.

    Each stratum keeps the rows whose x lies where both sides' ranges overlap. Over them y = a_stratum + b x + d [left], least
    squares; d is the difference. Its standard error is HC3's: sides of unequal size and noise are usual, and the textbook's covers .77
    to .79 there where HC3's covers .89 to .90 (and .97 to .99 where they are equal). (analysis of covariance; MacKinnon and White 1985;
    the restriction to the common support: ours)

    Args:
        x, y: [N]; stratum: labels [N]; left: true or false [N].
    """
    kept = _common(x, stratum, left)
    a, b = int((kept & left).sum()), int((kept & ~left).sum())
    if not a or not b:
        none = undefined(
            "the two sides' ranges of the covariate do not overlap in any stratum", level=level, method=MATCHED, n=len(x)
        )
        return Matched(none, None, 0, 0, None, None, None)
    x, y, side, stratum = x[kept], y[kept], left[kept].astype(float), stratum[kept]
    support = float(x.min()), float(x.max())
    labels = np.unique(stratum, return_inverse=True)[1]
    dx = _within(x, labels)
    columns = [_within(side, labels)] + ([dx] if _varies(dx, x) else [])
    free = len(x) - (labels.max() + 1) - len(columns)
    base = _Fit.of(_within(y, labels), columns, free, 1 / np.bincount(labels)[labels])
    if base is None or free < FREEDOM:
        none = undefined(
            f"only {a} and {b} rows lie where the covariate's ranges overlap, which is too few",
            level=level,
            method=MATCHED,
            n=a + b,
        )
        return Matched(none, None, a, b, support, None, None)
    difference = Mean(base.value, base.se, free, a + b).estimate(level, MATCHED)
    p = 2 * student_tail(abs(base.value) / base.se, free) if base.se > 0 else None
    squares, product = _within(dx**2, labels), _within(dx * (side - 0.5), labels)
    return Matched(difference, p, a, b, support, base.p_of_more(squares), base.p_of_more(product))


def _common(x: np.ndarray, stratum: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return which rows lie in the overlap of both sides' ranges in their stratum, where each side has a row in it [N]."""
    kept = np.zeros(len(x), bool)
    for name in np.unique(stratum):
        here = stratum == name
        one, other = x[here & left], x[here & ~left]
        if len(one) and len(other):
            inside = here & (x >= max(one.min(), other.min())) & (x <= min(one.max(), other.max()))
            if (inside & left).any() and (inside & ~left).any():
                kept |= inside
    return kept


@dataclass(frozen=True, slots=True)
class _Fit:
    """Least squares of y on columns of deviations: the first coefficient with its HC3 standard error, and what a further column would add.

    Attributes:
        free: degrees of freedom; pull: each row's leverage by its stratum's mean [N]; rest: sum of squared residuals.
    """

    y: np.ndarray
    columns: list[np.ndarray]
    free: int
    pull: np.ndarray
    value: float
    se: float
    rest: float

    @classmethod
    def of(cls, y: np.ndarray, columns: list[np.ndarray], free: int, pull: np.ndarray) -> _Fit | None:
        """Return the fit; None where the coefficients are not identified, or no degree of freedom is left."""
        design = np.column_stack(columns)
        if free < 1 or np.linalg.matrix_rank(design) < len(columns):
            return None
        inverse = np.linalg.inv(design.T @ design)
        found = inverse @ design.T @ y
        residual = y - design @ found
        leverage = np.einsum("np,pq,nq->n", design, inverse, design) + pull
        first = (design @ inverse)[:, 0] * residual / (1 - leverage).clip(min=LEAST_LEFT)
        return cls(y, columns, free, pull, float(found[0]), float(np.sqrt(first @ first)), float(residual @ residual))

    def p_of_more(self, column: np.ndarray) -> float | None:
        """Return p of the coefficient of a further column, by F."""
        more = _Fit.of(self.y, [*self.columns, column], self.free - 1, self.pull)
        if more is None or more.rest <= 0:
            return None
        return float(special.fdtrc(1, more.free, max(self.rest - more.rest, 0.0) / (more.rest / more.free)))


def _within(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return deviations from the stratum's mean [N]."""
    return values - (np.bincount(labels, values) / np.bincount(labels))[labels]


def _varies(deviations: np.ndarray, values: np.ndarray) -> bool:
    return bool(np.abs(deviations).max() > ROUNDING * max(float(np.abs(values).max()), 1e-300))
