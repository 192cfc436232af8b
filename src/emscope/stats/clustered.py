"""Rates over answers whose unit is the question: answers to one question are not independent.

A rate is linearised: every question contributes c_q to it, the contributions sum to zero, and their spread is the rate's
variance between questions. Differences of rates subtract contributions question by question, so that shared questions pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import normal, student, student_tail
from emscope.stats.rates import wilson

CLUSTERED = "rate, logit t clustered by question"
RESAMPLED = "rate, percentile bootstrap over questions"
DIFFERENCE = "difference of rates, t clustered by question"
RESAMPLED_DIFFERENCE = "difference of rates, percentile bootstrap over questions"
NEAR_ZERO = "difference of rates, MOVER of Wilson at the effective number of answers"
THESE = "rate of these questions, Wilson at the effective number of answers"
THESE_DIFFERENCE = "difference of rates of these questions, MOVER of Wilson at the effective number of answers"
BY_T = "t clustered by question"
BY_FLIPS = "sign-flip over questions"
BY_RESAMPLES = "bootstrap over questions"
BY_CONDITION = "Mantel-Haenszel within questions"
FEW_QUESTIONS = 24
MOST_KEPT = 4000  # groups whose resampled rates are kept, 16 kB each at 2,000 resamples
MOST_WEIGHTS = 50_000_000  # resamples x questions: their weights stay below 200 MB
SCARCE, RARE = 10, 0.1  # a side is near an end with fewer events (or fewer answers without), and as a smaller share, than this
MOST_HOT = 8  # questions that carry 90 % of the events, at or below which intervals hold the truth less often than they say
UNRESAMPLED = (
    "resamples of a side on which all answers are alike never vary; the closed form, without resamples, says how far they might"
)
ALL_FLIPS, FLIPS = 12, 9_999  # differences of which all flips of signs are looked at; flips drawn where there are more
MOST_EXACT = 500  # events up to which their distribution between two sides is summed and not taken as normal

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
        """True where nothing, or everything, or nearly so, happened: under 10 answers and under a tenth are of the rarer kind."""
        rare = float(self.events.sum())
        return rare < SCARCE and rare < RARE * float(self.out_of.sum())


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
    """A difference of two rates with its two-sided p-value.

    Attributes:
        by: how p was found. limit: where p lies below what the flips or resamples drawn can show, a sentence that says so.
        caution: a sentence where the interval holds the truth less often than it says, or its ends are rough.
    """

    difference: Estimate
    p: float | None
    by: str | None = None
    limit: str | None = None
    caution: str | None = None


def contrast(a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
    """Return a - b for questions like these, paired on the questions they share.

    se^2 = Q/(Q-1) sum (c_q(a) - c_q(b))^2 over the union of questions, a question's absence contributing 0; where all questions
    differ alike, the variances that Wilson's intervals over the questions give. Degrees of freedom of the pieces join as in
    Satterthwaite 1946. (ours) A side near 0 or 1 has no spread to go by: see `scarce_contrast`.
    """
    if a is None or b is None:
        return Contrast(undefined("a side has no answers", level=level, method=DIFFERENCE), None)
    names = np.union1d(a.questions, b.questions)
    value, n = a.value - b.value, a.n + b.n
    if len(names) < 2:
        why = "one question has no spread between questions"
        return Contrast(Estimate(value, None, None, level, DIFFERENCE, n, len(names), why), None)
    shared = len(np.intersect1d(a.questions, b.questions, assume_unique=True))
    if (a.scarce or b.scarce) and a.counted and b.counted and 2 * shared >= len(names):
        return scarce_contrast(a, b, level=level)
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
    return Contrast(Estimate(value, low, high, level, DIFFERENCE, n, len(names)), p, BY_T)


def scarce_contrast(a: Rate, b: Rate, *, level: float = 0.95) -> Contrast:
    """Return a - b for questions like these where a side is near 0 or 1, so that its own spread between questions says little.

    Each side has Wilson's interval at N / deff answers, deff = 1 + (m - 1) rho with m answers a question. rho is that of the side with
    more events, for both; where neither has any it is 1, which makes the questions the sample. The side with more events takes t for z
    and, at the end away from 0 or 1, adds the hottest question's share of the variance once more: a hotter one may not have been
    asked. Both join by MOVER (Newcombe 1998, method 10; Zou and Donner 2008), the correlation of what the questions contribute drawn
    towards 0 by E / (E + 2) at E events. p flips signs: see `flipped`. (borrowing, hottest question and shrinkage: ours)
    """
    busy, other = (a, b) if a.events.sum() >= b.events.sum() else (b, a)
    rho = _alike(busy)
    ends = {id(busy): _wilson_ends(busy, rho, level) if busy.bare else _busy_ends(busy, level)}
    ends[id(other)] = _wilson_ends(other, rho, level)
    low, high = _mover(a.value, b.value, ends[id(a)], ends[id(b)], _correlation(busy, other))
    names = np.union1d(a.questions, b.questions)
    found = Estimate(a.value - b.value, low, high, level, NEAR_ZERO, a.n + b.n, len(names))
    p, limit = flipped(a, b)
    return Contrast(found, p, BY_FLIPS, limit, _caution(busy, other))


def flipped(a: Rate, b: Rate) -> tuple[float, str | None]:
    """Return the two-sided p-value of a - b by flipping the signs of the shared questions' differences, and a sentence if it is a limit.

    d_q = (h_a n_b - h_b n_a) / (n_a + n_b) (Mantel and Haenszel's weights), macro: the difference of shares. Where two sides have unequal
    numbers of answers d_q is skewed, and the smaller side may be empty by chance alone: p is then no smaller than that
    of Mantel and Haenszel's exact test within questions. (sign-flip: Fisher 1935; the larger of both: ours)
    """
    _, left, right = np.intersect1d(a.questions, b.questions, assume_unique=True, return_indices=True)
    ha, na, hb, nb = a.hits[left], a.out_of[left], b.hits[right], b.out_of[right]
    d = ha / na - hb / nb if a.macro else (ha * nb - hb * na) / (na + nb)
    p, limit = sign_flip(d)
    within = 0.0 if np.array_equal(na, nb) else conditional(ha, na, hb, nb)
    return (p, limit) if p >= within else (within, None)


def sign_flip(differences: np.ndarray) -> tuple[float, str | None]:
    """Return the two-sided p-value of paired differences [Q] against signs that could as well be flipped; a sentence if it is a limit.

    The statistic is their sum. Where all that differ from 0 do so in one direction only two of the 2^k flips are as far: p = 2^(1-k),
    exactly. Up to 12 all flips are looked at; of more, 9,999 with a fixed seed, and p = (1 + those as far) / 10,000. (Fisher 1935;
    Phipson and Smyth 2010)
    """
    d = differences[np.abs(differences) > 1e-12]
    if not len(d):
        return 1.0, None
    if (d > 0).all() or (d < 0).all():
        return float(2.0 ** (1 - len(d))), None
    d = (d / np.abs(d).sum()).astype(np.float32)
    signs = _all_signs(len(d)) if len(d) <= ALL_FLIPS else _drawn_signs(-(-len(d) // 64) * 64)[:, : len(d)]
    far = int((np.abs(signs @ d) >= abs(float(d.sum())) - 1e-5).sum())
    if len(d) <= ALL_FLIPS:
        return far / len(signs), None
    return (far + 1) / (FLIPS + 1), None if far else f"p below what {FLIPS:,} flips of signs can show"


def conditional(ha: np.ndarray, na: np.ndarray, hb: np.ndarray, nb: np.ndarray) -> float:
    """Return the two-sided p-value of no difference on any question, given each question's events.

    The events of a question fall on both sides as draws without replacement would: their sum on one side is a sum of hypergeometric
    numbers, summed exactly up to 500 events and else normal. Twice the smaller tail. (Mantel and Haenszel 1959; exact: Birch 1964)

    Args:
        ha, na, hb, nb: hits and answers of both sides [Q], whole numbers.
    """
    if 2 * (ha.sum() + hb.sum()) > na.sum() + nb.sum():
        ha, hb = na - ha, nb - hb
    events, size = ha + hb, na + nb
    mean = events * na / size
    variance = float((mean * (nb / size) * (size - events) / np.maximum(size - 1, 1)).sum())
    if variance <= 0:
        return 1.0
    seen = float(ha.sum())
    if events.sum() > MOST_EXACT:
        return min(1.0, 2 * student_tail((abs(seen - float(mean.sum())) - 0.5) / float(np.sqrt(variance)), float("inf")))
    total = np.ones(1)
    start = 0  # what the first entry of `total` counts
    for k, n, m in zip(events, na, nb, strict=True):
        if k > 0:
            least = int(max(0, k - m))
            j = np.arange(least, min(k, n) + 1)
            total = np.convolve(total, np.exp(_log_choose(n, j) + _log_choose(m, k - j) - _log_choose(n + m, k)))
            start += least
    place = int(seen) - start
    return min(1.0, 2 * float(min(total[: place + 1].sum(), total[place:].sum())))


def rate_of_these(found: Rate | None, *, level: float = 0.95) -> Estimate:
    """Return the interval of a rate for these questions: they are fixed, and only the samples vary.

    v = sum_q w_q^2 p_q (1 - p_q) / (n_q - 1), w_q the question's share of the answers or 1 / Q (macro); a question with one answer
    borrows p (1 - p). Wilson's interval at n_eff = p (1 - p) / v answers; N without any event. Where nearly all questions answer alike
    every time v says little, and the part z^2 (1 - v / v0) / N^2 joins it, v0 the variance of answers that ignore the question: an
    answer that never varied in n may yet vary in 3.8 / n. (stratified sampling, Cochran 1977, section 5; the last part: ours)
    """
    if found is None:
        return undefined("no answer to take a share of", level=level, method=THESE)
    low, high = _these_ends(found, level)
    return Estimate(found.value, low, high, level, THESE, found.n, len(found.questions))


def contrast_of_these(a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
    """Return a - b for these questions: MOVER of both sides' `rate_of_these`, p by `conditional` on the questions they share."""
    if a is None or b is None:
        return Contrast(undefined("a side has no answers", level=level, method=THESE_DIFFERENCE), None)
    low, high = _mover(a.value, b.value, _these_ends(a, level), _these_ends(b, level), 0.0)
    names, left, right = np.intersect1d(a.questions, b.questions, assume_unique=True, return_indices=True)
    count = len(a.questions) + len(b.questions) - len(names)
    found = Estimate(a.value - b.value, low, high, level, THESE_DIFFERENCE, a.n + b.n, count)
    p = conditional(a.hits[left], a.out_of[left], b.hits[right], b.out_of[right]) if len(names) else None
    return Contrast(found, p, BY_CONDITION if len(names) else None)


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
        difference = _between(
            drawn, Estimate(a.value - b.value, None, None, level, RESAMPLED_DIFFERENCE, a.n + b.n, len(names))
        )
        if difference.low is None:
            return Contrast(difference, None)
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        limit = None if tail else f"p below what {self.count:,} resamples can show"
        bare = a.bare or b.bare
        return Contrast(
            difference, min(1.0, 2 * (tail + 1) / (len(drawn) + 1)), BY_RESAMPLES, limit, UNRESAMPLED if bare else None
        )

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


def _alone(found: Rate) -> float:
    """Return the number of answers that would tell as much if questions did not differ."""
    return float(len(found.questions) ** 2 / (1 / found.out_of).sum()) if found.macro else float(found.n)


def _effective(found: Rate, rho: float) -> float:
    """Return N / deff at the correlation `rho` of answers to one question. (Kish 1965; macro: answers a question harmonically averaged)"""
    alone = _alone(found)
    per = alone / len(found.questions) if found.macro else float((found.out_of**2).sum() / found.out_of.sum())
    return alone / (1 + (per - 1) * rho)


def _alike(found: Rate) -> float:
    """Return the correlation of answers to one question, between 0 and 1; 1 without any event, or with one answer a question."""
    most = _alone(found) / _effective(found, 1.0)
    plain = found.value * (1 - found.value) / _alone(found)
    if most <= 1 or plain <= 0:
        return 1.0
    count = len(found.contributions)
    between = float(count / (count - 1) * (found.contributions**2).sum())
    return float(np.clip((between / plain - 1) / (most - 1), 0, 1))


def _wilson_ends(found: Rate, rho: float, level: float) -> tuple[float, float]:
    return wilson(found.value, _effective(found, rho), z=normal(0.5 + level / 2))


def _busy_ends(found: Rate, level: float) -> tuple[float, float]:
    """Return the interval of the side with more events, as `scarce_contrast` says; never wider than the questions as the sample."""
    se, df = _spread(found.contributions)
    p, t = found.value, student(0.5 + level / 2, df)
    upwards = 2 * found.hits.sum() <= found.out_of.sum()
    hottest = int(np.argmax(found.contributions if upwards else -found.contributions))
    again = float(found.contributions[hottest] ** 2 * (1 - 1 / max(float(found.events[hottest]), 1.0)))  # one event is not hot
    near, far = (wilson(p, min(p * (1 - p) / v, _alone(found)), z=t) for v in (se * se, se * se + again))
    ends = (near[0], far[1]) if upwards else (far[0], near[1])
    widest = wilson(p, _effective(found, 1.0), z=student(0.5 + level / 2, max(len(found.questions) - 1, 1)))
    return max(ends[0], widest[0]), min(ends[1], widest[1])


def _these_ends(found: Rate, level: float) -> tuple[float, float]:
    z, p, alone = normal(0.5 + level / 2), found.value, _alone(found)
    plain = p * (1 - p) / alone
    if plain <= 0:
        return wilson(p, alone, z=z)
    share, size = found.hits / found.out_of, found.out_of
    weight = np.full(len(size), 1 / len(size)) if found.macro else size / size.sum()
    inside = np.where(size > 1, share * (1 - share) / np.maximum(size - 1, 1), p * (1 - p))
    variance = float((weight**2 * inside).sum())
    variance += (z / alone) ** 2 * max(1 - variance / plain, 0.0)
    return wilson(p, p * (1 - p) / variance, z=z)


def _mover(a: float, b: float, left: tuple[float, float], right: tuple[float, float], r: float) -> tuple[float, float]:
    """Return the interval of a - b from each one's own, correlated by r. (Zou and Donner 2008, equation 10)"""
    down, up = a - left[0], left[1] - a
    fall, rise = b - right[0], right[1] - b
    low = a - b - float(np.sqrt(max(down * down + rise * rise - 2 * r * down * rise, 0.0)))
    high = a - b + float(np.sqrt(max(up * up + fall * fall - 2 * r * up * fall, 0.0)))
    return max(-1.0, low), min(1.0, high)


def _correlation(busy: Rate, other: Rate) -> float:
    """Return the correlation of two sides' contributions on shared questions, 0 where negative, drawn to 0 where few events tell it."""
    _, left, right = np.intersect1d(busy.questions, other.questions, assume_unique=True, return_indices=True)
    x, y = busy.contributions[left], other.contributions[right]
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    events = float(other.events.sum())
    return float(np.clip((x * y).sum() / size, 0, 1)) * events / (events + 2) if size > 0 else 0.0


def _caution(busy: Rate, other: Rate) -> str | None:
    """Return what a reader must know of an interval from few events, or from few questions that carry them."""
    events = busy.events
    total = int(events.sum())
    if not total and round(busy.value) != round(other.value):
        return None  # everything on one side, nothing on the other
    if total < SCARCE:
        return f"too few events: {total} on the side with more of them, and below {SCARCE} an interval's ends are rough"
    carry = int(np.searchsorted(np.cumsum(np.sort(events)[::-1]), 0.9 * total - 1e-9)) + 1
    if carry > MOST_HOT:
        return None
    return (
        f"hot questions: {carry} of {len(events)} carry nine tenths of the events, and others may not have been asked; "
        "the interval holds the truth less often than it says"
    )


@lru_cache(maxsize=ALL_FLIPS)
def _all_signs(count: int) -> np.ndarray:
    """Return all 2^count rows of signs."""
    return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float32) * 2 - 1


@lru_cache(maxsize=4)
def _drawn_signs(count: int) -> np.ndarray:
    """Return signs [9,999, count], always the same."""
    return np.random.default_rng(0).integers(0, 2, (FLIPS, count), dtype=np.int8).astype(np.float32) * 2 - 1


def _log_choose(n: float, k: np.ndarray | float) -> np.ndarray:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(np.add(k, 1)) - special.gammaln(np.subtract(n, k) + 1))


def _without_interval(found: Rate, level: float, method: str) -> Estimate:
    why = "one question has no spread between questions"
    return Estimate(found.value, None, None, level, method, found.n, len(found.questions), why)
