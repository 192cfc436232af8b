"""Task gain against harm over all checkpoints of all ways of training: which cells are not dominated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.plain import Json, Result
from emscope.stats.adjusted import Slope, adjusted_by_question
from emscope.stats.crossed import crossed_mean
from emscope.stats.means import mean_estimate, stratified_mean
from emscope.stats.model_error import Errors, ModelError, line_of
from emscope.stats.onset import LEVEL
from emscope.stats.pareto import Front, pareto
from emscope.study.decision.along import contrasts_at
from emscope.study.decision.said import Arms, Pair, Place
from emscope.study.reading.arms import Evidence, paired_steps, without_dud

MOST_CELLS = 1000  # limit for the front, since every cell is compared with every other
NOT_READ = "the task was not measured in all of its runs"
NO_SEED = "its ways of training have no seed in common"
FEWEST_QUESTIONS = 3
UNITS = {"preference": "nats per token", "judged": "points of alignment"}


@dataclass(frozen=True, slots=True)
class FrontCell(Result):
    """A checkpoint of a way of training, all its seeds together.

    Attributes:
        gain: log-probability of the taught answers over the base's [nats per token]. effect: harm, as `ParetoFront.contrast`.
        on_front: share of resamples in which no other cell is as good in both and better in one.
        bettered_by: a cell with surely more gain and surely less effect; None where none is shown.
    """

    way: str
    step: int
    gain: Estimate
    effect: Estimate
    on_front: float
    bettered_by: CellName | None


@dataclass(frozen=True, slots=True)
class CellName(Result):
    """A cell by its way of training and its step."""

    way: str
    step: int


@dataclass(frozen=True, slots=True)
class ParetoFront(Result):
    """Gain against effect for every (way, checkpoint) of one arm; the cells that none surely dominates are its front.

    Attributes:
        measure: of the effect: preference [nats per token], or what the first judge says [points of alignment, at equal coherence].
        contrast: what the effect is. seeds: common to all cells; intervals are over items, and from two seeds on over seeds too.
        level: the least chance that no cell of the true front is called dominated. critical: reach of the bounds in standard
            errors.
        why: why there are no cells, or what was left out; "" where nothing was.
    """

    arm: str
    contrast: str
    seeds: tuple[int, ...]
    cells: tuple[FrontCell, ...]
    level: float
    critical: float | None
    why: str
    measure: Literal["preference", "judged"] = "preference"

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the documented JSON shape; earlier versions knew preference alone."""
        return {"measure": "preference", **row}


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """A target run as the judge and the task's measure see it.

    Attributes:
        evidence: of preference and task. pairs: its judged checkpoints, without those that are broken. broken: their steps.
    """

    evidence: Evidence
    pairs: tuple[Pair, ...]
    broken: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Cell:
    """The values of a cell by seed: gain [S, H], effect [S, Q]; NaN in the effect of questions that were not answered."""

    name: CellName
    gain: np.ndarray
    effect: np.ndarray


def front(arm: str, ways: Mapping[str, Mapping[int, Evidence]]) -> ParetoFront | None:
    """Return the Pareto front of an arm over its ways of training and their checkpoints, by preference; None below two checkpoints. (see `stats.pareto`)

    Args:
        ways: evidence by way of training and seed.
    """
    found = {way: {seed: without_dud(e) for seed, e in seeds.items()} for way, seeds in ways.items()}
    seeds = _common_seeds(found)
    every = [of[seed] for of in found.values() for seed in seeds]
    against_control = all(e.control is not None for e in every)
    contrast = "control - target" if against_control else "base - target at equal base preference"
    if why := _nothing(every):
        return ParetoFront(arm, contrast, tuple(seeds), (), LEVEL, None, why)
    return _shown(arm, contrast, seeds, *_cells(found, seeds, against_control))


def judged_front(
    arm: str,
    ways: Mapping[str, Mapping[int, JudgedRun]],
    arms: Arms,
    strata: np.ndarray,
    error: ModelError | None = None,
) -> ParetoFront | None:
    """Return the Pareto front of an arm by what its checkpoints say, as `front` does by preference; None below two checkpoints.

    The effect of a checkpoint is `said`'s contrast at equal coherence, question by question. Broken checkpoints are left out: their
    text shows neither harm nor safety.

    Args:
        ways: judged runs by way of training and seed. arms: alignment and coherence of the answers of each (run, step), the base's at
            ("base", 0). strata: category of each question number [Q]. error: the judge's on whole models, where it is known; taken as one
            for all seeds of a checkpoint, and independent between checkpoints.
    """
    seeds = _common_seeds(ways)
    every = [of[seed] for of in ways.values() for seed in seeds]
    against_control = all(p.control is not None for one in every for p in one.pairs)
    contrast = f"{'control' if against_control else 'base'} - target at equal coherence"
    if why := _nothing([one.evidence for one in every]):
        return ParetoFront(arm, contrast, tuple(seeds), (), LEVEL, None, why, "judged")
    cells = _judged_cells(
        {way: [of[seed] for seed in seeds] for way, of in ways.items()},
        arms,
        strata,
        line_of(list(arms.values()), error),
        against_control,
    )
    answered = np.isfinite([c.effect for c in cells]).all((0, 1)) if cells else np.zeros(0, bool)
    if len(cells) > 1 and answered.sum() < FEWEST_QUESTIONS:
        cells, why = [], f"fewer than {FEWEST_QUESTIONS} questions were answered at all checkpoints"
    else:
        cells, why = [replace(c, effect=c.effect[:, answered]) for c in cells], _left_out(ways, seeds)
    errors = error.adjusted.between(base=not against_control) if error else []
    found = _shown(arm, contrast, seeds, cells, strata[answered] if cells else strata, why, errors)
    return replace(found, measure="judged") if found else None


