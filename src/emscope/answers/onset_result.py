"""When misalignment began, run by run, in a file of values along training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.answers.labels import Label, beside
from emscope.answers.onset_spec import OnsetSpec
from emscope.core.estimate import Estimate
from emscope.core.outcomes import State, Verdict
from emscope.core.plain import FLAT, JsonObject, Result, named
from emscope.core.shown import Shown, flat


@dataclass(frozen=True, slots=True)
class Definition(Result):
    """The settings, the value in words, and the threshold with its source."""

    spec: OnsetSpec = field(metadata=FLAT)
    value: str
    delta: float
    delta_source: str
    level: float


@dataclass(frozen=True, slots=True)
class OnsetBracket(Result):
    """The onset lies after step `after` and at the latest at step `by`; what target and control had moved from the base by then."""

    after: int
    by: int
    target_moved: float | None
    control_moved: float | None


@dataclass(frozen=True, slots=True)
class EmEpisode(Result):
    """A stretch that was surely em, by its first and last step."""

    first: int = field(metadata=named("from"))
    last: int = field(metadata=named("to"))


@dataclass(frozen=True, slots=True)
class LastSafe(Result):
    """The last step that is shown safe."""

    step: int


@dataclass(frozen=True, slots=True)
class StepReading(Result):
    """One compared step.

    Attributes:
        state, sure: by bounds for this step alone, and by bounds that hold for all of them at once; None where an interval is missing.
        effect: target - control, or target - base without a control. target, control, base: their mean values.
    """

    step: int
    state: State | None
    sure: State | None
    effect: Estimate
    contrasts: Mapping[str, Estimate]
    target: float | None
    control: float | None
    base: float | None


@dataclass(frozen=True, slots=True)
class SeriesPoint(Result):
    """The target's mean value at one step, over so many rows."""

    step: int
    value: float | None
    rows: int


@dataclass(frozen=True, slots=True)
class RunOnset(Result):
    """One run.

    Attributes:
        group: values of the columns that make it a run of its own. delta: the threshold of the effect.
        why: a sentence by name for what is missing, and for what to know about the rest.
    """

    group: Label
    verdict: Verdict | None
    delta: float
    onset: OnsetBracket | None
    episodes: tuple[EmEpisode, ...]
    stop: LastSafe | None
    checkpoints: tuple[StepReading, ...]
    series: tuple[SeriesPoint, ...]
    why: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a flat row a step; what was not compared there is None."""
        read = {c.step: c for c in self.checkpoints}
        return [beside(self.group, p.to_json() | _compared(read.get(p.step))) for p in self.series]


@dataclass(frozen=True, slots=True)
class Onsets(Shown):
    """When misalignment began, run by run."""

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.onset:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.onset:onset_figures"

    definition: Definition
    groups: tuple[RunOnset, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per step of each run: state, effect with its interval, value and rows."""
        return [row for run in self.groups for row in run.rows()]


def _compared(at: StepReading | None) -> JsonObject:
    names = ("state", "sure", "effect", "effect_low", "effect_high", "control", "base")
    found = flat(at.to_json()) if at is not None else {}
    return {name: found.get(name) for name in names}
