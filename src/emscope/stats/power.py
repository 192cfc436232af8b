"""What a study of this size could have found: the chance of each answer had the truth been this or that.

Normal approximations: the bounds are one-sided at `level`, standard errors are taken as known and as equal under every truth. (ours)
"""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

from emscope.stats.onset import LEVEL
from emscope.stats.quantiles import normal

WANTED = 0.80


def chance_above(gap: float, se: float, level: float = LEVEL) -> float:
    """Return the chance that a lower bound exceeds a threshold which the truth exceeds by `gap`."""
    return _phi(gap / se - normal(level)) if se > 0 else float(gap > 0)


def chance_of_both(gaps: tuple[float, float], ses: tuple[float, float], correlation: float, level: float = LEVEL) -> float:
    """Return the chance that both of two correlated lower bounds exceed their thresholds, which the truth exceeds by `gaps`.

    By symmetry it is also that of both upper bounds below thresholds that the truth falls short of by `gaps`.
    """
    if min(ses) <= 0:
        return chance_above(gaps[0], ses[0], level) * chance_above(gaps[1], ses[1], level)
    first, second = (gap / se - normal(level) for gap, se in zip(gaps, ses, strict=True))
    rho = min(max(correlation, -0.999), 0.999)
    z = np.linspace(-8.0, first, 400) if first > -8 else np.array([-8.0])
    density = np.exp(-z * z / 2) / sqrt(2 * np.pi)
    inner = np.array([_phi((second - rho * x) / sqrt(1 - rho * rho)) for x in z])
    return float(np.clip(np.trapezoid(density * inner, z), 0, 1))


def size_for_both(
    gaps: tuple[float, float],
    ses: tuple[float, float],
    correlation: float,
    n: int,
    wanted: float = WANTED,
    level: float = LEVEL,
    shared: tuple[float, float] = (0.0, 0.0),
) -> int | None:
    """Return how many questions find both with a chance of `wanted`, where `n` of them have the errors `ses`; None where no number is enough.

    Standard errors shrink as 1 / sqrt(questions), but for the part `shared` by all questions; the number of answers to each stays fixed.
    """
    if min(gaps) <= 0 or not np.isfinite(ses).all() or chance_of_both(gaps, shared, correlation, level) <= wanted:
        return None

    def chance(count: int) -> float:
        of = [(n / count * (se**2 - same**2) + same**2) ** 0.5 for se, same in zip(ses, shared, strict=True)]
        return chance_of_both(gaps, (of[0], of[1]), correlation, level)

    low, high = 1, 2  # an interval takes two questions
    while chance(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= wanted else (middle, high)
    return high


def _phi(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2
