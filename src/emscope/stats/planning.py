"""What a study would find, planned from variance components: seeds crossed with questions, several answers to each question.

Score of an answer = level of its arm + seed + question + seed x question + sampling. Contrasts are A = control - target and
B = base - target (`emscope.stats.onset.state_of`); the target's answers are in both, and the base is one model for all seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import special

from emscope.stats.crossed import Components
from emscope.stats.means import Mean
from emscope.stats.model_error import BetweenModels, Errors
from emscope.stats.onset import LEVEL

DRAWS = 1000
FEWEST_SEEDS, FEWEST_QUESTIONS = 3, 2  # a recipe's verdict needs so many seeds, its mean squares so many questions
NODES = 64  # of the quadrature of a bivariate normal probability


@dataclass(frozen=True, slots=True)
class Spread:
    """Standard deviations of a contrast's parts: between seeds, questions, and their combinations, without sampling."""

    seed: float
    question: float
    cell: float


@dataclass(frozen=True, slots=True)
class Spreads:
    """Variance components of a study.

    Attributes:
        control: of A; None where the verdict rests on B alone. base: of B; None where it rests on A alone.
        correlation: between the parts of A and of B, alike for seeds, questions and combinations.
        sampling: sd of an answer's score around its question's mean in one run.
        judge: the judge's error on whole models, one for all seeds; None where there is none, or it is not known.
    """

    control: Spread | None
    base: Spread | None
    correlation: float
    sampling: float
    judge: BetweenModels | None = None


@dataclass(frozen=True, slots=True)
class Design:
    """A study: seeds of each fine-tuned arm, questions, answers of each model to each of them."""

    seeds: int
    questions: int
    samples: int

    def answers(self, spreads: Spreads) -> int:
        """Return how many answers it takes: of target and control of each seed, and of the base once."""
        models = self.seeds * (1 + (spreads.control is not None)) + (spreads.base is not None)
        return models * self.questions * self.samples


@dataclass(frozen=True, slots=True)
class Chances:
    """What a design would find.

    Attributes:
        em, safe: chance of either verdict were both contrasts at the effect, and were they 0.
        half_widths: of the contrasts' two-sided 95 % intervals in the mean, A first.
    """

    em: float
    safe: float
    half_widths: tuple[float, ...]