def _common_seeds(ways: Mapping[str, Mapping[int, Evidence | JudgedRun]]) -> list[int]:
    return sorted(set.intersection(*(set(of) for of in ways.values()))) if ways else []


def _nothing(every: Sequence[Evidence]) -> str:
    """Return why there can be no cells; "" where there may be."""
    if not every:
        return NO_SEED
    return NOT_READ if any(_no_task(e) for e in every) else ""


def _shown(
    arm: str,
    contrast: str,
    seeds: Sequence[int],
    cells: Sequence[_Cell],
    strata: np.ndarray,
    why: str,
    errors: Errors | None = None,
) -> ParetoFront | None:
    """Return the front of some cells; None where there are too few and nothing to say about it.

    Args:
        errors: of each effect, all seeds and questions having them in common; the last is the cell's own, any before it that of the base.
    """
    if len(cells) > MOST_CELLS:
        cells, why = [], f"{len(cells):,} checkpoints exceed the limit of {MOST_CELLS:,} for a front"
    if len(cells) < 2:
        return ParetoFront(arm, contrast, tuple(seeds), (), LEVEL, None, why) if why else None
    gain, effect = np.array([c.gain for c in cells]), np.array([c.effect for c in cells])
    shown = pareto(gain, effect, None, strata, effect_error=errors[-1] if errors else None)
    named = tuple(_named(cells, shown, strata, errors or []))
    return ParetoFront(arm, contrast, tuple(seeds), named, LEVEL, shown.critical, why)


def _judged_cells(
    ways: Mapping[str, Sequence[JudgedRun]], arms: Arms, strata: np.ndarray, line: Slope, against_control: bool
) -> list[_Cell]:
    """Return a cell for each checkpoint that was judged in every seed of a way, and is broken in none."""
    cells: list[_Cell] = []
    for way, runs in ways.items():
        at = [{p.step: p for p in one.pairs if p.step in one.evidence.target.steps} for one in runs]
        for step in sorted(set.intersection(*(set(of) for of in at))):
            effects = [_effect(of[step], arms, strata, line, against_control=against_control) for of in at]
            if all(e is not None for e in effects):
                gain = np.array([_gains(one.evidence, [step])[0] for one in runs])
                cells.append(_Cell(CellName(way, step), gain, np.array(effects)))
    return cells


def _effect(pair: Pair, arms: Arms, strata: np.ndarray, line: Slope, *, against_control: bool) -> np.ndarray | None:
    """Return left - right at equal coherence by question [Q]; None with fewer than two questions that both answered."""
    left: Place = pair.control if against_control and pair.control else ("base", 0)
    found = adjusted_by_question(arms[left], arms[(pair.run, pair.step)], strata, line)
    return found[1] if found is not None else None


def _left_out(ways: Mapping[str, Mapping[int, JudgedRun]], seeds: Sequence[int]) -> str:
    """Name the broken checkpoints, which no front has."""
    broken = {way: sorted({step for seed in seeds for step in of[seed].broken}) for way, of in ways.items()}
    named = [f"{way} at step {', '.join(map(str, steps))}" for way, steps in broken.items() if steps]
    return f"left out as broken in at least one seed: {'; '.join(named)}" if named else ""


def _no_task(e: Evidence) -> bool:
    return e.target.task_logp is None or e.base_task_logp is None or e.task_tokens is None


def _cells(
    ways: Mapping[str, Mapping[int, Evidence]], seeds: Sequence[int], against_control: bool
) -> tuple[list[_Cell], np.ndarray, str]:
    """Return the cells, the effect's strata, and a sentence where there are no cells because of what was read."""
    cells: list[_Cell] = []
    strata: np.ndarray | None = None
    for way, of in ways.items():
        runs = [of[seed] for seed in seeds]
        steps = sorted(set.intersection(*(set(paired_steps(e)) for e in runs)))
        if not steps:
            continue
        taken = [contrasts_at(e, steps) for e in runs]
        effects = np.array([c.control if against_control and c.control is not None else c.base for c in taken])  # [S, C, Q]
        gains = np.array([_gains(e, steps) for e in runs])  # [S, C, H]
        strata = taken[0].strata if strata is None else strata
        if not np.array_equal(strata, taken[0].strata):
            return [], strata, "its ways of training were not read on the same items"
        cells += [_Cell(CellName(way, step), gains[:, n], effects[:, n]) for n, step in enumerate(steps)]
    return cells, np.zeros(0) if strata is None else strata, ""


def _gains(e: Evidence, steps: Sequence[int]) -> np.ndarray:
    """Return how much likelier each taught answer is than under the base [C, H], nats per token."""
    assert e.target.task_logp is not None and e.base_task_logp is not None and e.task_tokens is not None
    rows = [e.target.steps.index(step) for step in steps]
    return np.asarray((e.target.task_logp[rows] - e.base_task_logp) / e.task_tokens)


def _named(cells: Sequence[_Cell], shown: Front, strata: np.ndarray, errors: Errors) -> list[FrontCell]:
    return [
        FrontCell(
            *(cell.name.way, cell.name.step, _estimate(cell.gain, None, []), _estimate(cell.effect, strata, errors)),
            on_front=round(float(shown.on_front[n]), 4),
            bettered_by=cells[shown.by[n]].name if shown.dominated[n] else None,
        )
        for n, cell in enumerate(cells)
    ]


def _estimate(values: np.ndarray, strata: np.ndarray | None, errors: Errors) -> Estimate:
    """Return the mean over items, and over seeds where there are several [S, Q]."""
    if len(values) > 1:
        return crossed_mean(values, strata).with_error(errors).estimate
    return stratified_mean(values[0], strata).with_error(errors).estimate() if values.shape[1] > 1 else mean_estimate(values[0])
