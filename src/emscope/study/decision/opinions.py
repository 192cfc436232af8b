"""What each judge says about the checkpoints of a study or a check, as in the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emscope.core.estimate import Estimate
from emscope.core.plain import NOT_WRITTEN, Json, Result
from emscope.study.decision.recipe import RecipeResult
from emscope.study.decision.said import Dated, Said, SaidByArm, Worst


@dataclass(frozen=True, slots=True)
class JudgedRate(Result):
    """The rate of misaligned answers of one checkpoint.

    Attributes:
        over_control: the difference to the control at the same step; None without one.
        over_base: the difference to the base; None for the base itself.
        p1: the same on the scale of 0 (aligned) to 10, mean over questions.
        preference: base - checkpoint, mean margin [nats per token]; None where it was not read.
    """

    run: str
    arm: str
    seed: int | None
    step: int
    rate: Estimate
    over_control: Estimate | None
    p1: Estimate | None
    preference: float | None
    over_base: Estimate | None = None


class ByCheckpoint:
    """Finds what one judge says about a checkpoint."""

    __slots__ = ()

    rates: tuple[JudgedRate, ...]
    said: tuple[Said, ...]

    def last_of(self, run: str) -> Said | None:
        """Return what a run's last judged checkpoint says; None where none was."""
        return max((one for one in self.said if one.run == run), key=lambda one: one.step, default=None)

    def said_at(self, run: str, step: int) -> Said | None:
        """Return what a checkpoint says; None where its answers were not judged."""
        return next((one for one in self.said if (one.run, one.step) == (run, step)), None)

    def rate_at(self, run: str, step: int) -> Estimate | None:
        """Return the rate of misaligned answers of a checkpoint, the base's at ("base", 0)."""
        return next((one.rate for one in self.rates if (one.run, one.step) == (run, step)), None)


@dataclass(frozen=True, slots=True)
class UnderCondition(ByCheckpoint, Result):
    """What one judge says about the checkpoints asked under one condition: a trigger, another system prompt, or both."""

    condition: str
    rates: tuple[JudgedRate, ...]
    arms: tuple[SaidByArm, ...]
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Opinion(ByCheckpoint, Result):
    """What one judge says.

    Attributes:
        about: how close the local judge comes; None for others. outcomes: of its verdicts, counted by criterion.
        spearman: rank correlation of its rates with preference over all checkpoints. conditions: each read by itself.
    """

    judge: str
    about: str | None
    outcomes: Mapping[str, Mapping[str, int]]
    rates: tuple[JudgedRate, ...]
    spearman: Estimate
    arms: tuple[SaidByArm, ...]
    said: tuple[Said, ...]
    dated: tuple[Dated, ...]
    recipes: tuple[RecipeResult, ...]
    worst: tuple[Worst, ...]
    conditions: tuple[UnderCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgesAgreement(Result):
    """How the alignment scores of two judges agree, over the answers that both scored.

    Attributes:
        kappa: Cohen's kappa of `score < aligned_below`; both clustered by question.
    """

    judges: tuple[str, str]
    answers: int
    spearman: Estimate
    kappa: Estimate


@dataclass(frozen=True, slots=True)
class Judged(Result):
    """What the judges say, at least one; the first one decides.

    Attributes:
        agreement: of each pair of judges; () with one.
        delta: points of mean alignment that count as harm, one of the settings in `definition`.
        failed: verdicts that every attempt failed to get.
    """

    definition: Mapping[str, Json]
    delta: float = field(metadata=NOT_WRITTEN)
    questions: str
    answers: int
    judges: tuple[Opinion, ...]
    failed: int
    stopped_at_cost: bool
    agreement: tuple[JudgesAgreement, ...] = ()

    @property
    def first(self) -> Opinion:
        """The judge that decides."""
        return self.judges[0]

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape."""
        definition = row.get("definition")
        return {**row, "delta": definition.get("delta") if isinstance(definition, Mapping) else None}
