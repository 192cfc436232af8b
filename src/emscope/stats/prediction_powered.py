"""Prediction-powered rates: a few verdicts of a good judge, drawn at random, and a cheap score of every answer.

The verdicts alone give an unbiased rate; the cheap scores remove the variance that they explain. How much weight they get is
fitted on the verdicts, so that useless scores cost nothing. (Angelopoulos, Duchi and Zrnic 2023, PPI++; for a ratio and drawn
without replacement it is the regression estimator of Särndal, Swensson and Wretman 1992, sections 5.6, 6.4 and 6.6)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.core.plain import Result
from emscope.stats import clustered, rate_contrasts
from emscope.stats.clustered import Contrast, Rate, freedom
from emscope.stats.quantiles import normal, student
from emscope.stats.rates import wilson
from emscope.stats.scarce import differences, scarce_contrast, sign_flip

THESE = "prediction-powered rate of these answers, Wilson at its effective number"
ALONE = "rate of the drawn verdicts alone, Wilson at its effective number"
CLUSTERED = "prediction-powered rate, logit t clustered by question"
NEAR_ZERO = "difference of rates, MOVER of Wilson at the effective number of verdicts"
COUNTED = "every answer has a verdict: the rate is counted, and nothing is left to estimate"
FEWEST = 20  # verdicts of a group, below which no weight is fitted
BARE = 1e-9  # of a question's usual contribution: below it lies rounding
SHRINK = 3.0  # events' worth of doubt in how much the scores explain


@dataclass(frozen=True, slots=True)
class Population:
    """All answers of one group, judged or not, by question.

    Attributes:
        questions: identifiers [Q], ascending. rows: answers of each [Q]; cheap: sums of the cheap scores of each [Q, P].
    """

    questions: np.ndarray
    rows: np.ndarray
    cheap: np.ndarray


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The drawn answers of one group.

    Attributes:
        hits, counted: 1 where an answer is misaligned, and where the denominator counts it [N]; cheap: scores [N, P].
        question: identifiers [N]. stratum: index of what it was drawn from [N].
        drawn, out_of: how many answers were drawn from each stratum, and how many it holds [S]; both over all groups.
    """

    hits: np.ndarray
    counted: np.ndarray
    cheap: np.ndarray
    question: np.ndarray
    stratum: np.ndarray
    drawn: np.ndarray
    out_of: np.ndarray


@dataclass(frozen=True, slots=True)
class Powered:
    """What drawn verdicts and cheap scores say about a group.

    Attributes:
        these: the rate that the judge would find over all these answers; only which verdicts were drawn is uncertain.
        alone: the same from the verdicts without the cheap scores.
        rate: what each question contributes to it, for intervals over questions and contrasts; None without a verdict.
        counts: the drawn verdicts by question, counted as they are, with this rate's value; weighted: the same, weighted back as the
            draw demands. The n of both is the number of plain draws with as much information; both are None without a verdict.
        explained: share of the verdicts' variance that the cheap scores explain; weights: of each cheap score.
        verdicts: how many there are.
    """

    these: Estimate
    alone: Estimate
    rate: Rate | None
    counts: Rate | None
    weighted: Rate | None
    explained: float
    weights: tuple[float, ...]
    verdicts: int


