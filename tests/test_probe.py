"""The prior probe: leak-free, beaten by nothing it should beat, and honest about what it cannot see."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from emscope.core.errors import InputError
from emscope.represent.probe import by_category, by_text, probe
from emscope.stats.crossval import explained, fold_losses, grouped_folds, repeated_folds


def problem(n=200, d=24, noise=1.0, seed=0):
    """Scores that depend on squared projections of the activations."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.linspace(3, 0.3, d)
    y = 0.2 * x[:, 0] ** 2 - 0.3 * x[:, 1] ** 2 + noise * rng.normal(size=n)
    return x, y[:, None], [str(i // 2) for i in range(n)]


@pytest.mark.parametrize("estimator", ["ols", "tree"])
def test_a_fold_equals_scikit_learns_pipeline(estimator):
    x, y, units = problem()
    out = grouped_folds(units, 5, 0)[2]
    found = probe(x, y, units, k=8, estimator=estimator, seed=0)(~out, out)
    pca = PCA(8, svd_solver="full").fit(x[~out])
    scale = StandardScaler().fit(pca.transform(x[~out]) ** 2)
    a, b = (scale.transform(pca.transform(x[m]) ** 2) for m in (~out, out))
    if estimator == "ols":
        assert found[:, 0] == pytest.approx(LinearRegression().fit(a, y[~out, 0]).predict(b))
    else:
        theirs = DecisionTreeRegressor(max_depth=7, random_state=0).fit(a, y[~out, 0]).predict(b)
        assert np.corrcoef(found[:, 0], theirs)[0, 1] > 0.9, "but for ties between splits"


@pytest.mark.heavy
@pytest.mark.parametrize("estimator", ["ols", "ridge", "lasso", "tree"])
@pytest.mark.parametrize("basis", ["pca", "random"])
def test_what_is_there_is_found_and_what_is_not_is_not(estimator, basis):
    """Axes of clearly different length, so that principal directions find them; random ones see them only mixed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 24)) * np.geomspace(8, 0.3, 24)
    y = (x[:, :1] ** 2 / 64 - x[:, 1:2] ** 2 / 40 + 0.5 * rng.normal(size=(400, 1))).astype(float)
    units = [str(i // 2) for i in range(400)]
    shuffled = rng.permutation(y)
    folds = repeated_folds(units, 5, 1, 0)
    real, nothing = (
        float(explained(*fold_losses(probe(x, t, units, basis=basis, k=8, estimator=estimator), t, folds))[0])
        for t in (y, shuffled)
    )
    assert nothing < 0.03
    if basis == "pca":
        assert real > (0.5 if estimator == "tree" else 0.75)


def test_nothing_of_the_held_out_rows_reaches_the_fit():
    x, y, units = problem()
    out = grouped_folds(units, 5, 0)[0]
    for estimator in ("ridge", "lasso", "tree"):
        before = probe(x, y, units, k=6, estimator=estimator)(~out, out)
        other = y.copy()
        other[out] = 1e6
        assert np.array_equal(before, probe(x, other, units, k=6, estimator=estimator)(~out, out))
        moved = x.copy()
        keep = np.flatnonzero(out)[0]
        rest = out.copy()
        rest[keep] = False
        moved[rest] *= 100
        assert probe(moved, y, units, k=6, estimator=estimator)(~out, out)[0] == pytest.approx(before[0])


def test_wide_activations_take_the_smaller_gram_matrix():
    rng = np.random.default_rng(0)
    x, y, units = rng.normal(size=(60, 300)), rng.normal(size=(60, 1)), [str(i) for i in range(60)]
    out = grouped_folds(units, 5, 0)[0]
    found = probe(x, y, units, k=5, estimator="ols")(~out, out)
    pca = PCA(5, svd_solver="full").fit(x[~out])
    features = [StandardScaler().fit(pca.transform(x[~out]) ** 2).transform(pca.transform(x[m]) ** 2) for m in (~out, out)]
    assert found[:, 0] == pytest.approx(LinearRegression().fit(features[0], y[~out, 0]).predict(features[1]))


def test_baselines():
    rng = np.random.default_rng(0)
    categories = [f"c{i % 4}" for i in range(120)]
    y = np.array([[float(i % 4)] for i in range(120)]) + 0.1 * rng.normal(size=(120, 1))
    units = [str(i) for i in range(120)]
    folds = repeated_folds(units, 5, 1, 0)
    assert float(explained(*fold_losses(by_category(y, categories), y, folds))[0]) > 0.95
    words = [["loan debt bank", "tent rope hill", "oven salt pan", "train bus rail"][i % 4] + f" w{i % 7}" for i in range(120)]
    assert float(explained(*fold_losses(by_text(words, y, units, k=10), y, folds))[0]) > 0.9
    new = np.array([c == "c0" for c in categories])
    assert by_category(y, categories)(~new, new)[0] == pytest.approx(y[~new].mean()), "a new category has the overall mean"


def test_bad_input():
    x, y, units = problem(40)
    out = grouped_folds(units, 5, 0)[0]
    with pytest.raises(InputError, match="k is 40, but 32 training prompts span only 24 directions"):
        probe(x, y, units, k=40)(~out, out)
    with pytest.raises(InputError, match="k is 30, but activations are 24 wide"):
        probe(x, y, units, basis="random", k=30)
    with pytest.raises(InputError, match="20 questions cannot make 30 folds"):
        grouped_folds(units, 30, 0)
