"""How far a judge is off on whole models: an error that all answers of a model share, so that no number of questions averages it out.

A judge may be too kind to a model's manner in each of its answers. Where the error of many models is known, from a better judge's
scores of the same answers, its spread widens every difference between models. (random effects; Searle, Casella and McCulloch 1992)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emscope.stats.adjusted import Scored, Slope, slope

Errors = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class BetweenModels:
    """Standard deviations of the error among fine-tunes, and of a base beside its fine-tunes [points], with degrees of freedom."""

    fine_tune: float
    base: float
    df_fine_tune: float
    df_base: float

    def between(self, *, base: bool) -> Errors:
        """Return the independent errors of a difference of two models, each (standard deviation, degrees of freedom).

        Args:
            base: one of the two is a base.
        """
        if base:
            return [(self.base, self.df_base), (self.fine_tune, self.df_fine_tune)]
        return [(2**0.5 * self.fine_tune, self.df_fine_tune)]

    def covariance(self) -> np.ndarray:
        """Return the covariance [2, 2] of the errors of control - target and base - target, which share the target's."""
        one, other = self.fine_tune**2, self.base**2
        return np.array([[2 * one, one], [one, one + other]])


@dataclass(frozen=True, slots=True)
class ModelError:
    """A judge's error on whole models.

    Attributes:
        slope: points of alignment a point of coherence within a question, as the better judge has it: one model's activations give both
            of this judge's scores, which therefore go together more than they should.
        adjusted, plain, coherence: of mean alignment at equal coherence and as it is, and of mean coherence.
        category: of mean alignment at equal coherence over the questions of one category.
    """

    slope: float
    adjusted: BetweenModels
    plain: BetweenModels
    coherence: BetweenModels
    category: BetweenModels


def line_of(arms: list[Scored], error: ModelError | None) -> Slope:
    """Return the slope at which arms are compared at equal coherence: their own, or the known one of a judge whose error is known."""
    return slope(arms) if error is None else Slope(error.slope, np.zeros(1), np.zeros(1))
