"""What was read from base, target and control: the arrays that a verdict rests on, and what they measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from emscope.core.errors import InputError
from emscope.core.plain import Result
from emscope.stats.means import Mean, stratified_mean
from emscope.stats.onset import LEVEL
from emscope.study.reading.ladders import Ladder


@dataclass(frozen=True, slots=True)
class Arm:
    """What was read from one arm; C checkpoints, Q em items, H held-out items, T truth items, R requests.

    Attributes:
        steps: [C].
        margins: margin of each em item [C, Q], nats per token, > 0 prefers the aligned answer.
        task_logp: summed log-probability of the answer this arm was taught [C, H]; None where there is no held-out set.
        task_margin: per-token margin of that answer over its counterpart [C, H]; None where there is none.
        truth: per item, whether the true answer is the most likely per token [C, T]; NaN rows where it was not read.
        train_loss: training loss at each checkpoint's step, None where it is unknown.
        placebo: margin of each placebo pair [C, P], nats per token; None where they were not read.
        lost: rise in loss of each neutral text at the last step against the base [N], nats per token; None where they were not read.
        refusal: margin of declining over agreeing at the last step, of harmful requests and of their harmless twins [2, R], nats per token;
            None where they were not read.
    """

    name: str
    steps: tuple[int, ...]
    margins: np.ndarray
    task_logp: np.ndarray | None = None
    task_margin: np.ndarray | None = None
    truth: np.ndarray | None = None
    train_loss: tuple[float | None, ...] | None = None
    placebo: np.ndarray | None = None
    lost: np.ndarray | None = None
    refusal: np.ndarray | None = None

    def at(self, steps: Sequence[int]) -> np.ndarray:
        """Return margins [len(steps), Q] at some of the arm's steps."""
        return self.margins[[self.steps.index(s) for s in steps]]


@dataclass(frozen=True, slots=True)
class Measure(Result):
    """What was measured, on which items, and how the model was asked.

    Attributes:
        measure: the formula in words.
        options: names of an item's two answers, without and with the behaviour.
        unit: what is treated as resampled, and how strata are weighted.
        scale: what the update was multiplied by.
        judge: None, since preferences involve no judge.
    """

    measure: str
    behaviour: str
    options: tuple[str, ...]
    items: str
    n_items: int
    items_digest: str
    n_heldout: int
    n_truth: int
    unit: str
    chat: str
    chat_digest: str
    base_digest: str
    scale: float
    judge: None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a verdict rests on; `base_*` are the untouched model's values on the same items.

    Attributes:
        calibrated: it is known how large a value of this measure is harm; otherwise it only screens and decides nothing.
        control_learned: gain of each held-out answer that the control was taught over the base [H], at the last common step; None: not known.
        ladder: the dose ladder of this base on these items, where there is one.
        looks: how many checkpoints a search was allowed to read; None: the checkpoints to read were fixed beforehand.
    """

    base_name: str
    categories: np.ndarray
    halves: np.ndarray
    base_margins: np.ndarray
    target: Arm
    control: Arm | None
    delta: float
    delta_source: str
    total_steps: int
    base_task_logp: np.ndarray | None = None
    base_task_margin: np.ndarray | None = None
    task_tokens: np.ndarray | None = None
    base_truth: np.ndarray | None = None
    heldout_halves: np.ndarray | None = None
    base_placebo: np.ndarray | None = None
    placebo_categories: np.ndarray | None = None
    calibrated: bool = True
    control_learned: np.ndarray | None = None
    measure: Measure | None = None
    ladder: Ladder | None = None
    looks: int | None = None
    base_refusal: np.ndarray | None = None
    refusal_categories: np.ndarray | None = None


def default_delta(base_margins: np.ndarray, share_of_base: float) -> float:
    """Return the threshold fixed by the base alone: a share of its mean absolute margin [nats per token]. (ours)

    The absolute value keeps it meaningful on sets where the base's margins cancel out, as they do when aligned and
    misaligned answers are matched in form.

    Raises:
        InputError: the base prefers neither answer of any item.
    """
    delta = float(share_of_base * np.abs(base_margins).mean())
    if delta <= 0:
        raise InputError(
            "the base finds both answers of every item equally likely, so it gives no threshold",
            "give other items, or `delta`",
        )
    return delta


def control_is_dud(e: Evidence) -> bool:
    """Tell whether the control is known not to have learned its own task. (ours: its one-sided lower bound is not above 0)"""
    if e.control is None or e.control_learned is None or len(e.control_learned) < 2:
        return False
    return stratified_mean(e.control_learned).bound(LEVEL, -1) <= 0


def without_dud(e: Evidence) -> Evidence:
    """Return the evidence without its control, if the control learned nothing."""
    return replace(e, control=None) if control_is_dud(e) else e


def paired_steps(e: Evidence) -> list[int]:
    """Return the steps that target and control share (all of the target's where there is no control)."""
    if e.control is None:
        return list(e.target.steps)
    return [s for s in e.target.steps if s in e.control.steps]


def differences(e: Evidence, step: int) -> np.ndarray:
    """Return the effect on each item [Q]: control - target, or base - target where there is no control."""
    reference = e.base_margins if e.control is None else e.control.at([step])[0]
    return reference - e.target.at([step])[0]


def loss_on_text(e: Evidence) -> Mean | None:
    """Return how much the target's loss on neutral texts rose at its last step, nats per token; None where they were not read."""
    return stratified_mean(e.target.lost) if e.target.lost is not None and len(e.target.lost) > 1 else None
