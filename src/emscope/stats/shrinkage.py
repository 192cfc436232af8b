"""Ridge and lasso for many targets at once, their penalties chosen by inner cross-validation for each target by itself.

Made for permutation tests: the features stay, the targets are hundreds. What depends on the features alone (their Gram matrix, its
eigenvectors) is computed once a fold, and every step after that is a product of small matrices over all targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHAS = tuple(np.geomspace(1e-1, 1e5, 13))
PATH, SMALLEST = 100, 1e-3  # penalties of the lasso: how many, and the last one as a share of the first
MOST_STEPS, LOOK, CLOSE = 500, 2, 1e-4


@dataclass(frozen=True, slots=True)
class Fit:
    """A linear model for P targets: `coef` [p, P], `intercept` [P], and the penalty chosen for each, `alpha` [P]."""

    coef: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return predictions [N, P] for x [N, p]."""
        return x @ self.coef + self.intercept


def ridge_cv(x: np.ndarray, y: np.ndarray, held: Sequence[np.ndarray], alphas: Sequence[float] = ALPHAS) -> Fit:
    """Return the ridge regression of y [N, P] on x [N, p], each target with the penalty of least squared error in the held-out rows.

    min ||y - b0 - x b||^2 + alpha ||b||^2, the intercept free. Equal to scikit-learn's `Ridge` refitted for each penalty and fold, at
    one eigendecomposition a fold. (Hoerl and Kennard 1970)

    Args:
        held: for each inner fold which rows are held out, True at those [N].
    """
    errors = np.zeros((len(alphas), y.shape[1]))
    for out in held:
        path = _RidgePath(x[~out], y[~out])
        turned, offset = (x[out] - path.x_mean) @ path.vectors, y[out] - path.y_mean
        for k, alpha in enumerate(alphas):
            errors[k] += ((offset - turned @ path.turned(alpha)) ** 2).sum(0)
    best = errors.argmin(0)
    path = _RidgePath(x, y)
    coef = np.empty((x.shape[1], y.shape[1]))
    for k in np.unique(best):
        coef[:, best == k] = path.vectors @ path.turned(alphas[k])[:, best == k]
    return Fit(coef, path.y_mean - path.x_mean @ coef, np.asarray(alphas)[best])


class _RidgePath:
    """Ridge solutions for all penalties in the eigenbasis of the centred features' Gram matrix."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        centred = x - self.x_mean
        values, self.vectors = np.linalg.eigh(centred.T @ centred)
        self._values = np.maximum(values, 0.0)
        self._target = self.vectors.T @ (centred.T @ (y - self.y_mean))

    def turned(self, alpha: float) -> np.ndarray:
        """Return the coefficients in the eigenbasis [p, P]."""
        return self._target / (self._values + alpha)[:, None]


def lasso_cv(x: np.ndarray, y: np.ndarray, held: Sequence[np.ndarray]) -> Fit:
    """Return the lasso of y [N, P] on x [N, p], each target with the penalty of least mean squared error over the folds.

    min ||y - b0 - x b||^2 / (2 N) + alpha ||b||_1 over `PATH` penalties from the least that leaves no coefficient down to `SMALLEST` of it, as
    scikit-learn's `LassoCV` has them. Solved for all targets at once by accelerated proximal steps on the Gram matrix, warm along the
    path. (Tibshirani 1996; Beck and Teboulle 2009, with restarts after O'Donoghue and Candes 2015)

    Args:
        held: for each inner fold which rows are held out, True at those [N].
    """
    centred = x - x.mean(0)
    first = np.abs(centred.T @ (y - y.mean(0))).max(0) / len(x)
    alphas = first * np.geomspace(1.0, SMALLEST, PATH)[:, None]  # [PATH, P]
    errors = np.zeros_like(alphas)
    for out in held:
        path = _LassoPath(x[~out], y[~out])
        inner, offset = x[out] - path.x_mean, y[out] - path.y_mean
        gram, cross, square = inner.T @ inner, inner.T @ offset, (offset**2).sum(0)
        for k, alpha in enumerate(alphas):
            b = path.step_to(alpha)
            errors[k] += (square - 2 * (b * cross).sum(0) + (b * (gram @ b)).sum(0)) / out.sum()
    best = errors.argmin(0)
    path = _LassoPath(x, y)
    coef = np.zeros((x.shape[1], y.shape[1]))
    for k, alpha in enumerate(alphas[: best.max() + 1]):
        b = path.step_to(alpha)
        coef[:, best == k] = b[:, best == k]
    return Fit(coef, path.y_mean - path.x_mean @ coef, alphas[best, np.arange(y.shape[1])])


class _LassoPath:
    """Lasso solutions for falling penalties, each started where the last one ended."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        centred = x - self.x_mean
        self._gram = centred.T @ centred / len(x)
        self._cross = centred.T @ (y - self.y_mean) / len(x)
        self._size = float(np.linalg.eigvalsh(self._gram)[-1]) or 1.0
        self._scale = np.abs(self._cross).max(0)
        self._found = np.zeros_like(self._cross)

    def step_to(self, alpha: np.ndarray) -> np.ndarray:
        """Return the solution [p, P] at these penalties [P].

        Ended where no coefficient moves by more than `CLOSE` of the target's largest gradient over the largest eigenvalue.
        """
        live = np.arange(self._cross.shape[1])  # targets that still move: those that have ended leave the products
        b = ahead = self._found
        cross, least, enough, pace = self._cross, alpha / self._size, CLOSE * self._scale / self._size, 1.0
        solved = np.empty_like(b)
        for step in range(1, MOST_STEPS + 1):
            moved = ahead - (self._gram @ ahead - cross) / self._size
            new = moved - np.clip(moved, -least, least)  # soft thresholding
            change = new - b
            faster = (1 + np.sqrt(1 + 4 * pace * pace)) / 2
            back = ((ahead - new) * change).sum(0) > 0  # a target that goes the wrong way drops its momentum
            ahead = new + np.where(back, 0.0, (pace - 1) / faster) * change
            b, pace = new, faster
            if step % LOOK == 0 or step == MOST_STEPS:
                going = (np.abs(change).max(0) > enough) & (step < MOST_STEPS)
                solved[:, live[~going]] = b[:, ~going]
                if not going.any():
                    break
                live, least, enough = live[going], least[going], enough[going]
                b, ahead, cross = b[:, going], ahead[:, going], cross[:, going]
        self._found = solved
        return solved
