"""Shares of items."""

from __future__ import annotations

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.quantiles import normal

WILSON = "share, Wilson"


def share(hits: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the share of True in `hits` [Q] with Wilson's score interval, which has width at 0 and at 1.

    (Wilson 1927; one observation an item)
    """
    n = len(hits)
    if n == 0:
        return undefined("no items", level=level, method=WILSON)
    p = float(np.mean(hits))
    low, high = wilson(p, n, z=normal(0.5 + level / 2))
    return Estimate(p, low, high, level, WILSON, n, n)


def wilson(p: float, n: float, *, z: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share `p` of `n` independent trials, `z` standard errors to either side."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return (max(0.0, centre - reach) if p > 0 else 0.0), (min(1.0, centre + reach) if p < 1 else 1.0)
