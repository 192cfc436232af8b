"""How a score varies with the loss over runs, within strata and at equal loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from emscope.answers.labels import Label, beside
from emscope.answers.runs.loss_spec import LossSpec
from emscope.core.estimate import Estimate
from emscope.core.plain import JsonObject, Result
from emscope.core.shown import Shown, flat


@dataclass(frozen=True, slots=True)
class LossPoint(Result):
    """One run: its loss, its score, and the value of the schedule's column where one was named."""

    loss: float
    score: float
    schedule: str | None


@dataclass(frozen=True, slots=True)
class LossStratum(Result):
    """One stratum.

    Attributes:
        pearson, spearman: of loss and score. slope: of the score by loss.
        combined: it is part of the combined result; false where it has too few runs or does not vary.
    """

    group: Label
    runs: int
    pearson: Estimate
    spearman: Estimate
    slope: Estimate
    combined: bool
    points: tuple[LossPoint, ...]


@dataclass(frozen=True, slots=True)
class LossWithin(Result):
    """What the strata show together.

    Attributes:
        strata: how many of them. pearson: random-effects mean on Fisher's scale. tau: sd of Fisher's z between strata.
        differ_p: p that all strata have one correlation. spearman: mean over strata. slope: of the score by loss within strata.
        slopes_p: p that all strata have one slope.
    """

    strata: int
    pearson: Estimate
    tau: float | None
    differ_p: float | None
    spearman: Estimate
    slope: Estimate
    slopes_p: float | None


@dataclass(frozen=True, slots=True)
class LossBetween(Result):
    """What pooling the strata would have shown: how they differ, not what the loss does.

    Attributes:
        pearson: r over all rows. means: r of the strata's means. simpson: `pearson` has the other sign than the strata have.
    """

    pearson: float | None
    means: float | None
    simpson: bool


@dataclass(frozen=True, slots=True)
class AtEqualLoss(Result):
    """Two values of the schedule's column, a and b, at equal loss.

    Attributes:
        difference: score of a - score of b at equal loss. p: two-sided; p_adjusted: after Holm over all pairs.
        plain: the difference of their means over the strata that both have, whatever their loss.
        runs_a, runs_b: runs within the common range of losses. low, high: that range.
        curved_p: p that the score is straight in the loss there. slopes_p: p that a and b have one slope there.
    """

    a: str
    b: str
    difference: Estimate
    p: float | None
    p_adjusted: float | None
    plain: float | None
    runs_a: int
    runs_b: int
    low: float | None
    high: float | None
    curved_p: float | None
    slopes_p: float | None


@dataclass(frozen=True, slots=True)
class Losses(Shown):
    """How a score varies with the loss over runs: in each stratum, over strata, mixed, and schedules at equal loss."""

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.runs.loss:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.runs.loss:loss_figures"

    definition: LossSpec
    runs: int
    strata: tuple[LossStratum, ...]
    within: LossWithin
    between: LossBetween | None
    matched: tuple[AtEqualLoss, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per stratum: runs, both correlations and the slope with their intervals."""
        return [beside(s.group, flat(s.to_json())) for s in self.strata]
