"""The prior probe's permutation test beside scikit-learn's loops: ratios from one run.

    python bench/probe.py [--rows 1414] [--features 150] [--permutations 200] [--repeats 10]

Ridge: every outer fold, every inner fold and penalty, all permutations as the targets of one `Ridge.fit(X, Y)`, the penalty chosen within each
permutation; both give the same R^2. Lasso: a loop of `LassoCV` over permutations, of which `--tried` are timed in `--lasso-folds` outer folds and the rest
extrapolated; ours is timed with all permutations in the same folds.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
from baseline import close, held
from sklearn.linear_model import LassoCV, Ridge

from emscope.stats.crossval import explained, fold_losses, grouped_folds, permuted_targets, repeated_folds
from emscope.stats.shrinkage import ALPHAS, lasso_cv, ridge_cv

INNER = 5


def problem(rows: int, features: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return standardised squared projections, a score that they explain by a third, and units of two rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features)) ** 2
    x = (x - x.mean(0)) / x.std(0)
    signal = x @ rng.normal(size=features)
    return x, signal / signal.std() + 1.4 * rng.normal(size=rows), [str(i // 2) for i in range(rows)]


def plain_ridge(x: np.ndarray, y: np.ndarray, held: list[np.ndarray]) -> np.ndarray:
    """Return what `ridge_cv` returns as coefficients over intercept [p + 1, P], by scikit-learn."""
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for out in held:
        for k, alpha in enumerate(ALPHAS):
            errors[k] += ((y[out] - Ridge(alpha=alpha).fit(x[~out], y[~out]).predict(x[out])) ** 2).sum(0)
    best = errors.argmin(0)
    found = np.empty((x.shape[1] + 1, y.shape[1]))
    for k in np.unique(best):
        fit = Ridge(alpha=ALPHAS[k]).fit(x, y[:, best == k])
        found[:-1, best == k], found[-1, best == k] = np.atleast_2d(fit.coef_).T, fit.intercept_
    return found


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1414)
    parser.add_argument("--features", type=int, default=150)
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tried", type=int, default=20)
    parser.add_argument("--lasso-folds", type=int, default=2)
    args = parser.parse_args()
    x, y, units = problem(args.rows, args.features)
    targets = np.column_stack([y, permuted_targets(y, units, args.permutations, 0)])
    folds, named = repeated_folds(units, 5, args.repeats, 0), np.array(units)

    def inner(train: np.ndarray) -> list[np.ndarray]:
        return grouped_folds(list(named[train]), INNER, 0)

    def ours(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return ridge_cv(x[train], targets[train], inner(train)).predict(x[test])

    def theirs(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        found = plain_ridge(x[train], targets[train], inner(train))
        return x[test] @ found[:-1] + found[-1]

    seconds, values = [], []
    for predict in (ours, theirs):
        start = time.perf_counter()
        values.append(explained(*fold_losses(predict, targets, folds)))
        seconds.append(time.perf_counter() - start)
    print(f"{args.rows} x {args.features}, 5 x {args.repeats} folds, {args.permutations} permutations")
    print(
        f"ridge: {seconds[1] / seconds[0]:.1f} times scikit-learn's Ridge.fit(X, Y); R^2 apart at most {np.abs(values[0] - values[1]).max():.1e}"
    )
    held("ridge, against scikit-learn", seconds[1] / seconds[0], tolerance=0.3)
    _lasso(x, targets, folds[: args.lasso_folds], inner, args.tried)


def _lasso(x, targets, folds, inner, tried) -> None:  # type: ignore[no-untyped-def]
    ours, theirs, apart = 0.0, 0.0, 0.0
    for out in folds:
        parts = inner(~out)
        splits = [(np.flatnonzero(~o), np.flatnonzero(o)) for o in parts]
        start = time.perf_counter()
        fit = lasso_cv(x[~out], targets[~out], parts)
        ours += time.perf_counter() - start
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop = [LassoCV(cv=splits, alphas=100).fit(x[~out], targets[~out, q]) for q in range(tried)]
        theirs += (time.perf_counter() - start) / tried * targets.shape[1]
        for q, one in enumerate(loop):
            apart = max(apart, float(np.abs(one.predict(x[out]) - fit.predict(x[out])[:, q]).max() / targets[:, q].std()))
    print(
        f"lasso: {theirs / ours:.1f} times a LassoCV loop ({tried} of {targets.shape[1]} targets timed in {len(folds)} folds, the rest extrapolated); "
        f"predictions apart at most {apart:.1e} of the score's sd"
    )
    held("lasso, against scikit-learn", theirs / ours, tolerance=0.3)
    close()


if __name__ == "__main__":
    main()
