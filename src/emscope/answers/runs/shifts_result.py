"""How scores of the same questions moved from before to after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from emscope.answers.labels import Label, beside
from emscope.answers.runs.shifts_spec import ShiftsSpec
from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, JsonObject, Result
from emscope.core.shown import Shown, flat
from emscope.data.answers import Columns


@dataclass(frozen=True, slots=True)
class ShiftsDefinition(Result):
    """The settings, and the columns behind the numbers."""

    spec: ShiftsSpec = field(metadata=FLAT)
    columns: Columns
    scores: str


@dataclass(frozen=True, slots=True)
class ShiftTest(Result):
    """A test: its statistic, p, and p after Holm over all comparisons."""

    statistic: float
    p: float
    p_adjusted: float


@dataclass(frozen=True, slots=True)
class StatisticShift(Result):
    """How one number per question moved, its mean or its standard deviation.

    Attributes:
        questions: that have it before and after. before, after: its mean over questions.
        shift: mean of after - before. typical: median of pairwise means of it (Hodges and Lehmann).
        wilcoxon: signed-rank test of after - before; null where nothing moved.
        ks: two-sample Kolmogorov-Smirnov test, as if both were independent samples. ks_swapped: the same statistic, p by swapping
            before and after within questions.
        pearson, slope, explained: of after on before; explained is R^2.
        reliability_before, reliability_after: the share of the variance between questions that is not their answers' sampling.
        slope_corrected, pearson_corrected: what slope and Pearson would be without that sampling.
    """

    questions: int
    before: float
    after: float
    shift: Estimate
    typical: Estimate
    wilcoxon: ShiftTest | None
    ks: ShiftTest
    ks_swapped: ShiftTest
    pearson: Estimate
    slope: Estimate
    explained: Estimate
    reliability_before: Estimate
    reliability_after: Estimate
    slope_corrected: Estimate
    pearson_corrected: Estimate


@dataclass(frozen=True, slots=True)
class QuestionShift(Result):
    """One question: number, mean and standard deviation of its scores before and after."""

    question: str
    answers_before: int
    answers_after: int
    mean_before: float
    mean_after: float
    sd_before: float | None
    sd_after: float | None


@dataclass(frozen=True, slots=True)
class RunShift(Result):
    """One comparison of a model after fine-tuning with the one before.

    Attributes:
        within: values of the columns it is made within. after: the model.
        answers_before, answers_after: scored answers to the questions that both were asked.
        coherence_before, coherence_after: mean coherence over those questions; null where the file has none.
        mean, sd: of each question's scores; sd is null where fewer than three questions have two answers on both sides.
    """

    within: Label
    after: str
    answers_before: int
    answers_after: int
    coherence_before: float | None
    coherence_after: float | None
    mean: StatisticShift
    sd: StatisticShift | None
    questions: tuple[QuestionShift, ...]

    def row(self) -> JsonObject:
        """Return it as a flat row: of both numbers the shift, the tests' p after Holm, r and slopes."""
        found: JsonObject = {"after": self.after, "answers_before": self.answers_before, "answers_after": self.answers_after}
        found |= {"coherence_before": self.coherence_before, "coherence_after": self.coherence_after}
        for name, one in (("mean", self.mean), ("sd", self.sd)):
            parts = flat(one.to_json()) if one is not None else {}
            tests = {
                f"{test}_p": None if one is None or (t := getattr(one, test)) is None else t.p_adjusted
                for test in ("wilcoxon", "ks", "ks_swapped")
            }
            found |= {f"{name}_{key}": parts.get(key) for key in KEPT} | {f"{name}_{key}": p for key, p in tests.items()}
        return beside(self.within, found)


KEPT = tuple(
    f"{name}{end}"
    for name, ends in (
        ("questions", ("",)),
        ("before", ("",)),
        ("after", ("",)),
        *(
            (name, ("", "_low", "_high"))
            for name in ("shift", "pearson", "slope", "explained", "reliability_before", "slope_corrected")
        ),
    )
    for end in ends
)


@dataclass(frozen=True, slots=True)
class Shifts(Shown):
    """How scores of the same questions moved from before to after fine-tuning, model by model."""

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.runs.shifts:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.runs.shifts:shift_figures"

    definition: ShiftsDefinition
    runs: tuple[RunShift, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per comparison."""
        return [run.row() for run in self.runs]
