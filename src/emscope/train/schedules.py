"""Learning rate along training as a factor of the peak."""

from __future__ import annotations

from math import cos, pi

from emscope.train.spec import TrainSpec


def factor(spec: TrainSpec, step: int) -> float:
    """Return the factor of `spec.lr` used at optimiser step `step` (the first is 1).

    Warm-up rises to 1 at its last step and starts above 0, so that step 1 learns something and its checkpoint is not the
    base. (ours; the usual warm-up spends its first step at 0)
    """
    warm = spec.warmup_steps
    if step <= warm:
        return step / warm
    done = (step - warm - 1) / max(spec.steps - warm, 1)  # 0 at the peak, below 1 at the last step
    if spec.schedule == "linear":
        return 1 - done
    if spec.schedule == "cosine":
        return 0.5 * (1 + cos(pi * done))
    return 1.0
