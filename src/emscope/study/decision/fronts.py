"""Task gain against harm over all checkpoints of all ways of training: which cells are not dominated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.plain import Result
from emscope.stats.crossed import crossed_mean
from emscope.stats.means import mean_estimate
from emscope.stats.onset import LEVEL
from emscope.stats.pareto import Front, pareto
from emscope.study.decision.along import contrasts_at
from emscope.study.reading.arms import Evidence, paired_steps, without_dud

MOST_CELLS = 1000  # limit for the front, since every cell is compared with every other
NOT_READ = "the task was not measured in all of its runs"


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


@dataclass(frozen=True, slots=True)
class _Cell:
    """The values of a cell by seed: gain [S, H], effect [S, Q]."""

    name: CellName
    gain: np.ndarray
    effect: np.ndarray


def front(arm: str, ways: Mapping[str, Mapping[int, Evidence]]) -> ParetoFront | None:
    """Return the Pareto front of an arm over its ways of training and their checkpoints; None below two checkpoints. (see `stats.pareto`)

    Args:
        ways: evidence by way of training and seed.
    """
    found = {way: {seed: without_dud(e) for seed, e in seeds.items()} for way, seeds in ways.items()}
    seeds = sorted(set.intersection(*(set(of) for of in found.values()))) if found else []
    every = [of[seed] for of in found.values() for seed in seeds]
    against_control = all(e.control is not None for e in every)
    contrast = "control - target" if against_control else "base - target at equal base preference"
    if not seeds:
        return ParetoFront(arm, contrast, (), (), LEVEL, None, "its ways of training have no seed in common")
    if any(_no_task(e) for e in every):
        return ParetoFront(arm, contrast, tuple(seeds), (), LEVEL, None, NOT_READ)
    cells, strata, why = _cells(found, seeds, against_control)
    if len(cells) < 2:
        return ParetoFront(arm, contrast, tuple(seeds), (), LEVEL, None, why) if why else None
    gain, effect = np.array([c.gain for c in cells]), np.array([c.effect for c in cells])
    shown = pareto(gain, effect, None, strata)
    return ParetoFront(arm, contrast, tuple(seeds), tuple(_named(cells, shown, strata)), LEVEL, shown.critical, why)


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
    if len(cells) > MOST_CELLS:
        return [], np.zeros(0), f"{len(cells):,} checkpoints exceed the limit of {MOST_CELLS:,} for a front"
    return cells, np.zeros(0) if strata is None else strata, ""


def _gains(e: Evidence, steps: Sequence[int]) -> np.ndarray:
    """Return how much likelier each taught answer is than under the base [C, H], nats per token."""
    assert e.target.task_logp is not None and e.base_task_logp is not None and e.task_tokens is not None
    rows = [e.target.steps.index(step) for step in steps]
    return np.asarray((e.target.task_logp[rows] - e.base_task_logp) / e.task_tokens)


def _named(cells: Sequence[_Cell], shown: Front, strata: np.ndarray) -> list[FrontCell]:
    return [
        FrontCell(
            *(cell.name.way, cell.name.step, _estimate(cell.gain, None), _estimate(cell.effect, strata)),
            on_front=round(float(shown.on_front[n]), 4),
            bettered_by=cells[shown.by[n]].name if shown.dominated[n] else None,
        )
        for n, cell in enumerate(cells)
    ]


def _estimate(values: np.ndarray, strata: np.ndarray | None) -> Estimate:
    """Return the mean over items, and over seeds where there are several [S, Q]."""
    return crossed_mean(values, strata).estimate if len(values) > 1 else mean_estimate(values[0], strata)
