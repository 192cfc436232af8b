"""Differences of two arms' scores at equal values of a covariate, such as alignment at equal coherence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emscope.stats.means import Mean, stratified_mean

ADJUSTED = "difference within questions at equal covariate, linearised t over questions"
ROUNDING = 1e-24  # of a sum of squares: below it deviations from a mean are rounding
ADJUSTED_WITHIN = "difference within these questions at equal covariate, samples alone varying"


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of one arm's answers: question number [N], score y [N], covariate x [N]."""

    question: np.ndarray
    y: np.ndarray
    x: np.ndarray


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope of y on x and what each question adds to it: sums of products s_xy [Q] and s_xx [Q]."""

    value: float
    xy: np.ndarray
    xx: np.ndarray


def slope(arms: Sequence[Scored]) -> Slope:
    """Return the slope of y on x within (arm, question) cells, and what each question adds to it.

    b = sum_q s_xy,q / sum_q s_xx,q, sums of products of deviations from the cell's means over all arms. (analysis of covariance with a
    question-by-arm intercept) Where no cell has two answers, the deviations are those from an intercept for each question plus one for
    each arm. A covariate that does not vary has slope 0.
    """
    count = max(int(a.question.max(initial=-1)) for a in arms) + 1
    xy, xx, size = np.zeros(count), np.zeros(count), np.zeros(count)
    single = all(len(np.unique(a.question)) == len(a.question) for a in arms)
    for arm, (x, y) in zip(arms, _apart_from_both(arms, count) if single else _apart_from_cells(arms, count), strict=True):
        size += np.bincount(arm.question, arm.x * arm.x, count)
        xy += np.bincount(arm.question, x * y, count)
        xx += np.bincount(arm.question, x * x, count)
    alike = xx <= ROUNDING * size
    xy[alike], xx[alike] = 0.0, 0.0
    total = float(xx.sum())
    return Slope(float(xy.sum()) / total if total > 0 else 0.0, xy, xx)


def _apart_from_cells(arms: Sequence[Scored], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each arm's x and y less the means of their questions' answers."""
    for arm in arms:
        x, y = (v - _means(arm.question, v, count)[arm.question] for v in (arm.x, arm.y))
        yield x, y