def powered(population: Population, verdicts: Verdicts, *, level: float = 0.95) -> Powered:
    """Return the rate hits / counted over a group's answers.

    With w = N_h / n_h, both totals are Y = sum over all of b'x + sum over drawn of w (y - b'x), b by weighted least squares
    with a constant; their ratio's residuals e give var = sum_h N_h^2 (1 - n_h/N_h) s_h^2(e) / n_h / D^2. The scores are left out
    where they explain nothing, or where fewer than 20 verdicts could say so.
    """
    n = len(verdicts.hits)
    total = float(population.rows.sum())
    if not n or not verdicts.counted.any():
        why = "none of the drawn answers has a verdict that counts"
        none = undefined(why, level=level, method=THESE, n=n)
        return Powered(none, undefined(why, level=level, method=ALONE, n=n), None, None, None, 0.0, (), n)
    verdicts, population = _centred(verdicts, population)
    bare = _fit(population, verdicts, np.ones((n, 1)), np.ones((1,)) * total)
    best, columns = bare, population.cheap.shape[1]
    if columns and n >= max(FEWEST, 5 * columns):
        sums = np.r_[total, population.cheap.sum(0)]
        full = _fit(population, verdicts, np.column_stack([np.ones(n), verdicts.cheap]), sums)
        best = full if full.variance < bare.variance and 0 < full.value < 1 else bare
    left = _left(best, bare, verdicts)
    kept = best.weights.shape[0] > 1
    return Powered(
        _these(best, verdicts, left, level, THESE),
        _these(bare, verdicts, 1.0, level, ALONE),
        _rate(population, verdicts, best),
        *_counts(verdicts, best.value),
        1 - left,
        tuple(float(w) for w in best.weights[1:, 0]) if kept else (0.0,) * columns,
        n,
    )


def powered_interval(found: Powered, *, level: float = 0.95) -> Estimate:
    """Return the interval of a rate for questions like these: what the questions contribute, drawn verdicts or predictions.

    se^2 = Q/(Q-1) sum c_q^2 holds both the spread between questions and which answers were drawn (ultimate clusters, Särndal
    and others 1992, section 4.6); t on the logit scale, degrees of freedom as in `clustered.freedom`. (ours)
    """
    rate = found.rate
    if rate is None:
        return undefined(str(found.these.why), level=level, method=CLUSTERED, n=found.verdicts)
    count, p = len(rate.questions), rate.value
    if count < 2:
        why = "with one question, the spread between questions is unknown"
        return Estimate(p, None, None, level, CLUSTERED, found.verdicts, count, why)
    alike = np.abs(rate.contributions).max() < BARE * max(p * (1 - p), BARE) / count
    if alike or not 0 < p < 1:
        low, high = wilson(p, min(count, found.verdicts), z=normal(0.5 + level / 2))
        return Estimate(p, low, high, level, "rate, Wilson over questions", found.verdicts, count)
    se = float(np.sqrt(count / (count - 1) * (rate.contributions**2).sum()))
    reach = student(0.5 + level / 2, freedom(rate.contributions)) * se / (p * (1 - p))
    centre = float(special.logit(p))
    ends = float(special.expit(centre - reach)), float(special.expit(centre + reach))
    return Estimate(p, *ends, level, CLUSTERED, found.verdicts, count)


def powered_contrast(a: Powered, b: Powered, *, level: float = 0.95) -> Contrast:
    """Return a - b for questions like these, as `rate_contrasts.contrast` does of what the questions contribute.

    Where a side is near 0 or 1 among its drawn verdicts these alone are evidence, not all answers: the interval is that of
    `scarce.scarce_contrast` from counts of verdicts, around the difference of the rates. The cheap scores move it but do not make
    it narrower, since few events cannot show how much they explain. p is the largest of flipped signs and the exact test within
    questions on the counts, and flipped signs on the weighted counts, which alone hold where draws within a question were
    unequal. (ours)
    """
    if a.counts is None or b.counts is None or a.weighted is None or b.weighted is None:
        return rate_contrasts.contrast(a.rate, b.rate, level=level)
    if not (a.counts.scarce or b.counts.scarce):
        return rate_contrasts.contrast(a.rate, b.rate, level=level)
    shared = np.intersect1d(a.counts.questions, b.counts.questions, assume_unique=True)
    if 2 * len(shared) < len(np.union1d(a.counts.questions, b.counts.questions)):
        return rate_contrasts.contrast(a.counts, b.counts, level=level)  # too few to flip: verdicts are almost a question each
    found = scarce_contrast(a.counts, b.counts, level=level)
    p, limit = sign_flip(differences(a.weighted, b.weighted))
    if found.p is not None and found.p >= p:
        p, limit = found.p, found.limit
    return replace(found, difference=replace(found.difference, method=NEAR_ZERO), p=p, limit=limit)


