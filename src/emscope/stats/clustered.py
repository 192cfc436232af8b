"""Rates over answers whose unit is the question: answers to one question are not independent.

A rate is linearised: every question contributes c_q to it, the contributions sum to zero, and their spread is the rate's
variance between questions. Differences of rates subtract contributions question by question, so that shared questions pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import normal, student
from emscope.stats.rates import wilson

CLUSTERED = "rate, logit t clustered by question"
FEW_QUESTIONS = 24
SCARCE, RARE = 10, 0.1  # a side is near an end with fewer events (or fewer answers without), and as a smaller share, than this

COVERAGE = {  # of 95 % intervals by number of questions, over the rates .02 to .5: (least, most) of ours, of the bootstrap
    4: ((0.934, 0.995), (0.674, 0.794)),
    8: ((0.901, 0.989), (0.748, 0.906)),
    12: ((0.908, 0.962), (0.804, 0.912)),
    24: ((0.923, 0.959), (0.851, 0.937)),
    48: ((0.934, 0.954), (0.891, 0.933)),
    100: ((0.942, 0.955), (0.904, 0.951)),
}
"""Measured by `bench/rate_coverage.py`: 50 answers per question, questions that differ with sd 1.5 on the logit scale."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of answers and what each question contributes to it.

    Attributes:
        value: the share.
        n: answers it is a share of.
        questions: identifiers [Q], ascending. hits, out_of: answers counted [Q]; contributions: c_q [Q], their sum is 0.
        macro: True where questions weigh equally instead of answers.
        asked: identifiers of all questions asked [A], ascending, those without a counted answer among them; resamples draw from these.
    """

    value: float
    n: int
    questions: np.ndarray
    hits: np.ndarray
    out_of: np.ndarray
    contributions: np.ndarray
    macro: bool
    asked: np.ndarray

    @property
    def bare(self) -> bool:
        """True where all questions agree (no event, nothing but events), so that their spread says nothing."""
        return not np.any(np.abs(self.contributions) > 1e-15)

    @property
    def counted(self) -> bool:
        """True where `hits` and `out_of` are counts of the answers, and not shares or predictions."""
        return abs(float(self.out_of.sum()) - self.n) < 0.5 and bool(np.all(np.abs(self.hits - np.rint(self.hits)) < 1e-9))

    @property
    def events(self) -> np.ndarray:
        """Answers of the rarer kind at each question [Q]: hits, or the others where hits are more than half."""
        return self.hits if 2 * self.hits.sum() <= self.out_of.sum() else self.out_of - self.hits

    @property
    def scarce(self) -> bool:
        """True where (nearly) nothing or (nearly) everything happened: under 10 answers and under a tenth are of the rarer kind."""
        rare = float(self.events.sum())
        return rare < SCARCE and rare < RARE * float(self.out_of.sum())


def rate(questions: np.ndarray, hits: np.ndarray, out_of: np.ndarray, *, macro: bool = False) -> Rate | None:
    """Return the share of hits over questions, or None where no answer counts.

    Micro: sum(hits) / sum(out_of), c_q = (hits_q - p out_of_q) / sum(out_of). Macro: mean of the questions' own shares,
    c_q = (p_q - p) / Q. (linearised ratio, Cochran 1977, section 6)

    Args:
        questions: identifiers [Q], ascending; hits, out_of: counts [Q]. Questions without answers are left out.
        macro: weigh questions equally.
    """
    kept = out_of > 0
    if not kept.any():
        return None
    asked, questions, hits, out_of = questions, questions[kept], hits[kept].astype(float), out_of[kept].astype(float)
    total = float(out_of.sum())
    if macro:
        shares = hits / out_of
        value = float(shares.mean())
        parts = (shares - value) / len(shares)
    else:
        value = float(hits.sum() / total)
        parts = (hits - value * out_of) / total
    return Rate(value, int(total), questions, hits, out_of, parts, macro, asked)


def rate_estimate(found: Rate | None, *, level: float = 0.95) -> Estimate:
    """Return the interval of a rate: t on the logit scale, clustered by question.

    se^2 = Q/(Q-1) sum c_q^2, df from the contributions' kurtosis (see `freedom`). It is never wider than Wilson's interval
    with t for z and the questions as the sample, which holds where all answers to a question are alike: nothing depends more. Where
    all questions agree exactly it is Wilson's with z, so that no event still has an upper end. (ours; coverage simulated in
    `bench/rate_coverage.py`)
    """
    if found is None:
        return undefined("there are no counted answers", level=level, method=CLUSTERED)
    p, count = found.value, len(found.questions)
    if count < 2:
        return without_interval(found, level, CLUSTERED)
    if found.bare:
        low, high = wilson(p, count, z=normal(0.5 + level / 2))
        return Estimate(p, low, high, level, "rate, Wilson over questions", found.n, count)
    se, df = spread(found.contributions)
    reach = student(0.5 + level / 2, df) * se / (p * (1 - p))
    centre = float(special.logit(p))
    ends = float(special.expit(centre - reach)), float(special.expit(centre + reach))
    sizes = np.ones(count) if found.macro else found.out_of
    alike = float(sizes.sum() ** 2 / (sizes**2).sum())  # Kish's number of questions of equal size
    widest = wilson(p, alike, z=student(0.5 + level / 2, count - 1))
    return Estimate(p, max(ends[0], widest[0]), min(ends[1], widest[1]), level, CLUSTERED, found.n, count)


def freedom(contributions: np.ndarray) -> float:
    """Return the degrees of freedom of sum c_q^2 [Q]: 3 (sum c^2)^2 / sum c^4 x (Q-1)/Q, between 1 and Q - 1.

    It is Q - 1 for normal contributions and falls where a few questions carry the spread. (ours, in Satterthwaite's manner)
    """
    squares = contributions**2
    count = len(contributions)
    scaled = squares / squares.max()  # fourth powers of small numbers underflow
    return float(np.clip(3 * scaled.sum() ** 2 / (scaled**2).sum() * (count - 1) / count, 1, count - 1))


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference of two rates with its two-sided p-value.

    Attributes:
        by: how p was found. limit: a sentence where p lies below what the flips or resamples drawn can resolve.
        caution: a sentence where the interval's coverage is below its level, or its ends are rough.
    """

    difference: Estimate
    p: float | None
    by: str | None = None
    limit: str | None = None
    caution: str | None = None


def coverage_at(questions: int, *, resampled: bool = False) -> tuple[float, float] | None:
    """Return the simulated coverage (least, most) of the 95 % interval at this number of questions; None where it is near 95 %."""
    if questions >= (2 * FEW_QUESTIONS if resampled else FEW_QUESTIONS):
        return None
    return COVERAGE[max((q for q in COVERAGE if q <= questions), default=min(COVERAGE))][int(resampled)]


def spread(parts: np.ndarray) -> tuple[float, float]:
    count = len(parts)
    return float(np.sqrt(count / (count - 1) * (parts**2).sum())), freedom(parts)


def independent_answers(found: Rate) -> float:
    """Return the number of answers that would carry as much information if questions did not differ."""
    return float(len(found.questions) ** 2 / (1 / found.out_of).sum()) if found.macro else float(found.n)


def without_interval(found: Rate, level: float, method: str) -> Estimate:
    why = "with one question, the spread between questions is unknown"
    return Estimate(found.value, None, None, level, method, found.n, len(found.questions), why)
