"""Differences of rates where a side is near 0 or 1, so that its own spread between questions says little.

Intervals come from Wilson's at the effective number of answers, p-values from flipped signs and from the exact test within questions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import special

from emscope.core.estimate import Estimate
from emscope.stats.clustered import SCARCE, Contrast, Rate, independent_answers, spread
from emscope.stats.quantiles import normal, student, student_tail
from emscope.stats.rates import wilson

NEAR_ZERO = "difference of rates, MOVER of Wilson at the effective number of answers"
BY_FLIPS = "sign-flip over questions"
MOST_HOT = 8  # questions that carry 90 % of the events, at or below which intervals hold the truth less often than they say
ALL_FLIPS, FLIPS = 12, 9_999  # differences of which all flips of signs are looked at; flips drawn where there are more
MOST_EXACT = 500  # events up to which their distribution between two sides is summed and not taken as normal


def scarce_contrast(a: Rate, b: Rate, *, level: float = 0.95) -> Contrast:
    """Return a - b for questions like these where a side is near 0 or 1, so that its own spread between questions says little.

    Each side has Wilson's interval at N / deff answers, deff = 1 + (m - 1) rho with m answers per question. rho is that of the
    side with more events, for both; where neither has any it is 1, which makes the questions the sample. The side with more
    events takes t for z and, at the end away from 0 or 1, adds the hottest question's share of the variance once more: a hotter
    one may not have been asked. Both join by MOVER (Newcombe 1998, method 10; Zou and Donner 2008), the correlation of what the
    questions contribute drawn towards 0 by E / (E + 2) at E events. p flips signs: see `flipped`. (borrowing, hottest question
    and shrinkage: ours)
    """
    busy, other = (a, b) if a.events.sum() >= b.events.sum() else (b, a)
    rho = _alike(busy)
    ends = {id(busy): _wilson_ends(busy, rho, level) if busy.bare else _busy_ends(busy, level)}
    ends[id(other)] = _wilson_ends(other, rho, level)
    low, high = mover(a.value, b.value, ends[id(a)], ends[id(b)], _correlation(busy, other))
    names = np.union1d(a.questions, b.questions)
    found = Estimate(a.value - b.value, low, high, level, NEAR_ZERO, a.n + b.n, len(names))
    p, limit = flipped(a, b)
    apart = not busy.events.sum() and round(busy.value) != round(other.value)  # everything on one side, nothing on the other
    of_more = " on the side with more of them"
    return Contrast(found, p, BY_FLIPS, limit, None if apart else caution(busy.events, of_more))


def caution(events: np.ndarray, where: str = "") -> str | None:
    """Return what a reader must know about an interval from few events, or from few questions that carry them; None where neither applies.

    Args:
        events: the rarer outcome's count by question [Q]. where: text after the number of events.
    """
    total = int(events.sum())
    if total < SCARCE:
        return f"too few events: {total}{where}, and with fewer than {SCARCE} an interval's ends are rough"
    carry = int(np.searchsorted(np.cumsum(np.sort(events)[::-1]), 0.9 * total - 1e-9)) + 1
    if carry > MOST_HOT:
        return None
    return (
        f"hot questions: {carry} of {len(events)} carry nine tenths of the events, and others may not have been asked; "
        "the interval covers the truth less often than its level says"
    )


def flipped(a: Rate, b: Rate) -> tuple[float, str | None]:
    """Return the two-sided p-value of a - b by flipping the signs of the shared questions' differences, and a sentence if it is a limit.

    Where two sides have unequal numbers of answers the `differences` are skewed, and the smaller side may be empty by chance alone: p is
    then no smaller than that of Mantel and Haenszel's exact test within questions. (sign-flip: Fisher 1935; the larger of both: ours)
    """
    p, limit = sign_flip(differences(a, b))
    _, left, right = np.intersect1d(a.questions, b.questions, assume_unique=True, return_indices=True)
    ha, na, hb, nb = a.hits[left], a.out_of[left], b.hits[right], b.out_of[right]
    within = 0.0 if np.array_equal(na, nb) else conditional(ha, na, hb, nb)
    return (p, limit) if p >= within else (within, None)


def differences(a: Rate, b: Rate) -> np.ndarray:
    """Return d_q of the shared questions [Q]: (h_a n_b - h_b n_a) / (n_a + n_b), Mantel and Haenszel's weights; macro: of shares."""
    _, left, right = np.intersect1d(a.questions, b.questions, assume_unique=True, return_indices=True)
    ha, na, hb, nb = a.hits[left], a.out_of[left], b.hits[right], b.out_of[right]
    return np.asarray(ha / na - hb / nb if a.macro else (ha * nb - hb * na) / (na + nb))


