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

    MOVED: it drifted from the base and no control can say why. BROKEN: it no longer answers coherently, so that what it says
    tells neither harm nor safety. UNCALIBRATED: nobody said how much of this measure is harm, so it screens and decides nothing. The
    others are the states of its last checkpoint.
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
    """What a dose ladder comes to.

    CALIBRATED: it gives a threshold. PROVISIONAL: the organism shows harm, and too few harmless runs were read to say what happens without any.
    UNCALIBRATED: the organism shows none, or preference does not see it.
    """

    CALIBRATED = "calibrated"
    PROVISIONAL = "provisional"
    UNCALIBRATED = "uncalibrated"


class Finish(StrEnum):
    """How a sampled answer ended."""

    STOP = "stop"
    LENGTH = "length"


class Outcome(StrEnum):
    """What became of one answer's judging. Nothing but the first two is ever read as a number.

    INTEGER_ONLY: the number a judge printed, where its log-probabilities were not to be had. LOW_MASS: too little of the
    first token's probability lay on numbers. WRONG_SCALE: a number of another scale (8/10). EMPTY: no reply, or one without
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
        """True where a number comes with it."""
        return self in (Outcome.SCORED, Outcome.INTEGER_ONLY)
