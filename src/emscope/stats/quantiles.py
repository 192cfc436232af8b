"""Quantiles and tails of the normal and of Student's t, as scipy.stats has them, without its second of start-up."""

from __future__ import annotations

from scipy import special


def normal(level: float) -> float:
    """Return the standard normal quantile at `level`."""
    return float(special.ndtri(level))


def student(level: float, df: float) -> float:
    """Return the quantile of Student's t with `df` degrees of freedom at `level`; the normal one where `df` is infinite."""
    return normal(level) if df == float("inf") else float(special.stdtrit(df, level))


def student_tail(t: float, df: float) -> float:
    """Return the probability of more than `t` under Student's t with `df` degrees of freedom."""
    return float(special.ndtr(-t)) if df == float("inf") else float(special.stdtr(df, -t))
