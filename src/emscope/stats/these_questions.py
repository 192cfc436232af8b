"""Rates and their differences for these questions: they are fixed, and only the samples vary."""

from __future__ import annotations

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.clustered import Contrast, Rate, independent_answers
from emscope.stats.quantiles import normal
from emscope.stats.rates import wilson
from emscope.stats.scarce import conditional, mover

THESE = "rate of these questions, Wilson at the effective number of answers"
THESE_DIFFERENCE = "difference of rates of these questions, MOVER of Wilson at the effective number of answers"
BY_CONDITION = "Mantel-Haenszel within questions"


def rate_of_these(found: Rate | None, *, level: float = 0.95) -> Estimate:
    """Return the interval of a rate for these questions: they are fixed, and only the samples vary.

    v = sum_q w_q^2 p_q (1 - p_q) / (n_q - 1), w_q the question's share of the answers or 1 / Q (macro); a question with one answer
    borrows p (1 - p). Wilson's interval at n_eff = p (1 - p) / v answers; N without any event. Where nearly all questions answer alike
    every time v says little, and the part z^2 (1 - v / v0) / N^2 joins it, v0 the variance of answers that ignore the question: an
    answer that never varied in n may yet vary in 3.8 / n. (stratified sampling, Cochran 1977, section 5; the last part: ours)
    """
    if found is None:
        return undefined("there are no counted answers", level=level, method=THESE)
    low, high = _these_ends(found, level)
    return Estimate(found.value, low, high, level, THESE, found.n, len(found.questions))


def contrast_of_these(a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
    """Return a - b for these questions: MOVER of both sides' `rate_of_these`, p by `conditional` on the questions they share."""
    if a is None or b is None:
        return Contrast(undefined("a side has no answers", level=level, method=THESE_DIFFERENCE), None)
    low, high = mover(a.value, b.value, _these_ends(a, level), _these_ends(b, level), 0.0)
    names, left, right = np.intersect1d(a.questions, b.questions, assume_unique=True, return_indices=True)
    count = len(a.questions) + len(b.questions) - len(names)
    found = Estimate(a.value - b.value, low, high, level, THESE_DIFFERENCE, a.n + b.n, count)
    p = conditional(a.hits[left], a.out_of[left], b.hits[right], b.out_of[right]) if len(names) else None
    return Contrast(found, p, BY_CONDITION if len(names) else None)


def _these_ends(found: Rate, level: float) -> tuple[float, float]:
    z, p, answers = normal(0.5 + level / 2), found.value, independent_answers(found)
    plain = p * (1 - p) / answers
    if plain <= 0:
        return wilson(p, answers, z=z)
    share, size = found.hits / found.out_of, found.out_of
    weight = np.full(len(size), 1 / len(size)) if found.macro else size / size.sum()
    inside = np.where(size > 1, share * (1 - share) / np.maximum(size - 1, 1), p * (1 - p))
    variance = float((weight**2 * inside).sum())
    variance += (z / answers) ** 2 * max(1 - variance / plain, 0.0)
    return wilson(p, p * (1 - p) / variance, z=z)
