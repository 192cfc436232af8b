"""P-values of several tests, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values, in the order given; a missing one stays missing and is not counted. (Holm 1979)"""
    known = sorted((p, n) for n, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    worst = 0.0
    for rank, (p, n) in enumerate(known):
        worst = max(worst, min(1.0, p * (len(known) - rank)))
        adjusted[n] = worst
    return adjusted
