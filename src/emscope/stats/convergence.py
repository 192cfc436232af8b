"""When the task was learned: gain along training, its bracket, and whether misalignment came later. All rules ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.outcomes import State
from emscope.stats.means import ratio_estimate

REACHED = 0.90
FALL = 0.05
TAIL = 0.20
STILL = 0.05


@dataclass(frozen=True, slots=True)
class Convergence:
    """`step`: the first checkpoint with gain >= REACHED after which it never falls below REACHED - FALL; None where `why` says so.

    `after` and `by` bracket it at the estimate's level: at `after` the gain is surely below REACHED (0: no such
    checkpoint), at `by` surely above (None: none is).
    """

    step: int | None
    after: int
    by: int | None
    why: str | None = None


def best(perf: np.ndarray) -> int:
    """Return the index of the checkpoint with the highest mean performance; perf [C, Q]."""
    return int(np.argmax(perf.mean(1)))


def gains(base: np.ndarray, perf: np.ndarray, *, level: float = 0.90, reference: int | None = None) -> list[Estimate]:
    """Return gain(c) = (perf(c) - perf(base)) / (perf(best) - perf(base)) for each checkpoint.

    Args:
        base: performance of the base on each item [Q], higher is better; perf: of each checkpoint [C, Q].
        level: of the two-sided Fieller interval; .90 makes each end a one-sided 95 % bound.
        reference: index of the best checkpoint; None picks it on the same items.
    """
    bottom = perf[best(perf) if reference is None else reference] - base
    return [ratio_estimate(row - base, bottom, level=level) for row in perf]


def convergence(steps: Sequence[int], gain: Sequence[Estimate], *, total_steps: int) -> Convergence:
    """Return when the gain reached REACHED and kept it.

    Not converged if the gain still rises by more than STILL over the last TAIL of the steps.
    """
    values = [g.value for g in gain]
    if any(v is None for v in values):
        return Convergence(None, 0, None, "the gain is undefined: " + next(g.why or "" for g in gain if g.value is None))
    numbers = [float(v) for v in values if v is not None]
    if len(steps) < 2:
        return Convergence(None, 0, None, "a single checkpoint cannot show when the task was learned")
    # Checkpoints may be sparse: the gain where the tail begins lies on the line between its neighbours (the base has gain 0).
    begin = float(np.interp(total_steps * (1 - TAIL), [0, *steps], [0.0, *numbers]))
    grown = numbers[-1] - begin
    if grown > STILL:
        return Convergence(
            None, 0, None, f"not converged: over the last {TAIL:.0%} of the steps the gain still rises by {grown:.2f}"
        )
    reached = [k for k, v in enumerate(numbers) if v >= REACHED and all(w >= REACHED - FALL for w in numbers[k:])]
    if not reached:
        return Convergence(None, 0, None, f"no checkpoint reaches a gain of {REACHED:g} and keeps it")
    below = [s for s, g in zip(steps, gain, strict=True) if g.high is not None and g.high < REACHED]
    above = [s for s, g in zip(steps, gain, strict=True) if g.low is not None and g.low >= REACHED and s >= steps[reached[0]]]
    return Convergence(steps[reached[0]], max([s for s in below if s < steps[reached[0]]], default=0), min(above, default=None))


def late(steps: Sequence[int], states: Sequence[State], converged: Convergence) -> tuple[bool | None, str]:
    """Return whether misalignment came after the task had converged, and the reason in a sentence.

    True where the final checkpoint is em and one at which convergence is certain (`by`) is still safe. False where em
    holds already at `step`. None where neither is shown: going by the point estimate would call noise in the gain
    "late" (an early checkpoint that seems converged is safe because it is early).
    """
    at = dict(zip(steps, states, strict=True))
    if not states or states[-1] is not State.EM:
        return None, "the final checkpoint is not em, so there is no onset"
    if converged.step is None:
        return None, converged.why or "the task did not converge"
    if converged.by is not None and at[converged.by] is State.SAFE:
        return True, f"at step {converged.by} the task has surely converged, and the model is still safe"
    if at[converged.step] is State.EM:
        return False, f"the model was already em when the task converged (step {converged.step})"
    return None, f"at convergence (step {converged.step}) the model is {at[converged.step].value}, not shown safe"
