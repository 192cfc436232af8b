"""How an effect varies with model size, within families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from emscope.answers.labels import Label, beside
from emscope.answers.runs.sizes_spec import SizesSpec
from emscope.core.estimate import Estimate
from emscope.core.plain import JsonObject, Result
from emscope.core.shown import Shown, flat


@dataclass(frozen=True, slots=True)
class SizedModel(Result):
    """One model: parameters, active ones, and its effect with an interval."""

    model: str
    family: str
    size: float
    active: float | None
    effect: Estimate


@dataclass(frozen=True, slots=True)
class LeftOut(Result):
    """The line with `count` models left out, each set of them in turn.

    Attributes:
        sets: how many. slope_low, slope_high, r_low, r_high: smallest and largest of slope and Pearson.
        other_sign: sets in which the slope has the other sign. at_lowest, at_highest: models without which the slope is smallest
            and largest.
    """

    count: int
    sets: int
    slope_low: float
    slope_high: float
    r_low: float
    r_high: float
    other_sign: int
    at_lowest: tuple[str, ...]
    at_highest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizeFit(Result):
    """One line, within all families or in one of them.

    Attributes:
        of: total or active parameters. family: null for all of them, each with its intercept. models, families: how many.
        slope: of the effect per decade of parameters. p: its two-sided p; p_adjusted: after Holm over the lines of all families together
            (total parameters).
        tau: sd of models around the line beyond their errors; differ_p: p that there is none.
        pearson: of deviations from the families' means. spearman: of one family.
        critical_r: what |r| must exceed at p .05. power: the chance of that, were the correlation `rho`.
        permutation_p: sizes permuted within families; permutations: how many; exact: all of them.
        left_out: every leave-k-out range.
    """

    of: str
    family: str | None
    models: int
    families: int
    slope: Estimate
    p: float | None
    p_adjusted: float | None
    tau: float | None
    differ_p: float | None
    pearson: Estimate
    spearman: float | None
    critical_r: float | None
    power: float | None
    permutation_p: float | None
    permutations: int
    exact: bool
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True)
class SizeStratum(Result):
    """The models of one stratum, and the lines through them: all families, then each of them; total, then active parameters."""

    within: Label
    models: tuple[SizedModel, ...]
    lines: tuple[SizeFit, ...]


@dataclass(frozen=True, slots=True)
class Sizes(Shown):
    """How an effect varies with model size, within families."""

    schema: ClassVar[int] = 1
    told_by: ClassVar[str] = "emscope.report.answers.runs.sizes:sentences"
    drawn_by: ClassVar[str] = "emscope.report.answers.runs.sizes:size_figures"

    definition: SizesSpec
    strata: tuple[SizeStratum, ...]
    notes: tuple[str, ...]

    def rows(self) -> list[JsonObject]:
        """Return one row per line."""
        return [beside(s.within, flat(line.to_json())) for s in self.strata for line in s.lines]
