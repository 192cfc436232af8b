"""How many seeds, questions and answers? What studies of several sizes would find, from their variance components."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from emscope.answers.planning.components import Found, components
from emscope.answers.planning.power_result import (
    ContrastParts,
    PlannedDesign,
    PowerDefinition,
    PowerPlan,
    SeedLimit,
    VarianceComponents,
)
from emscope.answers.planning.power_spec import PowerSpec
from emscope.core.errors import InputError
from emscope.stats.onset import LEVEL
from emscope.stats.planning import FEWEST_QUESTIONS, FEWEST_SEEDS, Design, Spread, Spreads, chances, limit

DELTAS = {"judged": 5.0, "preference": 0.04}
SAMPLES = {"judged": (2, 4, 8, 16), "preference": (1,)}
MOST_DESIGNS = 200
AT_EQUAL_COHERENCE = "Plain differences are planned; a study's verdict compares at equal coherence, which widens its intervals where coherence falls."
CONTRASTS = ("control - target", "base - target")


def plan_power(path: Path | None, spec: PowerSpec) -> PowerPlan:
    """Return what each design would find, and the best one within the budget.

    Args:
        path: a file of judged answers of several seeds, to measure the components on; None for those given or the defaults.

    Raises:
        InputError: designs that cannot be planned, or a file without the components.
    """
    samples = spec.samples or SAMPLES[spec.measure]
    sizes = sorted(set(product(spec.seeds, spec.questions, samples)))
    _check(spec, samples, len(sizes))
    found = components(path, spec)
    if not any(one is not None and (one.seed or one.question or one.cell) for one in _known(found.spreads)) and not (
        found.spreads.sampling
    ):
        raise InputError("all standard deviations are 0", "give at least one above 0, such as `question_sd`")
    delta = spec.delta or DELTAS[spec.measure]
    effect = spec.effect * delta
    designs = sorted(
        (_planned(Design(*size), found.spreads, delta, effect) for size in sizes),
        key=lambda d: (d.answers, d.seeds, d.questions),
    )
    return PowerPlan(
        PowerDefinition(spec, delta, effect, LEVEL),
        _told(found),
        tuple(designs),
        best=_best([d for d in designs if spec.budget is not None and d.answers <= spec.budget]),
        cheapest=_cheapest(designs, spec),
        limits=tuple(_limit(n, found.spreads, delta, effect) for n in sorted(set(spec.seeds))),
        notes=(*found.notes, *([AT_EQUAL_COHERENCE] if spec.measure == "judged" else [])),
    )


def _check(spec: PowerSpec, samples: Sequence[int], designs: int) -> None:
    for name, values, least in (
        ("seeds", spec.seeds, FEWEST_SEEDS),
        ("questions", spec.questions, FEWEST_QUESTIONS),
        ("samples", samples, 1),
    ):
        if not values or min(values) < least:
            why = "with fewer, a recipe has no verdict" if name == "seeds" else "with fewer, nothing can be estimated"
            raise InputError(f"`{name}` is {', '.join(map(str, values)) or 'empty'}", f"give {least} or more: {why}")
    if designs > MOST_DESIGNS:
        raise InputError(f"{designs} designs are too many to plan at once", f"name fewer sizes: {MOST_DESIGNS} designs at most")


def _planned(design: Design, spreads: Spreads, delta: float, effect: float) -> PlannedDesign:
    found = chances(design, spreads, delta=delta, effect=effect)
    width, *other = found.half_widths
    return PlannedDesign(
        design.seeds,
        design.questions,
        design.samples,
        design.answers(spreads),
        width,
        other[0] if other else None,
        found.em,
        found.safe,
    )


def _limit(seeds: int, spreads: Spreads, delta: float, effect: float) -> SeedLimit:
    found = limit(seeds, spreads, delta=delta, effect=effect)
    return SeedLimit(seeds, found.em, found.safe, found.half_widths[0])


def _best(designs: Sequence[PlannedDesign]) -> PlannedDesign | None:
    """Return the design with the best chance of its less likely verdict, the cheaper of equal ones."""
    return max(designs, key=lambda d: (round(min(d.em, d.safe), 3), -d.answers), default=None)


def _cheapest(designs: Sequence[PlannedDesign], spec: PowerSpec) -> PlannedDesign | None:
    """Return the first design, by answers, that has the power and the half-width asked for."""
    if spec.power is None and spec.aim is None:
        return None
    return next(
        (
            d
            for d in designs
            if (spec.power is None or min(d.em, d.safe) >= spec.power) and (spec.aim is None or d.half_width <= spec.aim)
        ),
        None,
    )


def _known(spreads: Spreads) -> tuple[Spread | None, ...]:
    return spreads.control, spreads.base


def _told(found: Found) -> VarianceComponents:
    parts = (
        ContrastParts(name, one.seed, one.question, one.cell)
        for name, one in zip(CONTRASTS, _known(found.spreads), strict=True)
        if one is not None
    )
    judge = found.spreads.judge
    return VarianceComponents(
        tuple(parts),
        found.spreads.sampling,
        found.spreads.correlation,
        found.source,
        found.seeds,
        found.questions,
        judge.fine_tune if judge else None,
        judge.base if judge else None,
    )
