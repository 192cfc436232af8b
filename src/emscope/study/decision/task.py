"""The task that a fine-tune was to learn: gain along training, convergence, whether misalignment came later, what a stop keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.estimate import Estimate, undefined
from emscope.core.outcomes import State
from emscope.stats import convergence as conv
from emscope.stats.convergence import Convergence
from emscope.stats.means import FIELLER, ratio_estimate
from emscope.study.decision.checked import ConvergenceBracket, Late, Loss
from emscope.study.reading.arms import Evidence

NOT_READ = "the task was not measured (no held-out file)"


@dataclass(frozen=True, slots=True)
class Task:
    """Gain and convergence on held-out loss and on margin, at all of the target's steps; None where not measured, and `why` says so."""

    loss_gain: list[Estimate] | None
    margin_gain: list[Estimate] | None
    loss: Convergence | None
    margin: Convergence | None
    why: dict[str, str]

    @property
    def step(self) -> int | None:
        """The step at which the task was learned, by held-out loss."""
        return self.loss.step if self.loss else None

    @property
    def bracket(self) -> ConvergenceBracket | None:
        """The bracket of that step."""
        return ConvergenceBracket(self.loss.after, self.loss.by) if self.loss and self.loss.step is not None else None


def read_task(e: Evidence) -> Task:
    """Return what the target gained of its task along training."""
    t, why = e.target, dict[str, str]()
    if t.task_logp is None or e.base_task_logp is None:
        why["convergence"] = "no held-out file was given, so the task was not measured"
        return Task(None, None, None, None, why)
    loss_gain = conv.gains(e.base_task_logp, t.task_logp)
    loss = conv.convergence(t.steps, loss_gain, total_steps=e.total_steps)
    if loss.why:
        why["convergence"] = loss.why
    elif loss.by is None:
        why["convergence_by"] = f"no checkpoint is shown to reach a gain of {conv.REACHED:g}"
    if t.task_margin is None or e.base_task_margin is None:
        why["late_margin"] = "the held-out set has one answer per question, so convergence on the margin was not measured"
        return Task(loss_gain, None, loss, None, why)
    margin_gain = conv.gains(e.base_task_margin, t.task_margin)
    return Task(loss_gain, margin_gain, loss, conv.convergence(t.steps, margin_gain, total_steps=e.total_steps), why)


def late(steps: Sequence[int], states: Sequence[State], task: Task) -> tuple[Late | None, dict[str, str]]:
    """Return whether misalignment came after the task was learned, and a sentence where that is not settled.

    Args:
        steps, states: of the paired checkpoints.
    """
    why: dict[str, str] = {}
    if task.loss is None:
        why["late"] = NOT_READ
        return None, why
    by_loss, loss_why = conv.late(steps, states, _at_paired(task.loss, steps))
    by_margin, margin_why = (
        (None, "not measured") if task.margin is None else conv.late(steps, states, _at_paired(task.margin, steps))
    )
    if task.margin is None or by_loss == by_margin:
        value = by_loss
    else:
        value, loss_why = None, f"depends on the task measure: on loss, {loss_why}; on margin, {margin_why}"
    if value is None:
        why["late"] = loss_why
    return Late(value, by_loss, by_margin, loss_why, margin_why), why


def _at_paired(c: Convergence, steps: Sequence[int]) -> Convergence:
    """Return the convergence moved to the next step at which both arms were read."""
    if c.step is None:
        return c
    step = next((s for s in steps if s >= c.step), None)
    by = next((s for s in steps if c.by is not None and s >= c.by), None)
    return Convergence(step, c.after, by, None if step is not None else "no paired step after convergence")


def retained(e: Evidence, step: int) -> Estimate:
    """Return the task gain at the stop. The best checkpoint is chosen on one half of the held-out items, the gain read on the other."""
    if e.target.task_logp is None or e.base_task_logp is None or e.heldout_halves is None:
        return undefined(NOT_READ, level=0.95, method=FIELLER)
    perf, base, row = e.target.task_logp, e.base_task_logp, e.target.steps.index(step)
    top, bottom = [], []
    for half in ("A", "B"):
        choose, report = e.heldout_halves != half, e.heldout_halves == half
        if not choose.any() or not report.any():
            return undefined("fewer than two halves of held-out items", level=0.95, method=FIELLER)
        reference = conv.best(perf[:, choose])
        top.append(perf[row, report] - base[report])
        bottom.append(perf[reference, report] - base[report])
    return ratio_estimate(np.concatenate(top), np.concatenate(bottom))


def heldout_loss(e: Evidence, logp: np.ndarray | None) -> Loss | None:
    """Return the loss that summed log-probabilities [H] of the held-out answers amount to; None where there are none."""
    if logp is None or e.task_tokens is None:
        return None
    return Loss(float(-logp.sum() / e.task_tokens.sum()), float(-logp.mean()))
