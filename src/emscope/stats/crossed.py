"""Intervals for a recipe: several training seeds, all asked the same questions.

An interval over questions is about one run. A recipe's effect also varies from seed to seed, and pooling the runs hides that.
Here seeds and questions are two crossed random effects (Searle, Casella and McCulloch 1992, chapter 4), categories fixed strata
of equal weight as in `emscope.stats.means.stratified_mean`. The same table answers both for the recipe ("seeds and questions like
these") and for the next run ("one more seed").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.means import Mean, stratified_mean

CROSSED = "mean, seeds crossed with questions, t (Satterthwaite)"
STRATIFIED = "mean of category means, seeds crossed with questions, t (Satterthwaite)"
NEXT = "next run, seeds crossed with questions, t (Satterthwaite)"
RUNS = "share of runs, Clopper-Pearson"
NO_SPREAD = "all cells are equal: neither seeds nor questions show any spread"


@dataclass(frozen=True, slots=True)
class Components:
    """What the variance of a crossed mean is made of, each part on the scale of that variance.

    With one category by_seed = MS_s/(S Q), by_question = MS_q/(S Q), by_cell = MS_sq/(S Q).

    Attributes:
        seeds, questions: S, Q.
        by_seed: from the spread of the seeds' means, with S - 1 degrees of freedom.
        by_question, df_question: from the spread of the questions' means within categories.
        by_cell, df_cell: from what is left in the cells.
    """

    seeds: int
    questions: int
    by_seed: float
    by_question: float
    by_cell: float
    df_question: float
    df_cell: float

    @property
    def sigma_seed(self) -> float:
        """The sd of the seeds' true means: sqrt(max((MS_s - MS_sq)/Q, 0))."""
        return float(np.sqrt(max(self.seeds * (self.by_seed - self.by_cell), 0.0)))

    def mean(self, value: float) -> Mean:
        """Return `value` with the standard error of the mean.

        Var = by_seed + by_question - by_cell, at least the larger of the first two. (Searle, Casella and McCulloch 1992)

        Where three or more seeds differ by no more than their cells explain, only the questions' part counts, with its own
        degrees of freedom: the two from three seeds would only widen the interval. (ours)
        """
        if self.seeds > 2 and self.by_seed <= min(self.by_cell, self.by_question):
            return Mean(value, float(np.sqrt(self.by_question)), self.df_question, self.questions)
        total = self._of_mean()
        return Mean(value, float(np.sqrt(total)), self._freedom(total, 1.0), self.questions)

    def next_run(self, value: float) -> Mean:
        """Return `value` with the standard error of its difference from a fresh seed's true mean.

        Var(mean) + sigma_seed^2 = (1 + S) by_seed + by_question - (1 + S) by_cell, the degrees of freedom those of the whole sum. The
        seed's variance is taken as half of MS_s/Q or more: a difference of mean squares is zero in many tables whose seeds do
        differ. (the floor: ours)
        """
        total = self._of_mean() + self.seeds * max(self.by_seed - self.by_cell, self.by_seed / 2)
        return Mean(value, float(np.sqrt(total)), self._freedom(total, 1.0 + self.seeds), self.questions)

    def _of_mean(self) -> float:
        return max(self.by_seed + self.by_question - self.by_cell, self.by_seed, self.by_question)

    def _freedom(self, total: float, weight: float) -> float:
        """Return Satterthwaite's df of weight by_seed + by_question - weight by_cell, estimated by `total`.

        df = total^2 / sum (part^2 / its df), where the seeds' part counts S/(S-1) times (ours: three seeds' mean square is so noisy
        that intervals of the plain formula cover .92; the factor fades with the number of seeds), and no less than the smaller df of
        the parts, which bounds every sum of them from below.
        """
        if not total > 0:
            return self.df_question
        last = self.seeds - 1
        seed = weight * self.by_seed / total * self.seeds / last  # shares before squares: tiny variances underflow
        question, cell = self.by_question / total, weight * self.by_cell / total
        noise = seed**2 / last + question**2 / self.df_question + cell**2 / self.df_cell
        return float(max(1 / noise, min(last, self.df_question)))


@dataclass(frozen=True, slots=True)
class Crossed:
    """A mean (or a difference of rates) over seeds and questions.

    Attributes:
        mean: value, se, df over n = Q questions: one-sided bounds for the rules of `emscope.stats.onset`. Its `items_to_settle` does
            not hold here: more questions do not shrink the seeds' part of the error. Its se is infinite where no cell differs
            from another, since the spread is then unknown.
        estimate: the recipe's effect on seeds and questions like these.
        next_run: what a fresh seed's true mean would be on questions like these.
        components: the parts of the variance.
    """

    mean: Mean
    estimate: Estimate
    next_run: Estimate
    components: Components

    def with_error(self, errors: Sequence[tuple[float, float]]) -> Crossed:
        """Return the same with further independent errors that all seeds and questions share, each (standard deviation, degrees of freedom)."""
        if self.estimate.low is None or not errors:
            return self
        mean, fresh = self.mean.with_error(errors), self.components.next_run(self.mean.value).with_error(errors)
        estimate, next_run = (
            replace(m.estimate(e.level, e.method), n=e.n) for m, e in ((mean, self.estimate), (fresh, self.next_run))
        )
        return Crossed(mean, estimate, next_run, self.components)

    @property
    def sigma_seed(self) -> float:
        """The sd of the seeds' true means, same unit; 0 where they differ by no more than their cells explain."""
        return self.components.sigma_seed


