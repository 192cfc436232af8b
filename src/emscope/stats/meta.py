"""Random-effects meta-analysis: estimates whose standard errors are known, with a spread between them that is not.

y_i = x_i b + u_i + e_i with Var(e_i) = se_i^2 known and Var(u_i) = tau^2 estimated; weights are 1 / (tau^2 + se_i^2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from emscope.stats.quantiles import student, student_tail

HALVINGS = 60  # of the bracket around tau^2
RELATIVE = 1e-8  # of tau^2, whose own error is thousands of times that


@dataclass(frozen=True, slots=True)
class MetaRegression:
    """A weighted regression over N estimates.

    Attributes:
        coefficients, ses: of the P columns [P]; df: N - P.
        tau: sd between estimates that neither the columns nor their own errors explain.
        heterogeneity_p: of Cochran's Q at tau 0: below .05 the estimates differ by more than their errors.
    """

    coefficients: np.ndarray
    ses: np.ndarray
    df: int
    tau: float
    heterogeneity_p: float

    def interval(self, column: int, level: float) -> tuple[float, float]:
        """Return the two-sided interval of a coefficient."""
        reach = student(0.5 + level / 2, self.df) * float(self.ses[column])
        return float(self.coefficients[column]) - reach, float(self.coefficients[column]) + reach

    def p(self, column: int) -> float:
        """Return the two-sided p of a coefficient."""
        if not self.ses[column] > 0:
            return 0.0 if self.coefficients[column] else 1.0
        return 2 * student_tail(abs(float(self.coefficients[column] / self.ses[column])), self.df)


def meta_regression(values: np.ndarray, ses: np.ndarray, columns: np.ndarray) -> MetaRegression:
    """Return the random-effects regression of `values` on `columns`.

    tau^2 by restricted maximum likelihood; standard errors and Student's t with N - P degrees of freedom after Knapp and Hartung (2003):
    Var(b) = q (X'WX)^-1 with q = sum w r^2 / (N - P), which a weighted least squares' own standard errors are. q may be below 1: what
    all estimates share of their errors, such as the same questions, moves no slope. A floor of 1 covers 99 to 100 % where tau is 0.

    Args:
        values, ses: [N], ses above 0. columns: [N, P] with a column of ones, of rank P < N.

    Raises:
        ValueError: another shape, a standard error that is not above 0, or as many columns as values.
    """
    values, ses, columns = np.asarray(values, float), np.asarray(ses, float), np.asarray(columns, float)
    n, p = columns.shape
    if values.shape != (n,) or ses.shape != (n,) or not (ses > 0).all():
        raise ValueError("each row of the columns needs a value and a standard error above 0")
    if n <= p or np.linalg.matrix_rank(columns) < p:
        raise ValueError(f"{p} columns need more than {p} estimates, and must be linearly independent")
    tau2 = restricted_tau2(values[None], ses[None], columns[None])[0]
    weights = 1 / (tau2 + ses**2)
    b, inverse, rest = _fit(values[None], weights[None], columns[None])
    scale = float((weights * rest[0] ** 2).sum()) / (n - p)
    fixed = 1 / ses**2
    q = float((fixed * _fit(values[None], fixed[None], columns[None])[2][0] ** 2).sum())
    return MetaRegression(
        b[0], np.sqrt(scale * np.diag(inverse[0])), n - p, float(np.sqrt(tau2)), float(special.chdtrc(n - p, q))
    )


def coefficient(values: np.ndarray, ses: np.ndarray, columns: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a coefficient of `meta_regression` and its standard error [B] for each of B sets of estimates.

    Args:
        values, ses: [B, N]; columns: [B, N, P], each of rank P < N.
    """
    weights = 1 / (restricted_tau2(values, ses, columns)[:, None] + ses**2)
    b, inverse, rest = _fit(values, weights, columns)
    scale = (weights * rest**2).sum(1) / (columns.shape[1] - columns.shape[2])
    return b[:, column], np.sqrt(scale * inverse[:, column, column])


def restricted_tau2(values: np.ndarray, ses: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return tau^2 [B] by restricted maximum likelihood for each of B sets of estimates.

    The root of the restricted score y'PPy - tr P, by halving a bracket; 0 where the score is negative at 0.

    Args:
        values, ses: [B, N]; columns: [B, N, P].
    """
    found = np.zeros(len(values))
    inside = np.flatnonzero(_score(values, ses, columns, found) > 0)
    if not len(inside):
        return found
    values, ses, columns = values[inside], ses[inside], columns[inside]
    low, high = np.zeros(len(inside)), values.var(axis=1) + (ses**2).max(axis=1)
    for _ in range(HALVINGS):
        rising = _score(values, ses, columns, high) > 0
        if not rising.any():
            break
        high = np.where(rising, 2 * high, high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = _score(values, ses, columns, middle) > 0
        low, high = np.where(above, middle, low), np.where(above, high, middle)
        if (high - low <= RELATIVE * high).all():
            break
    found[inside] = (low + high) / 2
    return found


def _score(values: np.ndarray, ses: np.ndarray, columns: np.ndarray, tau2: np.ndarray) -> np.ndarray:
    """Return twice the derivative of the restricted log-likelihood by tau^2 [B]: y'PPy - tr P, P = W - WX(X'WX)^-1 X'W."""
    weights = 1 / (tau2[:, None] + ses**2)
    _, inverse, rest = _fit(values, weights, columns)
    squared = np.einsum("bnp,bn,bnq->bpq", columns, weights**2, columns)
    trace = weights.sum(1) - np.einsum("bpq,bqp->b", inverse, squared)
    return ((weights * rest) ** 2).sum(1) - trace


def _fit(values: np.ndarray, weights: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coefficients [B, P], (X'WX)^-1 [B, P, P] and residuals [B, N] of weighted least squares."""
    inverse = np.linalg.inv(np.einsum("bnp,bn,bnq->bpq", columns, weights, columns))
    b = np.einsum("bpq,bnq,bn->bp", inverse, columns, weights * values)
    return b, inverse, values - np.einsum("bnp,bp->bn", columns, b)
