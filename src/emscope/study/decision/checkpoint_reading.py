"""What was read from one checkpoint and the base, as estimates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.outcomes import State
from emscope.stats.means import Mean, mean_estimate
from emscope.stats.onset import LEVEL
from emscope.stats.rates import share
from emscope.study.decision.along import Along
from emscope.study.decision.checked import BaseReading, CheckpointReading, Flattening
from emscope.study.decision.task import Task, heldout_loss
from emscope.study.reading.arms import Evidence, differences

TWO_SIDED = round(2 * LEVEL - 1, 10)  # level of an interval whose ends are one-sided bounds at LEVEL
EQUAL = "shift from the base at equal base preference, stratified t over items"


def checkpoint_reading(e: Evidence, along: Along, n: int, task: Task) -> CheckpointReading:
    """Return what the `n`-th paired checkpoint reads."""
    step, (control, base) = along.steps[n], along.means[n]
    k = e.target.steps.index(step)  # unpaired steps are in the arm, and not in `along`
    target = e.target.margins[k]
    base_method = EQUAL if along.contrasts.placebo_slope is None else f"{EQUAL}, less the same on placebo pairs"
    return CheckpointReading(
        step=step,
        loss=heldout_loss(e, e.target.task_logp[k] if e.target.task_logp is not None else None),
        train_loss=e.target.train_loss[k] if e.target.train_loss else None,
        gain=task.loss_gain[k] if task.loss_gain else None,
        gain_margin=task.margin_gain[k] if task.margin_gain else None,
        state=along.states[n],
        sure=along.sure[n],
        effect=(base if control is None else control).estimate(TWO_SIDED),
        base_effect=base.estimate(TWO_SIDED, base_method),
        flattening=Flattening(*(_slope(of, n) for of in (along.contrasts.slope, along.contrasts.placebo_slope))),
        contrasts=_plain_contrasts(e, step),
        margin=mean_estimate(target, e.categories),
        misaligned_preference=share(target < 0),
        truth=_truth(e.target.truth, k),
        items_to_settle=_items(along.means[n], e.delta) if along.states[n] is State.UNDETERMINED else None,
        by_category=_by_category(e, step),
    )


def base_reading(e: Evidence) -> BaseReading:
    """Return what the untouched model reads."""
    return BaseReading(
        margin=mean_estimate(e.base_margins, e.categories),
        misaligned_preference=share(e.base_margins < 0),
        loss=heldout_loss(e, e.base_task_logp),
        truth=share(e.base_truth > 0) if e.base_truth is not None and len(e.base_truth) else None,
    )


def _slope(slopes: np.ndarray | None, n: int) -> float | None:
    return float(slopes[n]) if slopes is not None and np.isfinite(slopes[n]) else None


def _plain_contrasts(e: Evidence, step: int) -> Mapping[str, Estimate]:
    """Return the plain differences of the arms' margins at a step, by name."""
    target, base = e.target.at([step])[0], e.base_margins
    sides = {"base - target": base - target}
    if e.control is not None:
        control = e.control.at([step])[0]
        sides = {"control - target": control - target, **sides, "base - control": base - control}
    return {name: mean_estimate(values, e.categories) for name, values in sides.items()}


def _by_category(e: Evidence, step: int) -> Mapping[str, Estimate]:
    d = differences(e, step)
    return {str(c): mean_estimate(d[e.categories == c]) for c in np.unique(e.categories)}


def _truth(truth: np.ndarray | None, row: int) -> Estimate | None:
    if truth is None or np.isnan(truth[row]).any():
        return None
    return share(truth[row] > 0)


def _items(means: tuple[Mean | None, Mean], delta: float) -> int | None:
    """Return how many items would settle the contrast that needs most of them."""
    needed = [m.items_to_settle(delta, LEVEL) for m in means if m is not None]
    return max((n for n in needed if n is not None), default=None)