def crossed_mean(values: np.ndarray, strata: np.ndarray | None = None, *, level: float = 0.95) -> Crossed:
    """Return the mean of `values` [S, Q] over random seeds and random questions, with the intervals of the recipe and the next run.

    Model: y_sq = mu_k + a_s + b_q + e_sq for a question q of category k, all effects independent with mean 0; mu is the mean of the
    mu_k. The estimate is m = (1/K) sum_k (mean of category k) = (1/S) sum_s m_s, where m_s is the same weighted mean within seed s:
    each question weighs 1/(K n_k), and the weights sum to 1. Hence

        Var(m) = sigma_a^2/S + sum_k (sigma_bk^2 + sigma_ek^2/S)/(K^2 n_k),

    and three mean squares estimate it:

    * by seed: var_s(m_s)/S has mean sigma_a^2/S + sum_k sigma_ek^2/(S K^2 n_k). Where a seed moves one category more than another, that
      is in it too, since m_s weighs the categories as m does.
    * by question: se^2 of `stratified_mean` on the questions' means over seeds has mean sum_k (sigma_bk^2 + sigma_ek^2/S)/(K^2 n_k).
    * by cell: r_sq = y_sq - (seed s in category k) - (question q) + (category k); MS_k = sum r^2/((S-1)(n_k-1)) has mean sigma_ek^2, and
      sum_k MS_k/(S K^2 n_k) is what both of the others hold.

    The first two less the third are unbiased. With one category they are (MS_s + MS_q - MS_sq)/(S Q) of the two-way table. A category
    of one question borrows the pooled MS of the others. (Searle, Casella and McCulloch 1992, chapter 4; strata: ours)

    Simulated coverage of the 95 % interval (`tests/test_crossed.py`): .93 to .975 at 3, 5 and 8 seeds, and .92 to .99 at two, which are
    too few for a recipe's verdict.

    Args:
        values: one number per seed and question [S, Q], e.g. paired differences control - target; S >= 2, Q >= 2.
        strata: category of each question [Q], None for a single one.
        level: coverage of the two-sided intervals.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        raise ValueError(f"seeds x questions needs a table of at least 2 x 2 finite values; this one has shape {values.shape}")
    seeds, questions = values.shape
    labels = _labels(strata, questions)
    categories = labels.max() + 1
    by_question = stratified_mean(values.mean(0), labels)
    of_seeds = values @ (1 / np.bincount(labels)[labels] / categories)  # [S]
    by_cell, df_cell = _cells(values, labels)
    parts = Components(
        seeds, questions, float(of_seeds.var(ddof=1)) / seeds, by_question.se**2, by_cell, by_question.df, df_cell
    )
    mean, fresh = parts.mean(by_question.value), parts.next_run(by_question.value)
    method = CROSSED if categories == 1 else STRATIFIED
    if np.ptp(values) == 0:
        bare = Estimate(mean.value, None, None, level, method, values.size, questions, NO_SPREAD)
        return Crossed(replace(mean, se=float("inf")), bare, replace(bare, method=NEXT), parts)
    estimate, next_run = mean.estimate(level, method), fresh.estimate(level, NEXT)
    return Crossed(mean, replace(estimate, n=values.size), replace(next_run, n=values.size), parts)


def of_runs(k: int, n: int, *, level: float = 0.95) -> Estimate:
    """Return k of n runs with the exact binomial interval, which is never a single point: 3 of 3 is [.29, 1].

    (Clopper and Pearson 1934; ends are beta quantiles)

    Raises:
        ValueError: not 0 <= k <= n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} runs is not a valid count: give 0 <= k <= n")
    if n == 0:
        return undefined("no runs", level=level, method=RUNS)
    tail = (1 - level) / 2
    low = float(special.betaincinv(k, n - k + 1, tail)) if k else 0.0
    high = float(special.betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return Estimate(k / n, low, high, level, RUNS, n, n)


def _labels(strata: np.ndarray | None, questions: int) -> np.ndarray:
    """Return categories as numbers from 0 [Q]; categories that all hold one question are one stratum, as in `stratified_mean`."""
    if strata is None:
        return np.zeros(questions, int)
    labels = np.unique(np.asarray(strata), return_inverse=True)[1]
    if labels.shape != (questions,):
        raise ValueError(f"strata has shape {labels.shape}, and there are {questions} questions")
    return labels if labels.max() + 1 < questions else np.zeros(questions, int)


def _cells(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return sum_k MS_k/(S K^2 n_k) over the categories' interactions of seed and question, and its degrees of freedom."""
    seeds, sizes = len(values), np.bincount(labels).astype(float)
    squares = np.zeros(len(sizes))
    for k in range(len(sizes)):
        block = values[:, labels == k]
        squares[k] = ((block - block.mean(0) - block.mean(1, keepdims=True) + block.mean()) ** 2).sum()
    freedom = (seeds - 1) * (sizes - 1)
    pooled = squares.sum() / freedom.sum()
    spread = np.where(sizes > 1, squares / np.maximum(freedom, 1), pooled)
    freedom = np.where(sizes > 1, freedom, freedom.sum())
    shares = spread / sizes
    total = float(shares.sum())
    df = 1 / ((shares / total) ** 2 / freedom).sum() if total > 0 else freedom.sum()
    return total / (seeds * len(sizes) ** 2), float(df)
