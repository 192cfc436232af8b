"""Rates and their differences by the percentile bootstrap over questions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.clustered import Contrast, Rate, without_interval

RESAMPLED = "rate, percentile bootstrap over questions"
RESAMPLED_DIFFERENCE = "difference of rates, percentile bootstrap over questions"
BY_RESAMPLES = "bootstrap over questions"
MOST_KEPT = 4000  # groups whose resampled rates are kept, 16 kB each at 2,000 resamples
MOST_WEIGHTS = 50_000_000  # resamples x questions: their weights stay below 200 MB
UNRESAMPLED = (
    "resamples of a side whose answers are all alike never vary; the closed form, without resamples, shows how far they might"
)


class Resamples:
    """The percentile bootstrap over questions, with the same draws for all groups that were asked the same questions.

    Args:
        count: resamples R; seed: of the draws.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed = count, seed
        self._drawn: dict[bytes, np.ndarray] = {}
        self._known: dict[tuple[int, bytes], tuple[Rate, np.ndarray]] = {}

    def values(self, found: Rate, questions: np.ndarray | None = None) -> np.ndarray:
        """Return the rate in each resample [R]; NaN where a resample drew no answers.

        Args:
            questions: the identifiers drawn from, ascending; those asked by default.
        """
        names = found.asked if questions is None else questions
        key = id(found), names.tobytes()
        if key not in self._known:  # a group occurs in many contrasts
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[key] = found, self._values(found, names)
        return self._known[key][1]

    def _values(self, found: Rate, names: np.ndarray) -> np.ndarray:
        counts = np.zeros((len(names), 2), np.float32)  # of the weights' own kind, which are not copied then
        place = np.searchsorted(names, found.questions)
        counts[place, 0] = found.hits / found.out_of if found.macro else found.hits
        counts[place, 1] = 1.0 if found.macro else found.out_of
        top, bottom = (self._weights(names) @ counts).T.astype(float)
        with np.errstate(invalid="ignore"):
            return top / bottom

    def estimate(self, found: Rate | None, *, level: float = 0.95) -> Estimate:
        """Return the interval of a rate between the resamples' percentiles."""
        if found is None:
            return undefined("there are no counted answers", level=level, method=RESAMPLED)
        if len(found.questions) < 2:
            return without_interval(found, level, RESAMPLED)
        return _between(self.values(found), Estimate(found.value, None, None, level, RESAMPLED, found.n, len(found.questions)))

    def contrast(self, a: Rate | None, b: Rate | None, *, level: float = 0.95) -> Contrast:
        """Return a - b with percentiles of the resampled differences; p is twice the smaller tail's share."""
        if a is None or b is None:
            return Contrast(undefined("a side has no answers", level=level, method=RESAMPLED_DIFFERENCE), None)
        names = a.asked if np.array_equal(a.asked, b.asked) else np.union1d(a.asked, b.asked)
        drawn = self.values(a, names) - self.values(b, names)
        drawn = drawn[np.isfinite(drawn)]
        difference = _between(
            drawn, Estimate(a.value - b.value, None, None, level, RESAMPLED_DIFFERENCE, a.n + b.n, len(names))
        )
        if difference.low is None:
            return Contrast(difference, None)
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        limit = None if tail else f"p below what {self.count:,} resamples can show"
        bare = a.bare or b.bare
        return Contrast(
            difference, min(1.0, 2 * (tail + 1) / (len(drawn) + 1)), BY_RESAMPLES, limit, UNRESAMPLED if bare else None
        )

    def _weights(self, questions: np.ndarray) -> np.ndarray:
        """Return how often each question is drawn in each resample [R, Q]."""
        key = questions.tobytes()
        if key not in self._drawn:
            count = len(questions)
            while self._drawn and sum(w.size for w in self._drawn.values()) + self.count * count > MOST_WEIGHTS:
                self._drawn.pop(next(iter(self._drawn)))  # the oldest: draws are large
            draw = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), size=self.count)
            self._drawn[key] = draw.astype(np.float32)
        return self._drawn[key]


def _between(drawn: np.ndarray, bare: Estimate) -> Estimate:
    """Return `bare` with the percentiles of what was drawn [R]; draws that are all the same give no interval."""
    known = np.sort(drawn[np.isfinite(drawn)])
    if not len(known) or known[-1] - known[0] < 1e-9:
        return replace(bare, why="all resamples are the same; the closed form, without resamples, gives an interval")
    places = (len(known) - 1) * np.array([0.5 - bare.level / 2, 0.5 + bare.level / 2])
    low, high = np.interp(places, np.arange(len(known)), known)  # numpy.quantile's value, at a tenth of its overhead
    return replace(bare, low=float(low), high=float(high))
