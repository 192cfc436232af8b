"""Rates over answers whose unit is the question: answers to one question are not independent.

A rate is linearised: every question contributes c_q to it, the contributions sum to zero, and their spread is the rate's
variance between questions. Differences of rates subtract contributions question by question, so that shared questions pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import normal, student, student_tail
from emscope.stats.rates import wilson

CLUSTERED = "rate, logit t clustered by question"
RESAMPLED = "rate, percentile bootstrap over questions"
DIFFERENCE = "difference of rates, t clustered by question"
RESAMPLED_DIFFERENCE = "difference of rates, percentile bootstrap over questions"
FEW_QUESTIONS = 24
MOST_KEPT = 4000  # groups whose resampled rates are kept, 16 kB each at 2,000 resamples
MOST_WEIGHTS = 50_000_000  # resamples x questions: their weights stay below 200 MB

COVERAGE = {  # of 95 % intervals by number of questions, over the rates .02 to .5: (least, most) of ours, of the bootstrap
    4: ((0.934, 0.995), (0.674, 0.794)),
    8: ((0.901, 0.989), (0.748, 0.906)),
    12: ((0.908, 0.962), (0.804, 0.912)),
    24: ((0.923, 0.959), (0.851, 0.937)),
    48: ((0.934, 0.954), (0.891, 0.933)),
    100: ((0.942, 0.955), (0.904, 0.951)),
}
"""Measured by `bench/rate_coverage.py`: 50 answers a question, questions that differ with sd 1.5 on the logit scale."""


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


def rate(questions: np.ndarray, hits: np.ndarray, out_of: np.ndarray, *, macro: bool = False) -> Rate | None:
    """Return the share of hits over questions, or None where there is no answer to take a share of.

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
        return undefined("no answer to take a share of", level=level, method=CLUSTERED)
    p, count = found.value, len(found.questions)
    if count < 2:
        return _without_interval(found, level, CLUSTERED)
    if found.bare:
        low, high = wilson(p, count, z=normal(0.5 + level / 2))
        return Estimate(p, low, high, level, "rate, Wilson over questions", found.n, count)
    se, df = _spread(found.contributions)
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
    """A difference of two rates with its two-sided p-value; `adjusted` after correction for the family it belongs to."""

    difference: Estimate
    p: float | None
    adjusted: float | None = None


