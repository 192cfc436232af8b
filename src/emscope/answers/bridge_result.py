"""What a bridge between judges is worth: the map, its errors on studies left out, and what it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from emscope.answers.bridge_spec import BridgeSpec
from emscope.core.estimate import Estimate
from emscope.core.plain import JsonObject, Result
from emscope.core.shown import Shown, flat


@dataclass(frozen=True, slots=True)
class Answers(Result):
    """Numbers of answers with scores of both judges, and of the old one alone."""

    both: int
    old_only: int


@dataclass(frozen=True, slots=True)
class Knot(Result):
    """A score of the old judge and what the new one's mean would be."""

    old: float
    new: float


@dataclass(frozen=True, slots=True)
class StudyError(Result):
    """By how much the moved value of a study left out was off."""

    study: str
    error: float


@dataclass(frozen=True, slots=True)
class Tried(Result):
    """How the bridge fared on studies left out; None where there are too few.

    Attributes:
        error: root mean square; bias: mean error. reach: within it a further study lies, at the level asked for.
        held: share of the studies that lay within the reach of the others.
    """

    error: float | None
    bias: float | None
    reach: float | None
    held: float | None
    by_study: tuple[StudyError, ...]


@dataclass(frozen=True, slots=True)
class LeftOut(Result):
    """The errors of a study's mean [points], and of its rate below the threshold [share]."""

    mean: Tried
    rate: Tried


@dataclass(frozen=True, slots=True)
class Moved(Result):
    """A study that the new judge has not scored: its mean by the old one, its mean and rate by the new one."""

    study: str
    answers: int
    old_mean: float
    mean: Estimate
    rate: Estimate


@dataclass(frozen=True, slots=True)
class Bridge(Shown):
    """The map from one judge's scores to another's, and what it moves.

    Attributes:
        definition: the settings. studies: how many have scores of both.
    """

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.bridge:sentences"

    definition: BridgeSpec
    answers: Answers
    studies: int
    map: tuple[Knot, ...]
    left_out: LeftOut
    moved: tuple[Moved, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per study that was moved: means by both judges, and the rate."""
        return [flat(m.to_json()) for m in self.moved]
