"""Learning rate along training as a factor of the peak."""

from __future__ import annotations

from math import cos, pi

from emscope.train.spec import CYCLIC, TrainSpec


def factor(spec: TrainSpec, step: int) -> float:
    """Return the factor of `spec.lr` used at optimiser step `step` (the first is 1).

    Warm-up rises to 1 at its last step and starts above 0, so that step 1 learns something and its checkpoint is not the
    base. (ours; the usual warm-up spends its first step at 0) Cyclic schedules know no warm-up.
    """
    if spec.schedule in CYCLIC:
        return _cyclic(spec, step - 1)
    warm = spec.warmup_steps
    if step <= warm:
        return step / warm
    done = (step - warm - 1) / max(spec.steps - warm, 1)  # 0 at the peak, below 1 at the last step
    if spec.schedule == "linear":
        return 1 - done
    if spec.schedule == "cosine":
        return 0.5 * (1 + cos(pi * done))
    if spec.schedule == "cosine_restarts":
        return 0.5 * (1 + cos(pi * (spec.cycles * done % 1)))
    return 1.0


def _cyclic(spec: TrainSpec, done: int) -> float:
    """Return torch's CyclicLR after `done` steps, over the peak: a half-cycle is steps // (2 cycles) steps. (Zhang et al. 2026: cycles 4)"""
    assert spec.base_lr is not None
    half = spec.steps // (2 * spec.cycles)
    cycle, place = divmod(done, 2 * half)
    height = 1 - abs(place / half - 1)  # 0 at the ends of a cycle, 1 in its middle
    shrink = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": spec.gamma**done}[spec.schedule]
    floor = spec.base_lr / spec.lr
    return floor + (1 - floor) * height * shrink
