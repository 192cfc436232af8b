"""How far a distilled judge can be trusted, and where it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from emscope.core.estimate import Estimate
from emscope.core.plain import LEFT_OUT, JsonObject, Result
from emscope.core.shown import Shown


@dataclass(frozen=True, slots=True)
class Definition(Result):
    """What was learned, from which columns and files.

    Attributes:
        split: column whose values were held out whole. drawn: column that says which answers were drawn to be judged.
        penalty: chosen on held-out verdicts; None before that, and in the classifier's own folder.
    """

    aligned_below: float
    coherent_above: float | None
    aligned: str
    coherent: str | None
    split: str
    drawn: str | None
    seed: int
    files: tuple[str, ...]
    penalty: float | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class HeldOut(Result):
    """Agreement on values of the split that the classifier has not seen.

    Attributes:
        auc: area under the curve. kappa: Cohen's, at `cut`, the probability above which it flags as many as the judge (None: all are alike).
        wanted, flagged: shares that the judge flags, and that it does at the cut. correlation: of probability and verdict.
        brier: mean squared error of the probability; brier_of_the_rate_alone: of one probability for all.
    """

    folds: int
    auc: Estimate
    kappa: Estimate
    cut: float | None
    wanted: float
    flagged: float
    correlation: float
    brier: float
    brier_of_the_rate_alone: float


@dataclass(frozen=True, slots=True)
class CalibrationBin(Result):
    """Answers of like probability: the mean predicted, and the share found."""

    predicted: float
    found: Estimate


@dataclass(frozen=True, slots=True)
class Part(Result):
    """Answers that share a value of a column: shares predicted and found, `off` by so many standard errors."""

    column: str
    value: str
    verdicts: int
    predicted: float
    found: float
    auc: float | None
    off: float


@dataclass(frozen=True, slots=True)
class Distilled(Shown):
    """A classifier that learned a judge's verdicts.

    Attributes:
        verdicts: what it learned from, `misaligned` of them so. fails: parts of the file, the furthest off first.
        predicted: file of all answers with their probabilities. judge: folder of the classifier.
    """

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.distil:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.distil:figures"

    definition: Definition
    verdicts: int
    misaligned: int
    held_out: HeldOut
    calibration: tuple[CalibrationBin, ...]
    fails: tuple[Part, ...]
    predicted: str
    judge: str

    def rows(self) -> list[JsonObject]:
        """Return one row per part of the file: shares predicted and found, the furthest apart first."""
        return [p.to_json() for p in self.fails]