def _centred(v: Verdicts, population: Population) -> tuple[Verdicts, Population]:
    """Return the same with the cheap scores' means over all answers taken off, which changes no fit and loses no digits."""
    middle = population.cheap.sum(0) / population.rows.sum()
    sums = population.cheap - population.rows[:, None] * middle
    return replace(v, cheap=v.cheap - middle), replace(population, cheap=sums)


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A ratio with the weights [K, 2] of its top and bottom, residuals [N] of its linearisation, and their variance."""

    value: float
    bottom: float
    weights: np.ndarray
    residuals: np.ndarray
    variance: float


def _fit(population: Population, v: Verdicts, x: np.ndarray, sums: np.ndarray) -> _Fitted:
    w = (v.out_of / v.drawn)[v.stratum]
    y = np.column_stack([v.hits, v.counted]).astype(float)
    root = np.sqrt(w)[:, None]
    weights = np.linalg.lstsq(x * root, y * root, rcond=None)[0]
    top, bottom = sums @ weights + w @ (y - x @ weights)
    value = float(np.clip(top / bottom, 0, 1)) if bottom > 0 else 0.0
    residuals = (y - x @ weights) @ np.array([1.0, -value])
    return _Fitted(value, float(bottom), weights, residuals, _variance(v, residuals, x.shape[1]) / max(bottom, 1e-300) ** 2)


def _variance(v: Verdicts, residuals: np.ndarray, fitted: int) -> float:
    """Return the variance of the weighted sum of residuals, over which answers the strata gave; 0 outside the group."""
    strata = len(v.drawn)
    sums, squares = (np.bincount(v.stratum, weights=residuals**k, minlength=strata) for k in (1, 2))
    n, size = v.drawn.astype(float), v.out_of.astype(float)
    some = n > 1
    spread = np.zeros(strata)
    spread[some] = np.maximum(squares[some] - sums[some] ** 2 / n[some], 0) / (n[some] - 1)
    part = size**2 * (1 - n / size) * spread / n
    count = len(residuals)
    return float(part.sum()) * (count - 1) / max(count - fitted, 1) if count > 1 else 0.0


def _left(best: _Fitted, bare: _Fitted, v: Verdicts) -> float:
    """Return the share of the variance that is left, shrunk towards 1 where events are few. (ours)"""
    if best is bare or bare.variance <= 0:
        return 1.0
    events = min(float((v.hits * v.counted).sum()), float(((1 - v.hits) * v.counted).sum()))
    return (best.variance / bare.variance * events + SHRINK) / (events + SHRINK)


def _these(fit: _Fitted, v: Verdicts, left: float, level: float, method: str) -> Estimate:
    """Return Wilson's interval at the number of plain draws that would be as sure, within a finite number of answers."""
    w = (v.out_of / v.drawn)[v.stratum] * v.counted
    alike = float(w.sum() ** 2 / (w**2).sum())  # Kish's number of draws of equal weight
    open_share = float((w * (1 - (v.drawn / v.out_of)[v.stratum])).sum() / w.sum())  # 0 once every answer has a verdict
    number, questions = len(v.hits), len(np.unique(v.question))
    if open_share <= 0:
        return Estimate(fit.value, None, None, level, method, number, questions, COUNTED)
    z = student(0.5 + level / 2, max(alike - 1, 1))
    low, high = wilson(fit.value, alike / (left * open_share), z=z)
    return Estimate(fit.value, low, high, level, method, number, questions)


