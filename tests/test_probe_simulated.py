"""The prior probe's R^2 on made-up data: without bias, with intervals that hold, and permutations that find nothing in nothing."""

from __future__ import annotations

import numpy as np
import pytest

from emscope.represent.probe import probe
from emscope.stats.crossval import (
    better_than,
    explained,
    explained_estimate,
    fold_losses,
    grouped_folds,
    permutation_p,
    permuted_targets,
    repeated_folds,
)

ROWS, WIDTH, K, SETS = 300, 20, 8, 200


def draw(rng, rows, signal=True):
    """Two forms a question share a part of their score; activations have axes of different length."""
    x = rng.normal(size=(rows, WIDTH)) * np.geomspace(4, 0.5, WIDTH)
    shared = np.repeat(rng.normal(size=rows // 2), 2)
    y = 0.6 * shared + 0.8 * rng.normal(size=rows)
    if signal:
        y = y + x[:, 0] ** 2 / 25 - x[:, 2] ** 2 / 16
    return x, y[:, None], [str(i // 2) for i in range(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ols", "ridge", "lasso", "tree"])
def test_r2_is_unbiased_and_its_interval_holds(estimator):
    rng = np.random.default_rng(5)
    fresh_x, fresh_y, fresh_units = draw(rng, 20_000)
    values, covered, true = [], [], []
    estimates = []
    for n in range(SETS):
        x, y, units = draw(rng, ROWS)
        folds = repeated_folds(units, 5, 10 if estimator in ("ols", "ridge") else 2, n)
        ours, plain = fold_losses(probe(x, y, units, k=K, estimator=estimator), y, folds)
        estimates.append(explained_estimate(ours[:, 0], plain[:, 0], 5, ROWS, ROWS // 2))
        values.append(estimates[-1].value)
        # the same estimator, trained on as many rows, on a large fresh sample
        train = ~grouped_folds(units, 5, n)[0]
        both_x, both_y = np.concatenate([x[train], fresh_x]), np.concatenate([y[train], fresh_y])
        both_units = [*np.array(units)[train], *[f"fresh {u}" for u in fresh_units]]
        inside = np.arange(len(both_x)) < train.sum()
        predicted = probe(both_x, both_y, both_units, k=K, estimator=estimator)(inside, ~inside)
        plain_loss = ((fresh_y - y[train].mean()) ** 2).mean()
        true.append(1 - ((fresh_y - predicted) ** 2).mean() / plain_loss)
    expected = float(np.mean(true))
    covered = [e.low <= expected <= e.high for e in estimates]
    assert abs(float(np.mean(values)) - expected) < 0.02, (np.mean(values), expected)
    assert np.mean(covered) >= 0.90, np.mean(covered)
    print(estimator, np.mean(values), expected, np.mean(covered))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ols", "ridge", "lasso"])
def test_nothing_is_found_in_nothing(estimator):
    rng = np.random.default_rng(6)
    permuted, corrected = [], []
    for n in range(SETS):
        x, y, units = draw(rng, ROWS, signal=False)
        targets = np.column_stack([y, permuted_targets(y[:, 0], units, 99, n)])
        folds = repeated_folds(units, 5, 1, n)
        ours, plain = fold_losses(probe(x, targets, units, k=K, estimator=estimator), targets, folds)
        found = explained(ours, plain)
        permuted.append(permutation_p(found[0], found[1:]))
        corrected.append(better_than(ours[:, 0], plain[:, 0], 5))
    print(estimator, np.mean(np.array(permuted) < 0.05), np.mean(np.array(corrected) < 0.05))
    assert np.mean(np.array(permuted) < 0.05) <= 0.08
    assert np.mean(np.array(corrected) < 0.05) <= 0.08
