"""What studies of several sizes would find, and what that rests on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from emscope.answers.planning.power_spec import PowerSpec
from emscope.core.plain import FLAT, LEFT_OUT, JsonObject, Result
from emscope.core.shown import Shown


@dataclass(frozen=True, slots=True)
class ContrastParts(Result):
    """Standard deviations of one contrast: between seeds, between questions, and of what a seed does to single questions."""

    contrast: str
    seed_sd: float
    question_sd: float
    seed_question_sd: float


@dataclass(frozen=True, slots=True)
class VarianceComponents(Result):
    """What a study's numbers vary by.

    Attributes:
        sampling_sd: of answers to one question by one model. correlation: between the contrasts. source: where the numbers are from.
        seeds, questions: they were measured on; null where they were given or are the defaults.
        judge_error_sd, judge_error_base_sd: of the judge's error on a fine-tune and on the base; left out where it is not known.
    """

    contrasts: tuple[ContrastParts, ...]
    sampling_sd: float
    correlation: float
    source: str
    seeds: int | None
    questions: int | None
    judge_error_sd: float | None = field(default=None, metadata=LEFT_OUT)
    judge_error_base_sd: float | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class PowerDefinition(Result):
    """The settings, and the threshold with the true effect."""

    spec: PowerSpec = field(metadata=FLAT)
    threshold: float
    true_effect: float
    level: float


@dataclass(frozen=True, slots=True)
class PlannedDesign(Result):
    """One design.

    Attributes:
        seeds, questions, samples: of each fine-tuned arm; asked; answers to each, of each model.
        answers: all of them, of target and control of each seed and of the base once.
        half_width, half_width_base: expected half-widths of the 95 % intervals of control - target and of base - target.
        em, safe: chance of that verdict, were both contrasts at the true effect, and were they 0.
    """

    seeds: int
    questions: int
    samples: int
    answers: int
    half_width: float
    half_width_base: float | None
    em: float
    safe: float


@dataclass(frozen=True, slots=True)
class SeedLimit(Result):
    """What this many seeds would find with a thousand questions and a thousand answers to each."""

    seeds: int
    em: float
    safe: float
    half_width: float


@dataclass(frozen=True, slots=True)
class PowerPlan(Shown):
    """What studies of several sizes would find.

    Attributes:
        designs: by their number of answers. best: within the budget, the best chance of the less likely verdict.
        cheapest: that reaches the power and the half-width asked for; null where none of them does, or nothing was asked.
        limits: what only more seeds, or a better judge, could improve.
    """

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.power:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.power:power_figures"

    definition: PowerDefinition
    components: VarianceComponents
    designs: tuple[PlannedDesign, ...]
    best: PlannedDesign | None
    cheapest: PlannedDesign | None
    limits: tuple[SeedLimit, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per design."""
        return [one.to_json() for one in self.designs]
