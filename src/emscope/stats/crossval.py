"""Cross-validated prediction of a score: folds that keep a question's forms together, R^2 with an interval that allows for overlapping folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate, undefined
from emscope.core.seeds import derive
from emscope.stats.quantiles import student, student_tail

NADEAU_BENGIO = "R^2 over repeated folds, Nadeau-Bengio t"
DIFFERENCE = "difference of R^2 over repeated folds, Nadeau-Bengio t"
Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`predict(train rows, test rows)`, both as masks [N], returns predictions [test rows, P] for all targets."""


def grouped_folds(units: Sequence[str], count: int, seed: int) -> list[np.ndarray]:
    """Return `count` masks [N] of rows held out; a unit's rows are in one fold, folds are as even in rows as that allows.

    Raises:
        InputError: fewer units than folds.
    """
    names, place, sizes = np.unique(np.asarray(units, str), return_inverse=True, return_counts=True)
    if len(names) < count:
        raise InputError(
            f"{len(names)} questions cannot make {count} folds", f"use at most {len(names)} folds, or give more questions"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold, filled = np.empty(len(names), int), np.zeros(count)
    for name in order:
        fold[name] = int(filled.argmin())
        filled[fold[name]] += sizes[name]
    return [fold[place] == k for k in range(count)]


def repeated_folds(units: Sequence[str], count: int, repeats: int, seed: int) -> list[np.ndarray]:
    """Return the masks of `repeats` draws of `count` grouped folds, one after the other."""
    return [m for r in range(repeats) for m in grouped_folds(units, count, derive(seed, "folds", r))]


def fold_losses(predict: Predictor, y: np.ndarray, folds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean squared errors [folds, P] of the predictor, and of the mean of the training rows.

    Args:
        y: targets [N, P]; folds: rows held out in each.
    """
    ours, plain = [], []
    for out in folds:
        ours.append(((y[out] - predict(~out, out)) ** 2).mean(0))
        plain.append(((y[out] - y[~out].mean(0)) ** 2).mean(0))
    return np.array(ours), np.array(plain)


def explained(ours: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Return R^2 [P] = 1 - sum of our errors / sum of the mean's errors, over folds [F, P]."""
    return 1 - ours.sum(0) / plain.sum(0)


def explained_estimate(ours: np.ndarray, plain: np.ndarray, folds: int, n: int, units: int, *, level: float = 0.95) -> Estimate:
    """Return R^2 of one target over repeated folds [F] with its interval.

    The folds' differences d = plain - ours are correlated, since training sets overlap: Var(mean d) = s^2 (1 / F + 1 / (folds - 1)), t with
    F - 1 degrees of freedom; over the mean of the plain errors. (Nadeau and Bengio 2003; the ratio to the mean error: ours)
    """
    if len(ours) < 2 or plain.mean() == 0:
        return undefined("the score does not vary", level=level, method=NADEAU_BENGIO, n=n, clusters=units)
    gain, se = _gain(ours, plain, folds)
    reach = student(0.5 + level / 2, len(ours) - 1) * se
    scale = float(plain.mean())
    return Estimate(gain / scale, (gain - reach) / scale, (gain + reach) / scale, level, NADEAU_BENGIO, n, units)


def explained_difference(
    ours: np.ndarray, theirs: np.ndarray, plain: np.ndarray, folds: int, n: int, units: int, *, level: float = 0.95
) -> Estimate:
    """Return R^2 of one predictor minus that of another on the same repeated folds [F], with its interval.

    d = theirs - ours in each fold, over the mean of the plain errors; the variance is `explained_estimate`'s. (Nadeau and Bengio 2003;
    the ratio to the mean error: ours)
    """
    if len(ours) < 2 or plain.mean() == 0:
        return undefined("the score does not vary", level=level, method=DIFFERENCE, n=n, clusters=units)
    gain, se = _gain(ours, theirs, folds)
    reach = student(0.5 + level / 2, len(ours) - 1) * se
    value, low, high = (float((gain + end) / plain.mean()) for end in (0.0, -reach, reach))
    return Estimate(value, low, high, level, DIFFERENCE, n, units)


def better_than(ours: np.ndarray, theirs: np.ndarray, folds: int) -> float:
    """Return the one-sided p-value of the corrected resampled t-test that a predictor's errors [F] are below another's on the same folds."""
    gain, se = _gain(ours, theirs, folds)
    return student_tail(gain / se, len(ours) - 1) if se > 0 else float(gain <= 0)


def _gain(ours: np.ndarray, theirs: np.ndarray, folds: int) -> tuple[float, float]:
    """Return the mean of the folds' differences and its corrected standard error; test over training rows is 1 / (folds - 1)."""
    d = theirs - ours
    return float(d.mean()), float(np.sqrt(d.var(ddof=1) * (1 / len(d) + 1 / (folds - 1))))


def permuted_targets(y: np.ndarray, units: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Return y [N] in `count` orders [N, count]: whole units swap places with others of the same number of rows.

    So what the forms of a question share stays shared. A unit with a unique number of rows stays in place.
    """
    _, place, sizes = np.unique(np.asarray(units, str), return_inverse=True, return_counts=True)
    rows = [np.flatnonzero(place == u) for u in range(len(sizes))]
    rng = np.random.default_rng(derive(seed, "permuted"))
    found = np.empty((len(y), count))
    for k in range(count):
        for size in np.unique(sizes):
            mine = np.flatnonzero(sizes == size)
            for u, other in zip(mine, rng.permutation(mine), strict=True):
                found[rows[u], k] = y[rows[other]]
    return found


def permutation_p(value: float, null: np.ndarray) -> float:
    """Return (1 + how many of `null` are at least `value`) / (1 + how many there are)."""
    return float((1 + (null >= value).sum()) / (1 + len(null)))


def max_t(values: np.ndarray) -> list[float]:
    """Return p-values [R] of several statistics, corrected for testing all of them; large values indicate an effect.

    Each statistic is standardised by its own row, the value as observed counted in, so that rows of unequal spread weigh alike; the
    k-th largest is then compared with the maxima over it and all smaller ones under the same permutation. It keeps the chance of any
    false finding, and loses little where the statistics go together, as those of neighbouring layers do. (step-down
    max-T, Westfall and Young 1993, algorithm 4.1)

    Args:
        values: as observed, then under each of B permutations, the same ones for all rows [R, 1 + B].
    """
    spread = values.std(1, keepdims=True)
    z = np.divide(values - values.mean(1, keepdims=True), spread, out=np.zeros_like(values, float), where=spread > 0)
    order = np.argsort(-z[:, 0], kind="stable")
    maxima = np.maximum.accumulate(z[order][::-1], axis=0)[::-1]  # over each row in order and all after it
    reached = maxima[:, 1:] >= z[order, :1] - 1e-12
    stepped = np.maximum.accumulate((1 + reached.sum(1)) / values.shape[1])
    adjusted = np.empty(len(values))
    adjusted[order] = stepped
    return [float(p) for p in adjusted]
