"""Many-target ridge and lasso against scikit-learn's loops; folds, intervals and permutations against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LassoCV, Ridge

from emscope.core.errors import InputError
from emscope.stats import crossval
from emscope.stats.shrinkage import ALPHAS, lasso_cv, ridge_cv


def problem(n=240, p=20, targets=6, seed=0):
    """Correlated features, targets from none explained to well explained."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + 0.5 * rng.normal(size=(n, 1))
    y = x @ (rng.normal(size=(p, targets)) * np.linspace(0, 0.3, targets)) + rng.normal(size=(n, targets)) + 5
    units = [str(i // 3) for i in range(n)]
    return x, y, units


@pytest.mark.heavy
@pytest.mark.parametrize("p", [20, 300])
def test_ridge_equals_a_loop_of_scikit_learn(p):
    x, y, units = problem(p=p)
    held = crossval.grouped_folds(units, 5, 0)
    fit = ridge_cv(x, y, held)
    for q in range(y.shape[1]):
        errors = [sum(((y[o, q] - Ridge(alpha=a).fit(x[~o], y[~o, q]).predict(x[o])) ** 2).sum() for o in held) for a in ALPHAS]
        best = Ridge(alpha=ALPHAS[int(np.argmin(errors))]).fit(x, y[:, q])
        assert fit.alpha[q] == best.alpha
        assert fit.coef[:, q] == pytest.approx(best.coef_, abs=1e-7)
        assert fit.predict(x)[:, q] == pytest.approx(best.predict(x))


@pytest.mark.heavy
def test_lasso_equals_lassocv():
    x, y, units = problem()
    held = crossval.grouped_folds(units, 5, 0)
    fit = lasso_cv(x, y, held)
    splits = [(np.flatnonzero(~o), np.flatnonzero(o)) for o in held]
    for q in range(y.shape[1]):
        theirs = LassoCV(cv=splits, alphas=100, tol=1e-8, max_iter=20_000).fit(x, y[:, q])
        assert fit.alpha[q] == pytest.approx(theirs.alpha_)
        assert fit.coef[:, q] == pytest.approx(theirs.coef_, abs=2e-4)
        assert fit.predict(x)[:, q] == pytest.approx(theirs.predict(x), abs=2e-3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=5, max_size=60), st.integers(2, 5), st.integers(0, 5))
def test_folds_keep_units_whole_and_cover_every_row_once(units, count, seed):
    names = [str(u) for u in units]
    if len(set(names)) < count:
        with pytest.raises(InputError, match="cannot make"):
            crossval.grouped_folds(names, count, seed)
        return
    folds = crossval.grouped_folds(names, count, seed)
    assert (np.sum(folds, 0) == 1).all() and all(f.any() for f in folds)
    for name in set(names):
        mine = np.array(names) == name
        assert sum((f & mine).any() for f in folds) == 1


def test_interval_and_test_are_nadeau_and_bengios():
    rng = np.random.default_rng(2)
    ours, plain = rng.uniform(0.5, 1, 50), rng.uniform(0.9, 1.1, 50)
    found = crossval.explained_estimate(ours, plain, 5, 100, 40)
    d = plain - ours
    se = np.sqrt(d.var(ddof=1) * (1 / 50 + 1 / 4))
    assert found.value == pytest.approx(1 - ours.sum() / plain.sum())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 49) * se / plain.mean())
    assert crossval.better_than(ours, plain, 5) == pytest.approx(stats.t.sf(d.mean() / se, 49))
    assert crossval.explained_estimate(np.zeros(4), np.zeros(4), 2, 9, 9).why == "the score does not vary"


def test_permutations_move_whole_units():
    units = [str(i // 3) for i in range(30)] + ["long"] * 4
    y = np.arange(34.0)
    moved = crossval.permuted_targets(y, units, 20, 0)
    assert (np.sort(moved, 0) == y[:, None]).all()
    for k in range(20):
        blocks = moved[:30, k].reshape(10, 3)
        assert (np.diff(blocks, axis=1) == 1).all(), "the forms of a question stay together, in their order"
        assert (moved[30:, k] == y[30:]).all(), "no other has four rows"
    assert len({tuple(moved[:, k]) for k in range(20)}) > 15
    assert crossval.permutation_p(0.5, np.array([0.1, 0.5, 0.9])) == 0.75


def test_losses_equal_a_plain_loop():
    x, y, units = problem(n=60, p=4, targets=2)
    folds = crossval.repeated_folds(units, 4, 3, 1)
    assert len(folds) == 12 and not (folds[0] == folds[4]).all()

    def predict(train, test):
        return ridge_cv(x[train], y[train], crossval.grouped_folds(list(np.array(units)[train]), 3, 0)).predict(x[test])

    ours, plain = crossval.fold_losses(predict, y, folds)
    out = folds[5]
    assert plain[5] == pytest.approx([np.mean((y[out, q] - y[~out, q].mean()) ** 2) for q in (0, 1)])
    assert ours[5] == pytest.approx(((y[out] - predict(~out, out)) ** 2).mean(0))
    assert crossval.explained(ours, plain) == pytest.approx(1 - ours.sum(0) / plain.sum(0))
