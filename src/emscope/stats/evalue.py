"""Anytime-valid evidence that a judge changed: an e-process on anchors' scores less their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BETS = tuple(np.concatenate([-np.geomspace(0.05, 0.9, 8)[::-1], np.geomspace(0.05, 0.9, 8)]))


@dataclass(frozen=True, slots=True)
class Drift:
    """An e-process. `values` [N]: evidence after each anchor against "the judge is off by no more than `slack`"; 20 is strong."""

    values: np.ndarray
    offset: float
    slack: float

    @property
    def largest(self) -> float:
        """The strongest evidence so far: reject at level a where it passes 1/a. (Ville's inequality)"""
        return float(self.values.max(initial=1.0))


def drift(differences: Sequence[float], *, scale: float, slack: float = 0.0, offset: float = 0.0) -> Drift:
    """Return the evidence that a judge's scores moved against the labels of anchor answers.

    With u = (d - offset) / scale in [-1, 1], each bet l > 0 multiplies by 1 + l (u - slack/scale) / (1 + slack/scale), l < 0 by
    1 + l (u + slack/scale) / (1 + slack/scale); the mean over all bets is an e-process for |E d - offset| <= slack.
    (betting, Waudby-Smith & Ramdas 2024; the mixture of fixed bets is ours)

    Args:
        differences: score less label of each anchor, in the order in which they were judged [N].
        scale: the largest possible difference; slack: drift that does not matter; offset: the judge's usual difference.

    Raises:
        ValueError: a difference beyond the scale.
    """
    d = np.asarray(differences, float)
    if not scale > 0 or (np.abs(d) > scale).any():
        raise ValueError(f"differences must lie within -{scale:g} and {scale:g}")
    u, s = np.clip((d - offset) / scale, -1, 1), slack / scale
    bets = np.array(BETS)
    logs = np.log1p(bets * (u[:, None] - np.sign(bets) * s) / (1 + s)).cumsum(axis=0)  # [N, bets]
    return Drift(np.exp(np.logaddexp.reduce(logs, axis=1) - np.log(len(bets))), offset, slack)
