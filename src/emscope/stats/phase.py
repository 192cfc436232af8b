"""Whether the trained vectors turned sharply at some step, as rank-1 adapters do where emergent misalignment sets in. (model organisms, Turner et al. 2025)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from emscope.core.plain import Result

TURN = -0.5
FLOOR = 0.05


@dataclass(frozen=True, slots=True)
class Phase(Result):
    """The sharpest turn of the trained vectors and the largest gradient.

    Attributes:
        turn: step of the highest local rotation; None where no turn is sharper than `TURN`.
        cosine: that rotation, -1 straight on, 0 a right angle; None where no step was above the floor.
        gradient_peak: step of the largest gradient norm after the first `lag` steps; None where there is none.
        times_median: that norm over the median of the run.
        agree: turn and peak lie within `lag` steps; None where either is missing.
    """

    lag: int
    turn: int | None
    cosine: float | None
    gradient_peak: int | None
    times_median: float | None
    agree: bool | None


def phase(
    rotations: Mapping[int, tuple[float, float]],
    gradient_norms: Mapping[int, float],
    lag: int,
) -> Phase:
    """Summarise one run.

    Steps shorter than `FLOOR` of the longest are left out: where nothing moves, noise turns at random. So are the first `lag`
    gradients, which are large in every run. (thresholds ours)

    Args:
        rotations: {step: (local rotation at `lag`, the shorter step's norm)}; gradient_norms: {step: norm before clipping}.
    """
    longest = max((norm for _, norm in rotations.values()), default=0.0)
    clear = {step: turn for step, (turn, norm) in rotations.items() if norm > 0 and norm >= FLOOR * longest}
    sharpest = max(clear, key=lambda step: clear[step]) if clear else None
    late = {step: norm for step, norm in gradient_norms.items() if step > lag}
    peak = max(late, key=lambda step: late[step]) if late else None
    turn = sharpest if sharpest is not None and clear[sharpest] > TURN else None
    return Phase(
        lag,
        turn,
        clear[sharpest] if sharpest is not None else None,
        peak,
        late[peak] / float(np.median(list(gradient_norms.values()))) if peak is not None else None,
        abs(turn - peak) <= lag if turn is not None and peak is not None else None,
    )