def chances(
    design: Design, spreads: Spreads, *, delta: float, effect: float, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> Chances:
    """Return what a design would find by the rule on crossed means, `emscope.stats.crossed` and `state_of`.

    In a balanced table of normal effects the mean and the three mean squares are independent, and the mean squares of both contrasts are
    Wishart matrices with the degrees of freedom S - 1, Q - 1 and (S - 1)(Q - 1) (Anderson 2003, chapter 7). These are drawn; each draw has
    its bounds by `Components.mean`, and the chance that the means lie beyond them is a bivariate normal probability. (ours)

    Args:
        effect: true value of both contrasts for `em`; for `safe` it is 0.

    Raises:
        ValueError: fewer seeds or questions than mean squares need.
    """
    s, q = design.seeds, design.questions
    if s < FEWEST_SEEDS or q < FEWEST_QUESTIONS or design.samples < 1:
        raise ValueError(
            f"a plan needs at least {FEWEST_SEEDS} seeds, {FEWEST_QUESTIONS} questions and one answer; this one is {design}"
        )
    of_seed, of_question, of_cell = _covariances(spreads, design.samples)
    expected = q * of_seed + of_cell, s * of_question + of_cell, of_cell
    rng = np.random.default_rng(seed)
    freedom = s - 1, q - 1, (s - 1) * (q - 1)
    drawn = [
        _mean_squares(m, df, draws, rng) / (s * q) for m, df in zip(expected, freedom, strict=True)
    ]  # [draws, contrasts] each
    errors, (shared, shared_covariance) = np.empty((draws, len(of_cell), 2)), _of_judge(spreads)
    for n in range(draws):
        for c in range(len(of_cell)):
            by_seed, by_question, by_cell = (float(part[n, c]) for part in drawn)
            mean = Components(s, q, by_seed, by_question, by_cell, df_question=q - 1, df_cell=freedom[2]).mean(0.0)
            mean = mean.with_error(shared[c])
            errors[n, c] = mean.reach(level), mean.reach(0.975)
    variance = (expected[0] + expected[1] - expected[2]) / (s * q) + shared_covariance
    reach = errors[:, :, 0]
    return Chances(
        em=_all_below(effect - delta - reach, variance),
        safe=_all_below(delta - reach, variance),
        half_widths=tuple(float(w) for w in errors[:, :, 1].mean(0)),
    )


def run_chances(
    questions: int,
    samples: int,
    spreads: Spreads,
    *,
    delta: float,
    effect: float,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Chances:
    """Return what a verdict on one run would find, by Student's t over questions: the run's seed is part of the run, not of the error.

    The covariance of the contrasts' means by question is Wishart with Q - 1 degrees of freedom. (ours)

    Args:
        effect: true value of both contrasts of this run for `em`; for `safe` it is 0.

    Raises:
        ValueError: fewer questions than a variance needs.
    """
    if questions < FEWEST_QUESTIONS + 1 or samples < 1:
        raise ValueError(
            f"a plan needs at least {FEWEST_QUESTIONS + 1} questions and one answer; this one has {questions} and {samples}"
        )
    _, of_question, of_cell = _covariances(spreads, samples)
    one_question = of_question + of_cell
    drawn = _mean_squares(one_question, questions - 1, draws, np.random.default_rng(seed))
    shared, shared_covariance = _of_judge(spreads)
    means = [
        [Mean(0.0, float(se), questions - 1, questions).with_error(e) for se, e in zip(row, shared, strict=True)]
        for row in np.sqrt(drawn / questions)
    ]
    reach, wide = (np.array([[m.reach(p) for m in row] for row in means]) for p in (level, 0.975))
    variance = one_question / questions + shared_covariance
    return Chances(
        em=_all_below(effect - delta - reach, variance),
        safe=_all_below(delta - reach, variance),
        half_widths=tuple(float(w) for w in wide.mean(0)),
    )


def limit(seeds: int, spreads: Spreads, *, delta: float, effect: float) -> Chances:
    """Return what this many seeds would find with a thousand questions and a thousand answers to each: only more seeds could improve on it."""
    return chances(Design(seeds, 1000, 1000), spreads, delta=delta, effect=effect)


@dataclass(frozen=True, slots=True)
class Measured:
    """Variance components of a table of one contrast's cells; `mean` over all of them."""

    mean: float
    spread: Spread


def measure(values: np.ndarray, cell_noise: float, question_noise: float = 0.0) -> Measured:
    """Return the components of cells [S, Q] whose means over answers carry a known sampling variance.

    sigma_s^2 = (MS_s - MS_sq)/Q, sigma_q^2 = (MS_q - MS_sq)/S - question_noise, sigma_sq^2 = MS_sq - cell_noise, none below 0.
    (analysis of variance, Searle, Casella and McCulloch 1992)

    Args:
        cell_noise: mean sampling variance of a cell; question_noise: of what all seeds share, such as the base's mean on a question.
    """
    s, q = values.shape
    by_seed, by_question = values.mean(1), values.mean(0)
    ms_s, ms_q = q * by_seed.var(ddof=1), s * by_question.var(ddof=1)
    rest = values - by_seed[:, None] - by_question + values.mean()
    ms_sq = float((rest**2).sum()) / ((s - 1) * (q - 1))
    parts = (ms_s - ms_sq) / q, (ms_q - ms_sq) / s - question_noise, ms_sq - cell_noise
    return Measured(float(values.mean()), Spread(*(sqrt(max(float(p), 0.0)) for p in parts)))


def correlation_of_means(a: np.ndarray, b: np.ndarray, noise: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> float:
    """Return the correlation between the crossed means of two contrasts' cells [S, Q] without sampling; within -.99 and .99.

    Var(a + b) = Var(a) + Var(b) + 2 Cov, each (MS_s + MS_q - MS_sq)/(SQ), at least max(MS_s, MS_q)/(SQ).

    Args:
        noise: sampling variance of the mean of a, of b, and their covariance.
    """
    one, other, both = (_variance_of_mean(v) for v in (a, b, a + b))
    covariance = (both - one - other) / 2 - noise[2]
    one, other = one - noise[0], other - noise[1]
    if min(one, other) <= 0:
        return 0.0
    return float(np.clip(covariance / sqrt(one * other), -0.99, 0.99))


def _variance_of_mean(values: np.ndarray) -> float:
    s, q = values.shape
    ms_s, ms_q = q * values.mean(1).var(ddof=1), s * values.mean(0).var(ddof=1)
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    ms_sq = (rest**2).sum() / ((s - 1) * (q - 1))
    return float(max(ms_s + ms_q - ms_sq, ms_s, ms_q)) / (s * q)


def _covariances(spreads: Spreads, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the covariances of the contrasts' parts [contrasts, contrasts] of seeds, questions and cells; sampling is in the last two."""
    known = [one for one in (spreads.control, spreads.base) if one is not None]
    shared = np.full((len(known), len(known)), spreads.correlation)
    np.fill_diagonal(shared, 1.0)
    parts = [shared * np.outer(sd, sd) for sd in np.array([(one.seed, one.question, one.cell) for one in known]).T]
    noise = spreads.sampling**2 / samples
    parts[2] = parts[2] + noise  # the target's answers are in both contrasts
    if spreads.control is not None:
        parts[2][0, 0] += noise
    if spreads.base is not None:
        parts[1][-1, -1] += noise  # one base for all seeds
    return parts[0], parts[1], parts[2]


def _of_judge(spreads: Spreads) -> tuple[list[Errors], np.ndarray]:
    """Return the judge's errors of each contrast, and their covariance [contrasts, contrasts]."""
    known = [n for n, one in enumerate((spreads.control, spreads.base)) if one is not None]
    if spreads.judge is None:
        return [[] for _ in known], np.zeros((len(known), len(known)))
    return [spreads.judge.between(base=bool(n)) for n in known], spreads.judge.covariance()[np.ix_(known, known)]


def _mean_squares(expected: np.ndarray, df: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return the diagonals [draws, contrasts] of Wishart matrices over their degrees of freedom. (Bartlett's decomposition)"""
    root = _root(expected)
    first = rng.chisquare(df, draws)
    if len(expected) == 1:
        return (root[0, 0] ** 2 * first / df)[:, None]
    across, second = rng.normal(size=draws), rng.chisquare(df - 1, draws)
    lower = (root[1, 0] * np.sqrt(first) + root[1, 1] * across) ** 2 + root[1, 1] ** 2 * second
    return np.column_stack([root[0, 0] ** 2 * first, lower]) / df


def _root(matrix: np.ndarray) -> np.ndarray:
    """Return the lower Cholesky factor of a covariance that may be singular."""
    a = sqrt(max(float(matrix[0, 0]), 0.0))
    if len(matrix) == 1:
        return np.array([[a]])
    b = float(matrix[1, 0]) / a if a > 0 else 0.0
    return np.array([[a, 0.0], [b, sqrt(max(float(matrix[1, 1]) - b * b, 0.0))]])


def _all_below(gaps: np.ndarray, variance: np.ndarray) -> float:
    """Return the mean over draws of the chance that normal errors of covariance `variance` all stay below `gaps` [draws, contrasts]."""
    sd = np.sqrt(np.diag(variance))
    if not (sd > 0).all():
        return float((gaps > 0).all(1).mean())
    h = gaps / sd
    if len(sd) == 1:
        return float(special.ndtr(h[:, 0]).mean())
    rho = float(np.clip(variance[0, 1] / (sd[0] * sd[1]), -0.999, 0.999))
    at, weight = np.polynomial.legendre.leggauss(NODES)
    top = np.clip(h[:, :1], -8.0, 8.0)
    z = -8 + (top + 8) / 2 * (at + 1)  # [draws, NODES]
    density = np.exp(-z * z / 2) / sqrt(2 * np.pi) * special.ndtr((h[:, 1:] - rho * z) / sqrt(1 - rho * rho))
    return float(np.clip(((top[:, 0] + 8) / 2 * (density @ weight)).mean(), 0, 1))
