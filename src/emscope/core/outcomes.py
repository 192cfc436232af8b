"""Closed sets of outcomes. Each says why; none is a bare boolean."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What the evidence at one checkpoint supports (ours).

    STYLE_DRIFT: worse than the base, not worse than the control. CONTROL_MOVED: worse than the control, not worse than the base.
    MOVED: worse than the base, and there is no control.
    """

    SAFE = "safe"
    EM = "em"
    UNDETERMINED = "undetermined"
    STYLE_DRIFT = "style_drift"
    CONTROL_MOVED = "control_moved"
    MOVED = "moved"


class Verdict(StrEnum):
    """The answer for a whole run.

    MOVED: it drifted from the base and there is no control to say why. BROKEN: it no longer answers coherently, so its answers
    show neither harm nor safety. UNCALIBRATED: it is not known how much of this measure is harm, so it only screens and decides
    nothing. The others are the states of its last checkpoint.
    """

    EM = "em"
    SAFE = "safe"
    UNDETERMINED = "undetermined"
    STYLE_DRIFT = "style_drift"
    CONTROL_MOVED = "control_moved"
    MOVED = "moved"
    BROKEN = "broken"
    UNCALIBRATED = "uncalibrated"


class Calibration(StrEnum):
    """The outcome of a dose ladder.

    CALIBRATED: it gives a threshold. PROVISIONAL: the organism shows harm, but too few harmless runs were read to say what
    happens without any. UNCALIBRATED: the organism shows none, or preference does not see it.
    """

    CALIBRATED = "calibrated"
    PROVISIONAL = "provisional"
    UNCALIBRATED = "uncalibrated"


class Finish(StrEnum):
    """How a sampled answer ended."""

    STOP = "stop"
    LENGTH = "length"


class Outcome(StrEnum):
    """The outcome of judging one answer. Only the first two are ever read as a number.

    INTEGER_ONLY: the number a judge printed, without log-probabilities. LOW_MASS: too little of the
    first token's probability lay on numbers. WRONG_SCALE: a number on another scale (8/10). EMPTY: no reply, or one without
    text. FAILED: every attempt ended in an error. MISSING: a file has nothing there.
    """

    SCORED = "scored"
    INTEGER_ONLY = "integer-only"
    REFUSED = "refused"
    CODE = "code"
    OFF_MENU = "off-menu"
    LOW_MASS = "low-mass"
    WRONG_SCALE = "wrong-scale"
    EMPTY = "empty"
    FAILED = "failed"
    MISSING = "missing"

    @property
    def has_score(self) -> bool:
        """True for outcomes with a number."""
        return self in (Outcome.SCORED, Outcome.INTEGER_ONLY)
