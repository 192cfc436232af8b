"""A number that travels with its provenance."""

from __future__ import annotations

from dataclasses import dataclass, field

from emscope.core.plain import LEFT_OUT, Result


@dataclass(frozen=True, slots=True)
class Estimate(Result):
    """A value with its interval and provenance.

    Attributes:
        value, low, high: the estimate and its two-sided interval; None where undefined, with the reason in `why`.
        level: coverage of the interval, e.g. .95.
        method: how it was computed.
        n: observations used; clusters: independent units among them (questions, items).
        why: one sentence, only where the value or the interval is missing.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    n: int
    clusters: int
    why: str | None = field(default=None, metadata=LEFT_OUT)


def undefined(why: str, *, level: float, method: str, n: int = 0, clusters: int = 0) -> Estimate:
    """Return an Estimate without a value, with the reason."""
    return Estimate(None, None, None, level, method, n, clusters, why)