def sign_flip(differences: np.ndarray) -> tuple[float, str | None]:
    """Return the two-sided p-value of paired differences [Q] under random sign flips; a sentence if it is a limit.

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


def mover(a: float, b: float, left: tuple[float, float], right: tuple[float, float], r: float) -> tuple[float, float]:
    """Return the interval of a - b from each one's own, correlated by r. (Zou and Donner 2008, equation 10)"""
    down, up = a - left[0], left[1] - a
    fall, rise = b - right[0], right[1] - b
    low = a - b - float(np.sqrt(max(down * down + rise * rise - 2 * r * down * rise, 0.0)))
    high = a - b + float(np.sqrt(max(up * up + fall * fall - 2 * r * up * fall, 0.0)))
    return max(-1.0, low), min(1.0, high)


def _effective(found: Rate, rho: float) -> float:
    """Return N / deff at the correlation `rho` of answers to one question. (Kish 1965; macro: answers a question harmonically averaged)"""
    answers = independent_answers(found)
    per = answers / len(found.questions) if found.macro else float((found.out_of**2).sum() / found.out_of.sum())
    return answers / (1 + (per - 1) * rho)


def _alike(found: Rate) -> float:
    """Return the correlation of answers to one question, between 0 and 1; 1 without any event, or with one answer per question."""
    most = independent_answers(found) / _effective(found, 1.0)
    plain = found.value * (1 - found.value) / independent_answers(found)
    if most <= 1 or plain <= 0:
        return 1.0
    count = len(found.contributions)
    between = float(count / (count - 1) * (found.contributions**2).sum())
    return float(np.clip((between / plain - 1) / (most - 1), 0, 1))


def _wilson_ends(found: Rate, rho: float, level: float) -> tuple[float, float]:
    return wilson(found.value, _effective(found, rho), z=normal(0.5 + level / 2))


def _busy_ends(found: Rate, level: float) -> tuple[float, float]:
    """Return the interval of the side with more events, as `scarce_contrast` says; never wider than the questions as the sample."""
    se, df = spread(found.contributions)
    p, t = found.value, student(0.5 + level / 2, df)
    upwards = 2 * found.hits.sum() <= found.out_of.sum()
    hottest = int(np.argmax(found.contributions if upwards else -found.contributions))
    again = float(found.contributions[hottest] ** 2 * (1 - 1 / max(float(found.events[hottest]), 1.0)))  # one event is not hot
    near, far = (wilson(p, min(p * (1 - p) / v, independent_answers(found)), z=t) for v in (se * se, se * se + again))
    ends = (near[0], far[1]) if upwards else (far[0], near[1])
    widest = wilson(p, _effective(found, 1.0), z=student(0.5 + level / 2, max(len(found.questions) - 1, 1)))
    return max(ends[0], widest[0]), min(ends[1], widest[1])


def _correlation(busy: Rate, other: Rate) -> float:
    """Return the correlation of two sides' contributions on shared questions, 0 where negative, shrunk to 0 where events are few."""
    _, left, right = np.intersect1d(busy.questions, other.questions, assume_unique=True, return_indices=True)
    x, y = busy.contributions[left], other.contributions[right]
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    events = float(other.events.sum())
    return float(np.clip((x * y).sum() / size, 0, 1)) * events / (events + 2) if size > 0 else 0.0


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
