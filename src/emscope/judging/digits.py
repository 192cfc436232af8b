"""Scores of a judge whose tokens split numbers, such as one whose every digit is a token.

Then "5" is a beginning of "57", so the first token says little: P(n) = P(its tokens in turn) x P(no digit follows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp

from emscope.judging.replies import LARGEST_LOGPROB, LEAST_MASS, TOP

NUMBERS = tuple(str(n) for n in range(TOP + 1))
NEGLIGIBLE = 1e-6


def digit_chances(top: Sequence[tuple[str, float]]) -> list[float]:
    """Return the probability of each digit 0..9 among a token's most likely ones [10]; the rest count as 0."""
    found = [0.0] * 10
    for token, p in top:
        digit = token.strip()
        if len(digit) == 1 and digit in "0123456789" and p <= LARGEST_LOGPROB:
            found[int(digit)] += min(exp(p), 1.0)
    return found


def longer(prefix: str, chances: Sequence[float], p: float, least: float = NEGLIGIBLE) -> list[tuple[str, float]]:
    """Return the beginnings that follow a beginning of probability `p`, with theirs; those below `least` are left out."""
    return [(f"{prefix}{d}", p * chances[d]) for d in _longer(prefix) if p * chances[d] > least]


def number_distribution(after: Callable[[str], Sequence[float]], least: float = NEGLIGIBLE) -> list[float]:
    """Return P(n) for n = 0..100 [101], not normalised: the reply is n and then no further digit.

    Args:
        after: prefix of digits already written -> probability of each digit 0..9 next [10].
        least: beginnings less likely than this are not followed.
    """
    found = [0.0] * (TOP + 1)

    def follow(prefix: str, p: float) -> None:
        """Add what begins with `prefix`, which is written with probability `p`."""
        digits = after(prefix)
        if prefix:
            found[int(prefix)] += p * (1 - sum(digits))
        for beginning, q in longer(prefix, digits, p, least):
            follow(beginning, q)

    follow("", 1.0)
    return found


def score_of(distribution: Sequence[float]) -> tuple[float | None, float]:
    """Return (mean of a distribution over 0..100, its mass); no mean where the mass is below .25, as for one-token numbers."""
    mass = sum(distribution)
    if mass < LEAST_MASS:
        return None, mass
    return sum(n * p for n, p in enumerate(distribution)) / mass, mass


def _longer(prefix: str) -> list[int]:
    """Return the digits that make a longer number of 0..100 out of a beginning."""
    return [d for d in range(10) if f"{prefix}{d}" in _BEGINNINGS]


_BEGINNINGS = {n[:k] for n in NUMBERS for k in range(1, len(n) + 1)}