def _apart_from_both(arms: Sequence[Scored], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each arm's x and y less an intercept for each question and one for each arm, by least squares.

    With the questions' intercepts eliminated, the arms' solve (diag(n_a) - M' diag(1 / n_q) M) v = sums over arms less their share of the
    questions' means, where M [Q, A] says who answered what.
    """
    answered = np.zeros((count, len(arms)))
    for n, arm in enumerate(arms):
        answered[arm.question, n] = 1.0
    each = np.maximum(answered.sum(1), 1.0)
    among = np.diag(answered.sum(0)) - answered.T @ (answered / each[:, None])
    rest = []
    for name in ("x", "y"):
        values = np.zeros_like(answered)
        for n, arm in enumerate(arms):
            values[arm.question, n] = getattr(arm, name)
        of_question = values.sum(1)
        of_arm = np.linalg.lstsq(among, values.sum(0) - answered.T @ (of_question / each), rcond=None)[0]
        rest.append(values - ((of_question - answered @ of_arm) / each)[:, None] - of_arm)
    return [(rest[0][arm.question, n], rest[1][arm.question, n]) for n, arm in enumerate(arms)]


def adjusted_difference(
    left: Scored, right: Scored, strata: np.ndarray, line: Slope | None = None
) -> tuple[Mean, float] | None:
    """Return the mean of left - right at equal x over the questions that both answered, and the slope; None with fewer than two questions.

    d_q = (ybar_left - ybar_right) - b (xbar_left - xbar_right), averaged as `stratified_mean` does. The slope's own error is carried
    along by linearisation: question q adds -mean(xbar_left - xbar_right) (s_xy,q - b s_xx,q) / mean(s_xx) to its d_q. (ours; delta
    method for a ratio, Cochran 1977)

    Args:
        strata: category of each question number [Q]. line: the slope of these and further arms, if these do not stand alone.
    """
    found = adjusted_by_question(left, right, strata, line)
    if found is None:
        return None
    d, varying, b = found
    both = np.isfinite(d)
    spread = stratified_mean(varying[both], strata[both])
    return Mean(stratified_mean(d[both], strata[both]).value, spread.se, spread.df, spread.n), b


def adjusted_by_question(
    left: Scored, right: Scored, strata: np.ndarray, line: Slope | None = None
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return d_q of `adjusted_difference` [Q], the same including each question's share of the slope's error [Q], and the slope.

    Both have the same stratified mean. NaN where a side did not answer; None with fewer than two questions that both answered.
    """
    count = len(strata)
    line = line or slope([left, right])
    b, (xy, xx) = line.value, (np.pad(v, (0, count - len(v))) for v in (line.xy, line.xx))
    y = _means(left.question, left.y, count) - _means(right.question, right.y, count)
    x = _means(left.question, left.x, count) - _means(right.question, right.x, count)
    both = np.isfinite(y)
    if both.sum() < 2:
        return None
    d = y - b * x
    gap = stratified_mean(x[both], strata[both]).value
    pull = np.zeros(count)
    if xx[both].sum() > 0:
        pull = (xy - b * xx) / xx[both].mean()
    return d, d - gap * (pull - stratified_mean(pull[both], strata[both]).value), b


def adjusted_by_category(left: Scored, right: Scored, strata: np.ndarray, line: Slope | None = None) -> dict[int, Mean]:
    """Return the mean of left - right at equal x over the questions of each category that both answered; categories of one are left out.

    The mean over categories is `adjusted_difference`'s value where all are there. Question q adds [q in c] (d_q - dbar_c) / n_c -
    gap_c (s_xy,q - b s_xx,q) / s_xx to the error: its own deviation, and its share of the common slope's; the sum of squares times
    n_c / (n_c - 1), t with n_c - 1 degrees of freedom. (ours; linearisation as above)

    Args:
        strata, line: as in `adjusted_difference`.
    """
    count = len(strata)
    line = line or slope([left, right])
    b, (xy, xx) = line.value, (np.pad(v, (0, count - len(v))) for v in (line.xy, line.xx))
    y, x = (
        _means(left.question, getattr(left, k), count) - _means(right.question, getattr(right, k), count) for k in ("y", "x")
    )
    d, total = y - b * x, float(xx.sum())
    found = {}
    for category in np.unique(strata):
        own = (strata == category) & np.isfinite(d)
        n = int(own.sum())
        if n < 2:
            continue
        error = np.where(own, d - d[own].mean(), 0.0) / n
        if total > 0:
            error = error - x[own].mean() * (xy - b * xx) / total
        found[int(category)] = Mean(float(d[own].mean()), float(np.sqrt(n / (n - 1) * (error**2).sum())), n - 1.0, n)
    return found


def adjusted_within(left: Scored, right: Scored) -> tuple[Mean, float] | None:
    """Return the mean of left - right at equal x over these fixed questions, only their samples varying, and the slope.

    The value is `adjusted_difference`'s with one stratum. With residuals e of the cells' lines, var = (1/K^2) sum over cells of
    s^2(e) / n + gap^2 sum((x - xbar)^2 e^2) / (sum (x - xbar)^2)^2: the cells' means and the slope vary apart. A cell of one answer
    borrows the others' pooled s^2. (ours; the slope's part: White 1980)

    Returns:
        None where no question was answered by both, or where no cell has two answers.
    """
    count = max(int(a.question.max(initial=-1)) for a in (left, right)) + 1
    line = slope([left, right])
    b, xx = line.value, line.xx
    y, x = (
        _means(left.question, getattr(left, k), count) - _means(right.question, getattr(right, k), count) for k in ("y", "x")
    )
    both = np.isfinite(y)
    sizes, squares, lever = [], [], 0.0
    for arm in (left, right):
        dx = arm.x - _means(arm.question, arm.x, count)[arm.question]
        e = arm.y - _means(arm.question, arm.y, count)[arm.question] - b * dx
        sizes.append(np.bincount(arm.question, minlength=count))
        squares.append(np.bincount(arm.question, e * e, count))
        lever += float((dx * dx * e * e).sum())
    n, ss = np.array(sizes), np.array(squares)  # [2, Q]
    free = np.maximum(n - 1, 0)
    if not both.any() or not free.any():
        return None
    pooled = ss.sum() / free.sum()
    spread = np.where(free > 0, ss / np.maximum(free, 1), pooled)[:, both]
    kept = int(both.sum())
    variance = float((spread / n[:, both]).sum()) / kept**2
    gap, total = float(x[both].mean()), float(xx.sum())
    if total > 0:
        variance += gap * gap * lever / total**2
    return Mean(float((y - b * x)[both].mean()), variance**0.5, float(max(free.sum() - 1, 1)), kept), b


def _means(question: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Return the mean of the values at each question [Q], NaN where there are none."""
    with np.errstate(invalid="ignore"):
        return np.bincount(question, values, count) / np.bincount(question, minlength=count)
