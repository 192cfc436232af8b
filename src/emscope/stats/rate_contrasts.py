"""Differences of rates for questions like these, paired on the questions that both sides were asked."""

from __future__ import annotations

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.clustered import Contrast, Rate, spread
from emscope.stats.quantiles import normal, student, student_tail
from emscope.stats.rates import wilson
from emscope.stats.scarce import scarce_contrast

DIFFERENCE = "difference of rates, t clustered by question"
BY_T = "t clustered by question"


def contrast(a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
    """Return a - b for questions like these, paired on the questions they share.

    se^2 = Q/(Q-1) sum (c_q(a) - c_q(b))^2 over the union of questions, a question's absence contributing 0; where all questions
    differ alike, the variances that Wilson's intervals over the questions give. Degrees of freedom of the pieces join as in
    Satterthwaite 1946. (ours) A side near 0 or 1 shows too little spread: see `scarce_contrast`.
    """
    if a is None or b is None:
        return Contrast(undefined("a side has no answers", level=level, method=DIFFERENCE), None)
    names = np.union1d(a.questions, b.questions)
    value, n = a.value - b.value, a.n + b.n
    if len(names) < 2:
        why = "with one question, the spread between questions is unknown"
        return Contrast(Estimate(value, None, None, level, DIFFERENCE, n, len(names), why), None)
    shared = len(np.intersect1d(a.questions, b.questions, assume_unique=True))
    if (a.scarce or b.scarce) and a.counted and b.counted and 2 * shared >= len(names):
        return scarce_contrast(a, b, level=level)
    parts = np.zeros(len(names))
    parts[np.searchsorted(names, a.questions)] += a.contributions
    parts[np.searchsorted(names, b.questions)] -= b.contributions
    pieces = [(_bare_variance(side), len(side.questions) - 1.0) for side in (a, b) if side.bare]
    if np.any(np.abs(parts) > 1e-15):
        se, df = spread(parts)
        pieces.append((se * se, df))
    if sum(v for v, _ in pieces) < 1e-24:  # every question differs by as much: no spread does not mean certainty
        pieces = [(_bare_variance(side), len(side.questions) - 1.0) for side in (a, b)]
    variance = sum(v for v, _ in pieces)
    df = variance**2 / sum(v * v / max(f, 1) for v, f in pieces)  # Satterthwaite 1946
    se = float(np.sqrt(variance))
    reach = student(0.5 + level / 2, df) * se
    p = 2 * student_tail(abs(value) / se, df)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return Contrast(Estimate(value, low, high, level, DIFFERENCE, n, len(names)), p, BY_T)


def _bare_variance(found: Rate) -> float:
    """Return the variance that Wilson's 95 % interval over the questions gives to a rate whose questions all agree."""
    z = normal(0.975)
    low, high = wilson(found.value, len(found.questions), z=z)
    return (max(high - found.value, found.value - low) / z) ** 2
