"""Finished studies or checks side by side, as they are written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from emscope.core.estimate import Estimate
from emscope.core.outcomes import Verdict
from emscope.core.plain import JsonObject, Result
from emscope.core.shown import Shown, flat

SCHEMA = "emscope.comparison/1"


@dataclass(frozen=True, slots=True)
class Compared(Result):
    """One study or check; `differs`: the settings in which it differs from the first; "" where there are none."""

    label: str
    name: str
    base: str
    runs: int
    judge: str | None
    differs: str


@dataclass(frozen=True, slots=True)
class WayIn(Result):
    """What one study says about a way of training at its last checkpoints.

    Attributes:
        step: None where its runs end at different ones. effect: control - target (base - target without a control), nats per token.
        said: contrasts of what it says, by name, in points of mean alignment; {} where no judge has read it.
        reads: how many runs have each verdict.
    """

    study: str
    way: str
    runs: int
    step: int | None
    delta: float
    effect: Estimate
    said: Mapping[str, Estimate]
    reads: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Change(Result):
    """A run in both studies whose verdict differs."""

    run: str
    before: Verdict
    after: Verdict


@dataclass(frozen=True, slots=True)
class Difference(Result):
    """One study less the first, for a way that both have.

    Attributes:
        effect: above 0 where this study's is the larger. pairing: whether items were paired; `why` it was not, else "".
        said: the same of what it says, by contrast, not paired. changes: verdicts that differ.
    """

    study: str
    effect: Estimate
    pairing: Literal["by item", "none"]
    why: str
    said: Mapping[str, Estimate]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class WayCompared(Result):
    """A way of training in the studies that have it, the first study first."""

    way: str
    studies: tuple[WayIn, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Comparison(Shown):
    """Studies side by side.

    Attributes:
        measure: what all of them measured. studies: in the order given. ways: those that the first and another one have.
        alone: ways that only one study has, by study. notes: what to know about the differences.
    """

    schema: ClassVar[str] = SCHEMA
    drawn_by: ClassVar[str] = "emscope.report.study.compare:compare_figures"
    told_by: ClassVar[str] = "emscope.report.study.compare:sentences"

    measure: str
    studies: tuple[Compared, ...]
    ways: tuple[WayCompared, ...]
    alone: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return a row for each way in each study."""
        return [flat(one.to_json()) for way in self.ways for one in way.studies]