def contrast(a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
    """Return a - b, paired on the questions they share.

    se^2 = Q/(Q-1) sum (c_q(a) - c_q(b))^2 over the union of questions, a question's absence contributing 0; a side on which
    all questions agree adds the variance that Wilson's interval gives it, and so do both where all questions differ alike. Degrees
    of freedom of the pieces join as in Satterthwaite 1946. (ours)
    """
    if a is None or b is None:
        return Contrast(undefined("a side has no answers", level=level, method=DIFFERENCE), None)
    names = np.union1d(a.questions, b.questions)
    value, n = a.value - b.value, a.n + b.n
    if len(names) < 2:
        why = "one question has no spread between questions"
        return Contrast(Estimate(value, None, None, level, DIFFERENCE, n, len(names), why), None)
    parts = np.zeros(len(names))
    parts[np.searchsorted(names, a.questions)] += a.contributions
    parts[np.searchsorted(names, b.questions)] -= b.contributions
    pieces = [(_bare_variance(side), len(side.questions) - 1.0) for side in (a, b) if side.bare]
    if np.any(np.abs(parts) > 1e-15):
        se, df = _spread(parts)
        pieces.append((se * se, df))
    if sum(v for v, _ in pieces) < 1e-24:  # every question differs by as much: no spread is not certainty
        pieces = [(_bare_variance(side), len(side.questions) - 1.0) for side in (a, b)]
    variance = sum(v for v, _ in pieces)
    df = variance**2 / sum(v * v / max(f, 1) for v, f in pieces)  # Satterthwaite 1946
    se = float(np.sqrt(variance))
    reach = student(0.5 + level / 2, df) * se
    p = 2 * student_tail(abs(value) / se, df)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return Contrast(Estimate(value, low, high, level, DIFFERENCE, n, len(names)), p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the order given; a missing one stays missing and counts for nothing. (Holm 1979)"""
    known = sorted((p, n) for n, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    worst = 0.0
    for rank, (p, n) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[n] = worst
    return adjusted


class Resamples:
    """The percentile bootstrap over questions, with the same draws for all groups that were asked the same questions.

    Args:
        count: resamples R; seed: of the draws.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        self._drawn: dict[bytes, np.ndarray] = {}
        self._known: dict[tuple[int, bytes], tuple[Rate, np.ndarray]] = {}

    def values(self, found: Rate, questions: np.ndarray | None = None) -> np.ndarray:
        """Return the rate in each resample [R]; NaN where a resample drew no answers.

        Args:
            questions: the identifiers drawn from, ascending; those asked by default.
        """
        names = found.asked if questions is None else questions
        key = id(found), names.tobytes()
        if key not in self._known:  # a group stands in many contrasts
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[key] = found, self._values(found, names)
        return self._known[key][1]

    def _values(self, found: Rate, names: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(names), 2), np.float32)  # of the weights' own kind, which are not copied then
        place = np.searchsorted(names, found.questions)
        counts[place, 0] = found.hits / found.out_of if found.macro else found.hits
        counts[place, 1] = 1.0 if found.macro else found.out_of
        top, bottom = (self._weights(names) @ counts).T.astype(float)
        with np.errstate(invalid="ignore"):
            return top / bottom

    def estimate(self, found: Rate | None, *, level: float = 0.95) -> Estimate:
        """Return the interval of a rate between the resamples' percentiles."""
        if found is None:
            return undefined("no answer to take a share of", level=level, method=RESAMPLED)
        if len(found.questions) < 2:
            return _without_interval(found, level, RESAMPLED)
        return _between(self.values(found), Estimate(found.value, None, None, level, RESAMPLED, found.n, len(found.questions)))

    def contrast(self, a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
        """Return a - b with percentiles of the resampled differences; p is twice the smaller tail's share."""
        if a is None or b is None:
            return Contrast(undefined("a side has no answers", level=level, method=RESAMPLED_DIFFERENCE), None)
        names = a.asked if np.array_equal(a.asked, b.asked) else np.union1d(a.asked, b.asked)
        drawn = self.values(a, names) - self.values(b, names)
        drawn = drawn[np.isfinite(drawn)]
        bare = Estimate(a.value - b.value, None, None, level, RESAMPLED_DIFFERENCE, a.n + b.n, len(names))
        difference = _between(drawn, bare)
        if difference.low is None:
            return Contrast(difference, None)
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        return Contrast(difference, min(1.0, 2 * (tail + 1) / (len(drawn) + 1)))

    def _weights(self, questions: np.ndarray) -> np.ndarray:
        """Return how often each question is drawn in each resample [R, Q]."""
        key = questions.tobytes()
        if key not in self._drawn:
            count = len(questions)
            while self._drawn and sum(w.size for w in self._drawn.values()) + self.count * count > MOST_WEIGHTS:
                self._drawn.pop(next(iter(self._drawn)))  # the oldest: draws are large
            draw = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), size=self.count)
            self._drawn[key] = draw.astype(np.float32)
        return self._drawn[key]


def coverage_at(questions: int, *, resampled: bool = False) -> tuple[float, float] | None:
    """Return the simulated coverage (least, most) of the 95 % interval at this number of questions; None where it is near 95 %."""
    if questions >= (2 * FEW_QUESTIONS if resampled else FEW_QUESTIONS):
        return None
    return COVERAGE[max((q for q in COVERAGE if q <= questions), default=min(COVERAGE))][int(resampled)]


def _between(drawn: np.ndarray, bare: Estimate) -> Estimate:
    """Return `bare` with the percentiles of what was drawn [R]; draws that are all the same know no interval."""
    known = np.sort(drawn[np.isfinite(drawn)])
    if not len(known) or known[-1] - known[0] < 1e-9:
        return replace(bare, why="all resamples are the same; the closed form, without resamples, has an interval")
    places = (len(known) - 1) * np.array([0.5 - bare.level / 2, 0.5 + bare.level / 2])
    low, high = np.interp(places, np.arange(len(known)), known)  # numpy.quantile's value, at a tenth of its overhead
    return replace(bare, low=float(low), high=float(high))


def _spread(parts: np.ndarray) -> tuple[float, float]:
    count = len(parts)
    return float(np.sqrt(count / (count - 1) * (parts**2).sum())), freedom(parts)


def _bare_variance(found: Rate) -> float:
    """Return the variance that Wilson's 95 % interval over the questions gives to a rate whose questions all agree."""
    z = normal(0.975)
    low, high = wilson(found.value, len(found.questions), z=z)
    return (max(high - found.value, found.value - low) / z) ** 2


def _without_interval(found: Rate, level: float, method: str) -> Estimate:
    why = "one question has no spread between questions"
    return Estimate(found.value, None, None, level, method, found.n, len(found.questions), why)
