"""The prior probe: how well activations before a fine-tune predict a question's score after it. (Zhang et al. 2026)

Features are squared projections of a prompt's activation on K directions: principal ones of the training prompts, or random ones. Whatever is
fitted (means, directions, scales, penalties, words) is fitted only on the training rows of a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emscope.core.errors import InputError
from emscope.core.seeds import derive
from emscope.stats.crossval import Predictor, grouped_folds
from emscope.stats.shrinkage import Fit, lasso_cv, ridge_cv

BASES = ("pca", "random")
ESTIMATORS = ("ols", "ridge", "lasso", "tree")
INNER_FOLDS, DEPTH = 5, 7

Estimator = Callable[[np.ndarray, np.ndarray, Sequence[str], np.ndarray], np.ndarray]
"""`fit(train features, train targets [n, P], train units, test features)` returns predictions [m, P]."""


def probe(
    x: np.ndarray,
    y: np.ndarray,
    units: Sequence[str],
    *,
    basis: str = "pca",
    k: int = 150,
    estimator: str = "ridge",
    seed: int = 0,
) -> Predictor:
    """Return a predictor of y [N, P] from prompt activations x [N, D], for `stats.crossval.fold_losses`.

    Args:
        units: the question that each row is a form of; inner folds keep them whole too.
        basis: of `BASES`. k: directions. estimator: of `ESTIMATORS`. seed: of random directions and inner folds.

    Raises:
        InputError: fewer training rows or columns than directions.
    """
    named = np.asarray(units, str)
    fit = _ESTIMATORS[estimator](seed)
    x = np.asarray(x, float)
    fixed = _random_basis(x.shape[1], k, seed) if basis == "random" else None

    def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        mean = x[train].mean(0)
        directions = fixed if fixed is not None else _principal(x[train] - mean, k)
        features = ((x - mean) @ directions.T) ** 2
        inside, outside = _standardised(features[train], features[test])
        return fit(inside, y[train], named[train], outside)

    return predict


def by_category(y: np.ndarray, categories: Sequence[str]) -> Predictor:
    """Return the predictor that knows a question's category alone: the mean of its training rows, the overall mean for a new one."""
    names, place = np.unique(np.asarray(categories, str), return_inverse=True)

    def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        overall = y[train].mean(0)
        means = np.array(
            [y[train & (place == c)].mean(0) if (train & (place == c)).any() else overall for c in range(len(names))]
        )
        return means[place[test]]

    return predict


def by_text(texts: Sequence[str], y: np.ndarray, units: Sequence[str], *, k: int = 150, seed: int = 0) -> Predictor:
    """Return the predictor that knows a question's words alone: ridge on k components of their TF-IDF weights (scikit-learn's)."""
    named, words = np.asarray(units, str), np.asarray(texts, object)
    fit = _ESTIMATORS["ridge"](seed)

    def predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        weigh = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
        sparse = weigh.fit_transform(words[train])
        reduce = TruncatedSVD(min(k, min(sparse.shape) - 1), random_state=derive(seed, "words"))
        features = reduce.fit_transform(sparse), reduce.transform(weigh.transform(words[test]))
        return fit(features[0], y[train], named[train], features[1])

    return predict


def _random_basis(width: int, k: int, seed: int) -> np.ndarray:
    if k > width:
        raise InputError(f"k is {k}, but activations are {width} wide", f"use k up to {width}")
    drawn = np.random.default_rng(derive(seed, "basis")).normal(size=(width, k))
    return np.linalg.qr(drawn)[0].T


def _principal(centred: np.ndarray, k: int) -> np.ndarray:
    """Return the first k principal directions [k, D], through the smaller Gram matrix."""
    rows, width = centred.shape
    if k > min(rows - 1, width):
        raise InputError(
            f"k is {k}, but {rows} training prompts span only {min(rows - 1, width)} directions",
            "use a smaller k, or give more prompts",
        )
    if width <= rows:
        return np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :k].T
    left = np.linalg.eigh(centred @ centred.T)[1][:, ::-1][:, :k]
    directions = left.T @ centred
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0] = 1.0
    return (train - mean) / scale, (test - mean) / scale


def _ols(seed: int) -> Estimator:
    def fit(x: np.ndarray, y: np.ndarray, units: Sequence[str], test: np.ndarray) -> np.ndarray:
        mean = x.mean(0), y.mean(0)
        coef = np.linalg.lstsq(x - mean[0], y - mean[1], rcond=None)[0]
        return (test - mean[0]) @ coef + mean[1]

    return fit


def _penalised(solve: Callable[[np.ndarray, np.ndarray, Sequence[np.ndarray]], Fit]) -> Callable[[int], Estimator]:
    def made(seed: int) -> Estimator:
        def fit(x: np.ndarray, y: np.ndarray, units: Sequence[str], test: np.ndarray) -> np.ndarray:
            inner = grouped_folds(units, INNER_FOLDS, derive(seed, "inner"))
            return solve(x, y, inner).predict(test)

        return fit

    return made


def _tree(seed: int) -> Estimator:
    def fit(x: np.ndarray, y: np.ndarray, units: Sequence[str], test: np.ndarray) -> np.ndarray:
        from sklearn.tree import DecisionTreeRegressor

        def one(target: np.ndarray) -> np.ndarray:
            return DecisionTreeRegressor(max_depth=DEPTH, random_state=derive(seed, "tree")).fit(x, target).predict(test)

        return np.column_stack([one(y[:, q]) for q in range(y.shape[1])])

    return fit


_ESTIMATORS: dict[str, Callable[[int], Estimator]] = {
    "ols": _ols,
    "ridge": _penalised(ridge_cv),
    "lasso": _penalised(lasso_cv),
    "tree": _tree,
}
