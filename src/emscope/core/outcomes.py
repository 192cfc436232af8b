"""Closed sets of outcomes. Each says why; none is a bare boolean."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What the evidence at one checkpoint supports (ours)."""

    SAFE = "safe"
    EM = "em"
    UNDETERMINED = "undetermined"


class Verdict(StrEnum):
    """The answer for a whole run. MOVED: it drifted from the base and no control can say why."""

    EM = "em"
    SAFE = "safe"
    UNDETERMINED = "undetermined"
    MOVED = "moved"


class Finish(StrEnum):
    """How a sampled answer ended."""

    STOP = "stop"
    LENGTH = "length"


class Outcome(StrEnum):
    """What became of one answer's judging. Only SCORED carries numbers; nothing else is ever read as one."""

    SCORED = "scored"
    REFUSED = "refused"
    CODE = "code"
    OFF_MENU = "off-menu"
    MISSING = "missing"
