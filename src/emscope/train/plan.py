"""Which steps to save."""

from __future__ import annotations

from emscope.train.spec import PlanSpec


def checkpoint_steps(plan: PlanSpec, steps: int) -> list[int]:
    """Return the steps of a plan in order; step 1 and the last are always among them (step 0 is the base).

    >>> checkpoint_steps(PlanSpec(every=10), 25)
    [1, 10, 20, 25]
    """
    chosen = {1, steps}
    if plan.every:
        chosen |= set(range(plan.every, steps + 1, plan.every))
    if plan.at:
        chosen |= set(plan.at)
    if plan.log and plan.log > 2:
        chosen |= {round(steps ** (k / (plan.log - 1))) for k in range(plan.log)}
    return sorted(chosen)
