"""The rates of a file: groups, their differences, and the definition behind the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.answers.labels import Label, beside
from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, LEFT_OUT, JsonObject, Result
from emscope.core.shown import Shown, flat
from emscope.data.answers import Columns
from emscope.stats.prediction_powered import Plan


@dataclass(frozen=True, slots=True)
class DrawColumns(Result):
    """How the verdicts came about, where they were drawn: the columns that say which and from what, and those of the cheap scores."""

    drawn: str
    drawn_from: str | None
    cheap: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Definition(Result):
    """The definition behind the numbers.

    Attributes:
        aligned_below, coherent_above: the thresholds, on 0-100. resamples: 0 for closed-form intervals.
        draw: None where all answers were judged alike.
    """

    aligned_below: float
    coherent_above: float | None
    denominator: str
    average: str
    missing: str
    estimand: str
    level: float
    resamples: int
    columns: Columns
    scale: str
    draw: DrawColumns | None = field(default=None, metadata=FLAT)


@dataclass(frozen=True, slots=True)
class GroupRate(Result):
    """One group, all of whose answers were judged alike.

    Attributes:
        group: values of the group's columns. misaligned, rows, scored, coherent: numbers of answers; outcomes: of those without a score.
        bounds: the rate with all of those counted as aligned, and as misaligned.
        aligned, coherence: mean scores, 0-100; None where there is none or none was asked for.
    """

    group: Label
    rate: Estimate
    misaligned: int
    rows: int
    scored: int
    coherent: int
    outcomes: Mapping[str, int]
    bounds: tuple[float | None, float | None]
    aligned: float | None
    coherence: float | None

    def row(self) -> JsonObject:
        """Return one flat row."""
        low, high = self.bounds
        return beside(
            self.group, flat(self.to_json()) | {"questions": self.rate.clusters, "bounds_low": low, "bounds_high": high}
        )


@dataclass(frozen=True, slots=True)
class Needed(Result):
    """Verdicts for an interval of the width aimed at: by themselves, and with the cheap scores."""

    verdicts_alone: int
    verdicts: int


@dataclass(frozen=True, slots=True)
class Planned(Result):
    """What an interval of plus or minus `half` takes: for these answers, and (where prices were given) in a new study."""

    half: float
    these_answers: Needed
    new_study: Plan | None


@dataclass(frozen=True, slots=True)
class DrawnRate(Result):
    """One group with a random draw of its answers judged.

    Attributes:
        rate: for questions like these; these_answers: for the answers of the file; verdicts_alone: without the cheap scores.
        explained: share of the verdicts' variance that the cheap scores explain; weights: of each cheap score.
        rows: all answers; drawn: those to be judged; scored, coherent, misaligned: of those.
    """

    group: Label
    rate: Estimate
    these_answers: Estimate
    verdicts_alone: Estimate
    explained: float
    weights: tuple[float, ...]
    rows: int
    drawn: int
    scored: int
    coherent: int
    misaligned: int
    plan: Planned | None = field(default=None, metadata=LEFT_OUT)

    def row(self) -> JsonObject:
        """Return one flat row."""
        return beside(self.group, flat(self.to_json()) | {"questions": self.rate.clusters})


@dataclass(frozen=True, slots=True)
class StraightLine(Result):
    """What a difference at equal length rests on.

    Attributes:
        slope: of the hit on log length. p1: the difference on the 0-10 scale; None where a side has too few scores.
        share: of both sides' answers with a length that both have on that question. caution: a sentence where that share is small.
    """

    slope: float
    p1: Estimate | None
    share: float
    caution: str | None


@dataclass(frozen=True, slots=True)
class Matched(Result):
    """A difference at equal answer length within each question; `line` is None where there is none."""

    difference: Estimate = field(metadata=FLAT)
    line: StraightLine | None = field(default=None, metadata=FLAT)

    @property
    def p1(self) -> Estimate | None:
        """The difference on the 0-10 scale."""
        return self.line.p1 if self.line else None


@dataclass(frozen=True, slots=True)
class GroupContrast(Result):
    """Group a less group b, within a family of comparisons.

    Attributes:
        within: what the family's groups share; a, b: the rest of their labels.
        p: of no difference; p_adjusted: by Holm within the family; p_by: how it was computed; p_limit: why only an upper limit of
            p is known.
        caution: what to know about this interval. p1: mean over shared questions of a's misalignment less b's, 0 (aligned) to 10.
        matched: at equal answer length; None where that was not asked for.
    """

    within: Label
    a: Label
    b: Label
    difference: Estimate
    p: float | None
    p_adjusted: float | None
    p_by: str | None
    p_limit: str | None
    caution: str | None
    p1: Estimate | None
    matched: Matched | None


@dataclass(frozen=True, slots=True)
class Counted:
    """What was found in a file: groups, contrasts and notes, and how many questions there are."""

    questions: int
    groups: tuple[GroupRate, ...] | tuple[DrawnRate, ...]
    contrasts: tuple[GroupContrast, ...]
    notes: tuple[str, ...]
    draw: DrawColumns | None = None


@dataclass(frozen=True, slots=True)
class Rates(Shown):
    """Rates of misaligned answers, group by group.

    Attributes:
        files: what was read. contrasts: () where none was asked for. notes: what to know before quoting a number.
    """

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.rates:sentences"

    definition: Definition
    files: tuple[str, ...]
    questions: int
    groups: tuple[GroupRate, ...] | tuple[DrawnRate, ...]
    contrasts: tuple[GroupContrast, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per group: its columns, the rate with its interval, counts and mean scores."""
        return [g.row() for g in self.groups]
