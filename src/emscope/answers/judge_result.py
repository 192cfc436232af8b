"""The results of judging a file: verdicts, cost, where the rows are, and whether a judge has drifted from its anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.answers.judge_spec import DrawSpec, JudgeSpec
from emscope.core.plain import FLAT, JsonObject, Result, named
from emscope.core.shown import Shown


@dataclass(frozen=True, slots=True)
class RubricUsed(Result):
    """A criterion, the version of its prompt, and the digest of everything that decides what is asked."""

    criterion: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class VerdictCounts(Result):
    """Verdicts needed, had before, received now by outcome, and those missing because every attempt failed."""

    wanted: int
    before: int
    outcomes: Mapping[str, int]
    failed: int

    @property
    def received(self) -> int:
        """Verdicts received now."""
        return sum(self.outcomes.values())


@dataclass(frozen=True, slots=True)
class TokensBilled(Result):
    """Tokens that the judges read, and that they wrote."""

    read: int = field(metadata=named("in"))
    written: int = field(metadata=named("out"))


@dataclass(frozen=True, slots=True)
class Cost(Result):
    """Dollars spent now, and estimated for everything that was missing; None without prices."""

    spent: float
    estimated: float | None


@dataclass(frozen=True, slots=True)
class Stratum(Result):
    """Answers that were drawn from together: by which values, how many rows, and how many of them were drawn."""

    of: str
    rows: int
    drawn: int


@dataclass(frozen=True, slots=True)
class Design(Result):
    """How answers were drawn."""

    spec: DrawSpec = field(metadata=FLAT)
    strata: tuple[Stratum, ...]


@dataclass(frozen=True, slots=True)
class AnchorDrift(Result):
    """Whether a judge's scores of anchor answers have left their labels.

    Attributes:
        anchors, scored: answers with a label, and those of them that it scored. off: its mean score less the labels' [points of 100].
        evidence: e-value against a mean difference of at most `slack` points; changed: it is strong.
    """

    judge: str
    criterion: str
    anchors: int
    scored: int
    off: float | None
    evidence: float
    changed: bool
    slack: float


@dataclass(frozen=True, slots=True)
class JudgedFile(Shown):
    """The results of judging a file.

    Attributes:
        complete: nothing is missing. judged: the file of its rows with scores and outcomes; None where no verdict came yet.
        draw: None where all answers are judged. anchors: one row per judge and criterion, () without anchors.
    """

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.judge:sentences"

    judges: tuple[JudgeSpec, ...]
    rubrics: tuple[RubricUsed, ...]
    verdicts: VerdictCounts
    tokens: TokensBilled
    dollars: Cost
    complete: bool
    stopped_at_cost: bool
    judged: str | None
    draw: Design | None
    anchors: tuple[AnchorDrift, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per outcome: how many verdicts received now ended in it."""
        return [{"outcome": outcome, "verdicts": count} for outcome, count in self.verdicts.outcomes.items()]