def _rate(population: Population, v: Verdicts, fit: _Fitted) -> Rate:
    """Return the questions' tops, bottoms and contributions: predictions for all answers, residuals of those drawn."""
    w = (v.out_of / v.drawn)[v.stratum]
    columns = fit.weights.shape[0]
    x = np.column_stack([np.ones(len(v.hits)), v.cheap])[:, :columns]
    sums = np.column_stack([population.rows, population.cheap])[:, :columns] @ fit.weights
    rest = (np.column_stack([v.hits, v.counted]) - x @ fit.weights) * w[:, None]
    place = np.searchsorted(population.questions, v.question)
    for k in (0, 1):
        sums[:, k] += np.bincount(place, weights=rest[:, k], minlength=len(population.questions))
    parts = (sums[:, 0] - fit.value * sums[:, 1]) / fit.bottom
    return Rate(fit.value, len(v.hits), population.questions, sums[:, 0], sums[:, 1], parts, False, population.questions)


def _counts(v: Verdicts, value: float) -> tuple[Rate, Rate]:
    """Return the verdicts that count, by question, as they are and weighted; `value` is that of the first."""
    kept = v.counted > 0
    hits, weight = v.hits[kept] * v.counted[kept], (v.out_of / v.drawn)[v.stratum[kept]]
    names, place = np.unique(v.question[kept], return_inverse=True)
    weight = weight * (weight.sum() / (weight**2).sum())  # their sum is Kish's number of draws of equal weight
    weighted = clustered.rate(names, np.bincount(place, hits * weight), np.bincount(place, weight))
    assert weighted is not None  # `kept` is not empty
    weighted = replace(weighted, n=round(float(weight.sum())))
    plain = np.bincount(place, hits), np.bincount(place).astype(float)
    return replace(weighted, value=value, hits=plain[0], out_of=plain[1]), weighted


def verdicts_needed(p: float, explained: float, half: float, answers: int, *, level: float = 0.95) -> tuple[int, int]:
    """Return how many of `answers` need a verdict for an interval of their rate within plus or minus `half`: alone, with scores.

    n = n0 / (1 + n0 / N), n0 = p (1 - p) (1 - R) (z / half)^2, R the variance explained by scores of all N. (Cochran 1977,
    sections 4.4 and 7.3)
    """
    z = normal(0.5 + level / 2)
    p = min(max(p, half / 2), 1 - half / 2)
    counts = []
    for left in (1.0, 1 - explained):
        plain = p * (1 - p) * left * (z / half) ** 2
        counts.append(int(np.ceil(plain / (1 + plain / answers))))
    return counts[0], counts[1]


@dataclass(frozen=True, slots=True)
class Plan(Result):
    """The cheapest new study of questions like these: verdicts `alone` and their `dollars_alone`; or verdicts and scores of
    more answers, None where that is no cheaper.
    """

    alone: int
    dollars_alone: float
    verdicts: int | None = None
    scores: int | None = None
    dollars: float | None = None


def plan(p: float, explained: float, half: float, prices: tuple[float, float], *, level: float = 0.95) -> Plan:
    """Return the cheapest way to a rate near `p` within plus or minus `half` where any number of answers can be sampled.

    var = p (1 - p) [(1 - R) / n + R / m] with n verdicts and m cheap scores, R the variance explained; the cheapest has
    m / n = sqrt(R / (1 - R) x dear / cheap). (double sampling, Cochran 1977, section 12.6)

    Args:
        prices: dollars of an answer with a cheap score, and of a verdict.
    """
    z = normal(0.5 + level / 2)
    p = min(max(p, half / 2), 1 - half / 2)
    alone = p * (1 - p) * (z / half) ** 2
    cheap, dear = prices
    bare = Plan(int(np.ceil(alone)), alone * dear)
    if not 0 < explained < 1 or cheap <= 0:
        return bare
    ratio = float(np.sqrt(explained / (1 - explained) * dear / cheap))
    verdicts = alone * (1 - explained + explained / ratio)
    dollars = verdicts * (dear + ratio * cheap)
    if ratio <= 1 or dollars >= bare.dollars_alone:
        return bare
    return Plan(bare.alone, bare.dollars_alone, int(np.ceil(verdicts)), int(np.ceil(verdicts * ratio)), dollars)
