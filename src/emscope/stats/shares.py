"""Shares over items or clusters, with intervals that keep a width at 0 and 1, and changes of shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.stats.clustered import CLUSTERED, Rate, rate, rate_estimate
from emscope.stats.rate_contrasts import contrast


def stratified_share(values: np.ndarray, strata: np.ndarray | None = None, *, level: float = 0.95) -> Estimate:
    """Return the mean of category means of `values` [Q] between 0 and 1: hits, or shares of several seeds or tokens.

    se^2 = (1/K^2) sum_k s_k^2 / n_k as in `means.stratified_mean`, then as `clustered.rate_estimate`: t on the logit scale, never
    wider than Wilson's with the items as the sample, and Wilson's where no category varies, so that 0 of n and n of n
    have a width. (ours)

    Args:
        values: one an item [Q]. strata: category of each [Q], None for a single one.
    """
    values = np.asarray(values, float)
    count = len(values)
    if count == 0:
        return undefined("no items", level=level, method=CLUSTERED)
    labels = np.zeros(count, int) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    sizes = np.bincount(labels).astype(float)
    means = np.bincount(labels, weights=values) / sizes
    weights = 1 / (len(sizes) * sizes[labels])
    gaps = values - means[labels]
    alone = sizes[labels] == 1
    # `rate_estimate` sums squared contributions; these make that sum the stratified variance
    scale = np.sqrt(sizes[labels] / np.maximum(sizes[labels] - 1, 1) * (count - 1) / count)
    if alone.all():
        gaps, scale = values - means.mean(), np.ones(count)
    elif alone.any():  # a category of one item borrows the spread of the others
        pooled = (gaps[~alone] ** 2).sum() / (sizes[sizes > 1] - 1).sum()
        gaps = np.where(alone, np.sqrt(pooled), gaps)
    names, value = np.arange(count), float(np.clip(means.mean(), 0, 1))  # a mean of shares may round past an end
    return rate_estimate(
        Rate(value, count, names, values * weights, weights, weights * gaps * scale, False, names), level=level
    )


def share_over(hits: np.ndarray, cluster: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return the share of True in `hits` [N], clustered by `cluster` [N]; `clustered.rate_estimate`'s interval."""
    if not len(hits):
        return undefined("there is nothing to count", level=level, method=CLUSTERED)
    names, place = np.unique(cluster, return_inverse=True)
    return rate_estimate(rate(names, np.bincount(place, weights=hits.astype(float)), np.bincount(place)), level=level)


def share_change(before: np.ndarray, after: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return mean(after) - mean(before) of shares of the same items [Q], paired; with a width where no item changed.

    It is `rate_contrasts.contrast` with each item as a question.
    """
    names, ones = np.arange(len(before)), np.ones(len(before))
    difference = contrast(rate(names, after, ones, macro=True), rate(names, before, ones, macro=True), level=level).difference
    return replace(difference, n=len(before))
