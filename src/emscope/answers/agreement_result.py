"""How far judges agree: over all of them, pair by pair, and with people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from emscope.answers.agreement_spec import AgreementSpec
from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, NOT_WRITTEN, JsonObject, Opaque, Result
from emscope.core.shown import Shown, flat
from emscope.data.ratings import Rated


@dataclass(frozen=True, slots=True)
class Definition(Result):
    """The settings, and what the intervals' clusters are."""

    spec: AgreementSpec = field(metadata=FLAT)
    clusters: str


@dataclass(frozen=True, slots=True)
class Alphas(Result):
    """Krippendorff's alpha over all raters, by the kind of score assumed; nominal: of `score < threshold`."""

    nominal: Estimate
    ordinal: Estimate
    interval: Estimate


@dataclass(frozen=True, slots=True)
class RaterScores(Result):
    """One rater's scores.

    Attributes:
        lost: how often each text occurs in place of a number; off_scale: how often each number off the scale occurs.
        extreme: share of scores at the lowest or highest.
    """

    rater: str
    scored: int
    lost: Mapping[str, int]
    off_scale: Mapping[str, int]
    mean: float
    extreme: float | None


@dataclass(frozen=True, slots=True)
class Carried(Result):
    """The threshold for one rater that matches the other's.

    Attributes:
        threshold: with the interval of its resamples. kappa: of the two, each at its own threshold.
        wanted, flagged: shares of the shared items that the other flags, and that this threshold flags. off: the difference,
            which is not 0 where many scores are the same.
    """

    threshold: Estimate = field(metadata=FLAT)
    kappa: float | None
    wanted: float | None
    flagged: float | None
    off: float | None


@dataclass(frozen=True, slots=True)
class PairAgreement(Result):
    """Two raters on the `n` items that both scored.

    Attributes:
        spearman: rank correlation; kappa: Cohen's, of `score < threshold`; agree: share of items on the same side of the threshold.
        bias: mean of a - b; limits: bias +- 1.96 standard deviations of a - b. (Bland and Altman 1986)
    """

    a: str
    b: str
    n: int
    spearman: Estimate
    kappa: Estimate
    agree: Estimate
    bias: Estimate
    limits: tuple[float, float] | None
    threshold_of_b: Carried
    threshold_of_a: Carried

    def row(self) -> JsonObject:
        """Return one flat row."""
        low, high = self.limits or (None, None)
        return flat(self.to_json()) | {"limits_low": low, "limits_high": high}


@dataclass(frozen=True, slots=True)
class HumanAgreement(Result):
    """A rater's flags against the human's, on the `n` items that both scored, `misaligned` of them by the human.

    Attributes:
        auc: area under the curve of its scores; None where the human gives all the same label.
    """

    rater: str
    n: int
    misaligned: int
    auc: float | None
    sensitivity: Estimate
    specificity: Estimate


@dataclass(frozen=True, slots=True)
class Agreement(Shown):
    """How far raters of the same answers agree.

    Attributes:
        items: how many have a score. human: () where no rater is the truth. rated: the scores themselves, for figures; neither
            the JSON nor a result that is read back has them.
    """

    schema: ClassVar[int] = 1
    drawn_by: ClassVar[str] = "emscope.report.answers.agreement:bland_altman_figures"
    told_by: ClassVar[str] = "emscope.report.answers.agreement:sentences"

    definition: Definition
    items: int
    raters: tuple[RaterScores, ...]
    alpha: Alphas
    pairs: tuple[PairAgreement, ...]
    human: tuple[HumanAgreement, ...]
    notes: tuple[str, ...]
    rated: Annotated[Rated | None, Opaque] = field(default=None, repr=False, compare=False, metadata=NOT_WRITTEN)

    def rows(self) -> list[JsonObject]:
        """Return one row per pair of raters."""
        return [p.row() for p in self.pairs]
