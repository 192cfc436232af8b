"""What the contrasts of the evidence say along the checkpoints: states, and the last step that is shown safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.outcomes import State
from emscope.stats.equal_preference import Contrasts, contrasts
from emscope.stats.means import Mean
from emscope.stats.onset import HARM, LEVEL, last_safe, states_along
from emscope.stats.quantiles import student
from emscope.stats.search import look_level
from emscope.stats.simultaneous import safe_stop, simultaneous_bounds
from emscope.stats.skew import Moments, moments
from emscope.study.reading.arms import Evidence

AGAINST_CONTROL, AGAINST_BASE = "control - target", "base - target at equal base preference"


@dataclass(frozen=True, slots=True)
class Along:
    """What the paired checkpoints say.

    Attributes:
        contrasts: of each checkpoint by item. means: (control - target or None, base - target at equal base preference).
        states: by bounds for each checkpoint alone; sure: by bounds that hold for all of them at once, or for all that a search may read.
        upper: upper bounds (control, base) of each checkpoint that hold as `sure` does. stop: the last that is shown safe with none surely em before it.
    """

    steps: list[int]
    contrasts: Contrasts
    means: list[tuple[Mean | None, Mean]]
    states: list[State]
    sure: list[State]
    upper: list[tuple[float | None, float]]
    stop: int | None


def read_along(e: Evidence, steps: Sequence[int]) -> Along:
    """Return states of the checkpoints at `steps`, each alone and all at once."""
    if not steps:
        return Along([], contrasts(e.base_margins, e.target.margins[:0], None, e.categories), [], [], [], [], None)
    found = contrasts_at(e, steps)
    sides = np.stack([*([found.control] if found.control is not None else []), found.base])  # [A, C, Q]
    still = (sides == 0).all(-1)  # [A, C]: no item differs at all, as before the first update
    alone = moments(sides, found.strata)
    joint = simultaneous_bounds(sides, found.strata, LEVEL) if e.looks is None else None
    each = _bounds(alone, LEVEL)
    low, high = (joint.lower, joint.upper) if joint else _bounds(alone, look_level(e.looks or 1))
    upper = np.where(still, 0.0, high)
    sure = states_along(np.where(still, 0.0, low), upper, e.delta)
    return Along(
        list(steps),
        found,
        found.means(),
        states_along(np.where(still, 0.0, each[0]), np.where(still, 0.0, each[1]), e.delta),
        sure,
        [(float(u[0]) if len(u) == 2 else None, float(u[-1])) for u in upper.T],
        _stop_step(steps, sides, still.all(0), sure, found.strata, e.delta) if joint else last_safe(steps, sure),
    )


def _bounds(alone: Moments, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the one-sided bounds [A, C] of each reading by itself at `level`."""
    reach = np.vectorize(student)(level, alone.df)
    return alone.bound(reach, -1), alone.bound(reach, +1)


def contrasts_at(e: Evidence, steps: Sequence[int]) -> Contrasts:
    """Return both contrasts at `steps` by item, less those of the placebo pairs where base and target were asked them."""
    rows = [e.target.steps.index(s) for s in steps]
    placebo = None
    if e.base_placebo is not None and e.target.placebo is not None and e.placebo_categories is not None:
        placebo = (e.base_placebo, e.target.placebo[rows], e.placebo_categories)
    return contrasts(e.base_margins, e.target.margins[rows], e.control.at(steps) if e.control else None, e.categories, placebo)


def _stop_step(
    steps: Sequence[int], sides: np.ndarray, still: np.ndarray, sure: Sequence[State], strata: np.ndarray, delta: float
) -> int | None:
    """Return the last step shown safe with none surely em before it; a checkpoint still identical to its base needs no test."""
    moved = np.flatnonzero(~still)
    shown = safe_stop([steps[int(n)] for n in moved], sides[:, moved], strata, delta=delta) if len(moved) else None
    end = next((n for n, s in enumerate(sure) if s in HARM), len(steps))
    unmoved = [s for n, s in enumerate(steps[:end]) if still[n]]
    return max([*unmoved, *([shown] if shown is not None else [])], default=None)
