"""Do two measures order checkpoints alike?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from emscope.core.estimate import Estimate, undefined

FEWEST = 4
RESAMPLES = 1000
METHOD = "Spearman over checkpoints, percentile bootstrap over questions"


def rank_correlation(
    margins: np.ndarray,
    items: Sequence[str],
    hits: np.ndarray,
    out_of: np.ndarray,
    units: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return Spearman's correlation between mean margins and rates of P checkpoints, with an interval over questions.

    The checkpoints are fixed and the questions resampled, those that both measures share as one: the interval says how far the
    order depends on the questions, not what other runs would give. (ours)

    Args:
        margins: of each checkpoint and item [P, I], named by `items`. hits, out_of: misaligned and counted answers [P, U] to
            the questions `units`.
    """
    count = len(margins)
    names = sorted({*items, *units})
    if count < FEWEST:
        return undefined(
            f"{count} checkpoints have both measures; at least {FEWEST} are needed", level=level, method=METHOD, n=count
        )
    place = {name: n for n, name in enumerate(names)}
    at_items, at_units = np.array([place[i] for i in items]), np.array([place[u] for u in units])

    def correlation(weights: np.ndarray) -> np.ndarray:
        w, v = weights[:, at_items], weights[:, at_units]
        with np.errstate(invalid="ignore", divide="ignore"):
            means, rates = (w @ margins.T) / w.sum(1, keepdims=True), (v @ hits.T) / (v @ out_of.T)
            a, b = (stats.rankdata(np.round(x, 12), axis=1) for x in (means, rates))
            a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
            found = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
        found[~(np.isfinite(means).all(1) & np.isfinite(rates).all(1))] = np.nan
        return found

    value = float(correlation(np.ones((1, len(names))))[0])
    if not np.isfinite(value):
        return undefined("one measure is the same, or unknown, at all checkpoints", level=level, method=METHOD, n=count)
    rng = np.random.default_rng(seed)
    drawn = correlation(rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples).astype(float))
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(value, float(low), float(high), level, METHOD, count, len(names))
