"""How far a checkpoint moved from its base at equal base preference, so that a model that is merely less sure of everything is not called worse.

Any fine-tune flattens preferences: over items an arm's margins lie on a line of slope below 1 in the base's, in harmless runs and harmful
ones alike. Where the base prefers the aligned side on average, flattening alone makes base - checkpoint positive.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from emscope.stats.means import Mean, stratified_means


@dataclass(frozen=True, slots=True)
class Line:
    """Regression of an arm's margins on its base's over items; categories weigh equally.

    Attributes:
        shift: values [Q] whose stratified mean is minus the intercept: above 0 where the arm prefers the misaligned side more than its
            base does at equal base preference. Their spread within categories is that of the intercept's influence, so its standard
            error is `stratified_mean`'s (heteroscedasticity-robust, HC3).
        slope: 1 where nothing is flattened; NaN where the base's margins do not vary.
    """

    shift: np.ndarray
    slope: float


def line(base: np.ndarray, moved: np.ndarray, strata: np.ndarray) -> Line:
    """Fit moved = a_k + b base [Q], nats per token, a slope shared by all categories k and an intercept for each; the intercept is the mean of the a_k.

    Least squares with weights 1 / (K n_k). (ours; analysis of covariance, HC3: MacKinnon and White 1985.) A single intercept
    would mistake differences between categories for error in the slope. Where the base's margins do not vary, the shift is the
    plain difference.

    Raises:
        ValueError: fewer than 3 items.
    """
    if len(base) < 3:
        raise ValueError("a line with an interval needs at least three items")
    if np.array_equal(base, moved):
        return Line(np.zeros(len(base)), 1.0)  # nothing moved; rounding would leave values that look like items
    labels, sizes = np.unique(strata, return_inverse=True, return_counts=True)[1:]
    weights = 1 / (len(sizes) * sizes[labels])  # they sum to 1
    centre, middle = float(weights @ base), _of_category(base, labels, sizes)
    within = base - middle
    spread = float(weights @ within**2)
    if spread < 1e-12 * max(1.0, centre**2):
        return Line(base - moved, float("nan"))
    slope = float(weights @ (within * moved)) / spread
    residual = moved - _of_category(moved, labels, sizes) - slope * within
    leverage = weights * within**2 / spread  # on the slope; that on its category's mean is in the n_k - 1 of `stratified_mean`
    influence = (1 - within * centre / spread) * residual / (1 - leverage).clip(min=0.1)
    influence -= _of_category(influence, labels, sizes)
    return Line(-(float(weights @ moved) - slope * centre) - influence, slope)


def _of_category(values: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean of each item's category [Q]."""
    return (np.bincount(labels, values) / sizes)[labels]


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Both contrasts of some checkpoints as values [C, N] over one list of items, whose stratified means they are.

    Attributes:
        control: control - target on each item, or None without a control. base: the shift of the target from its base, less the same
            on placebo pairs. strata: [N]. slope, placebo_slope: of the target's margins on the base's [C].
        items: how many of the N values are items and not placebo pairs.
    """

    control: np.ndarray | None
    base: np.ndarray
    strata: np.ndarray
    slope: np.ndarray
    placebo_slope: np.ndarray | None
    items: int

    def means(self) -> list[tuple[Mean | None, Mean]]:
        """Return (control - target, base - target at equal base preference) of each checkpoint, whose `n` are the items alone."""
        base = self._means(self.base)
        return list(zip([None] * len(base) if self.control is None else self._means(self.control), base, strict=True))

    def _means(self, values: np.ndarray) -> list[Mean]:
        found = stratified_means(values, self.strata) if len(values) else []
        return [replace(one, n=self.items) for one in found]  # pairs are no items that `items_to_settle` may count


def contrasts(
    base: np.ndarray,
    target: np.ndarray,
    control: np.ndarray | None,
    strata: np.ndarray,
    placebo: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> Contrasts:
    """Return what the target's margins show against base and control.

    Items and placebo pairs are laid side by side: with K categories of items and P of pairs, item values are multiplied by (K + P) / K
    and the pairs' by -(K + P) / P, so that the stratified mean of the whole list is the items' mean less the pairs'.

    Args:
        base: margins of the base [Q]; target, control: of checkpoints [C, Q]; strata: category of each item [Q].
        placebo: margins of the base [P] and the target [C, P] on placebo pairs, and their categories [P].
    """
    lines = [line(base, t, strata) for t in target]
    shifts = np.array([one.shift for one in lines]).reshape(len(lines), len(base))
    slopes = np.array([one.slope for one in lines])
    against = None if control is None else control - target
    if placebo is None:
        return Contrasts(against, shifts, strata, slopes, None, len(base))
    quiet, moved, of = placebo
    beside = [line(quiet, m, of) for m in moved]
    items, pairs = len(np.unique(strata)), len(np.unique(of))
    up, down = (items + pairs) / items, -(items + pairs) / pairs
    names = np.concatenate([np.char.add("item ", strata.astype(str)), np.char.add("placebo ", of.astype(str))])
    both = np.hstack([up * shifts, down * np.array([one.shift for one in beside]).reshape(len(beside), len(quiet))])
    if against is not None:
        against = np.hstack([up * against, np.zeros((len(against), len(quiet)))])
    return Contrasts(against, both, names, slopes, np.array([one.slope for one in beside]), len(base))
