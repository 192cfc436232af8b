"""Rows of the store to arrays: what the analysis needs, in the order of the item sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emscope.core.errors import WorldError
from emscope.core.records import Item
from emscope.data.bundled import DECLINING
from emscope.models.loading.load import Loaded
from emscope.store.study import read_table
from emscope.study.measure_spec import DecideSpec
from emscope.study.reading.arms import Arm, Evidence, Measure, default_delta
from emscope.study.reading.ladders import ladder_for
from emscope.study.reading.sets import EM, HELDOUT, NEUTRAL, PLACEBO, REFUSAL, TRUTH, TWINS, ItemSets

Cell = tuple[str, int, float, str, str, int]


class Scores:
    """All preference scores of a study by (run, step, scale, set, item, option) -> (log-probability [nats], tokens)."""

    def __init__(self, root: Path, chat: str) -> None:
        table = read_table(root, "preferences").to_pydict()
        columns = ("run", "step", "scale", "set", "item", "option", "logprob", "tokens", "chat")
        rows = zip(*(table[c] for c in columns), strict=True)
        self._cells: dict[Cell, tuple[float, int]] = {r[:6]: (r[6], r[7]) for r in rows if r[8] == chat}

    def has(self, run: str, step: int, scale: float, name: str, items: Sequence[Item], option: int = 0) -> bool:
        """True where every item of the set was read at this checkpoint."""
        return bool(items) and all((run, step, scale, name, i.id, option) in self._cells for i in items)

    def logp(self, run: str, step: int, scale: float, name: str, items: Sequence[Item], option: int) -> np.ndarray:
        """Return summed log-probabilities of one option [Q]."""
        return np.array([self._cell(run, step, scale, name, i, option)[0] for i in items])

    def tokens(self, run: str, step: int, scale: float, name: str, items: Sequence[Item], option: int) -> np.ndarray:
        """Return token counts of one option [Q]."""
        return np.array([self._cell(run, step, scale, name, i, option)[1] for i in items])

    def per_token(self, run: str, step: int, scale: float, name: str, items: Sequence[Item], option: int) -> np.ndarray:
        """Return log-probability per token of one option [Q]."""
        return self.logp(run, step, scale, name, items, option) / self.tokens(run, step, scale, name, items, option)

    def margin(
        self, run: str, step: int, scale: float, name: str, items: Sequence[Item], better: int = 0, worse: int = 1
    ) -> np.ndarray:
        """Return per-token margin of one option over another [Q]."""
        return self.per_token(run, step, scale, name, items, better) - self.per_token(run, step, scale, name, items, worse)

    def truth(self, run: str, step: int, scale: float, items: Sequence[Item]) -> np.ndarray:
        """Return the per-token margin of the true answer over the best false one [T]; > 0 counts for MC1."""
        first = self.per_token(run, step, scale, TRUTH, items, 0)
        others = [
            max(
                self._cell(run, step, scale, TRUTH, i, k)[0] / self._cell(run, step, scale, TRUTH, i, k)[1]
                for k in range(1, len(i.options))
            )
            for i in items
        ]
        return first - np.array(others)

    def refusal(self, run: str, step: int, scale: float, sets: ItemSets) -> np.ndarray | None:
        """Return the per-token margin of declining over agreeing, of harmful requests and of their twins [2, R]; None where they were not read.

        It is the mean over the pairs of answers.
        """
        asked, pairs = ((REFUSAL, sets.refusal), (TWINS, sets.twins)), [(2 * n, 2 * n + 1) for n in range(len(DECLINING))]
        if not all(
            self.has(run, step, scale, name, items, option) for name, items in asked for pair in pairs for option in pair
        ):
            return None
        return np.stack([np.mean([self.margin(run, step, scale, name, items, *p) for p in pairs], 0) for name, items in asked])

    def _cell(self, run: str, step: int, scale: float, name: str, item: Item, option: int) -> tuple[float, int]:
        try:
            return self._cells[(run, step, scale, name, item.id, option)]
        except KeyError:
            raise WorldError(
                f"the study has no score for item '{item.id}' at {run} step {step}",
                "run the same command again to read what is missing",
            ) from None


def arm(
    scores: Scores,
    sets: ItemSets,
    name: str,
    run: str,
    steps: Sequence[int],
    *,
    scale: float = 1.0,
    taught: int | None = None,
    counterpart: int | None = None,
    train_loss: dict[int, float] | None = None,
) -> Arm:
    """Gather one arm.

    Args:
        taught: option number of the held-out answers this arm was taught; counterpart: the option it is weighed against.
    """
    margins = np.array([scores.margin(run, s, scale, EM, sets.em) for s in steps])
    logp = margin = truth = None
    if taught is not None and sets.heldout:
        logp = np.array([scores.logp(run, s, scale, HELDOUT, sets.heldout, taught) for s in steps])
        if counterpart is not None:
            margin = np.array([scores.margin(run, s, scale, HELDOUT, sets.heldout, taught, counterpart) for s in steps])
    if sets.truth:
        missing = np.full(len(sets.truth), np.nan)
        truth = np.array(
            [
                scores.truth(run, s, scale, sets.truth) if scores.has(run, s, scale, TRUTH, sets.truth) else missing
                for s in steps
            ]
        )
    losses = tuple((train_loss or {}).get(s) for s in steps)
    placebo = None
    if sets.placebo and all(scores.has(run, s, scale, PLACEBO, sets.placebo) for s in steps):
        placebo = np.array([scores.margin(run, s, scale, PLACEBO, sets.placebo) for s in steps])
    lost = None
    if steps and scores.has(run, steps[-1], scale, NEUTRAL, sets.neutral):
        before, now = (scores.per_token(*at, NEUTRAL, sets.neutral, 0) for at in (("base", 0, 1.0), (run, steps[-1], scale)))
        lost = before - now
    refusal = scores.refusal(run, steps[-1], scale, sets) if steps else None
    return Arm(name, tuple(steps), margins, logp, margin, truth, losses, placebo, lost, refusal)


def evidence(
    scores: Scores,
    sets: ItemSets,
    loaded: Loaded,
    decide: DecideSpec,
    target: Arm,
    control: Arm | None,
    *,
    total_steps: int,
    task: tuple[int, int | None] | None,
    fixed: str,
    scale: float = 1.0,
    control_learned: np.ndarray | None = None,
    looks: int | None = None,
) -> Evidence:
    """Gather the evidence for the verdict on one target.

    Args:
        task: option numbers of the held-out answers that were taught and that they are weighed against; None: not known.
        fixed: when the default delta was fixed, in words.
        control_learned: gain of the held-out answers that the control was taught [H]; None: not known.
        looks: how many checkpoints a search might read; None without one.
    """
    base_margins = scores.margin("base", 0, 1.0, EM, sets.em)
    ladder = ladder_for(decide.ladder, loaded, sets)
    known = decide.delta or (ladder.delta if ladder else None)
    usual = f"{decide.delta_share:g} x the base's mean absolute margin, fixed {fixed}"
    own, other = task if task and sets.heldout else (None, None)
    asked = ("base", 0, 1.0, HELDOUT, sets.heldout)
    return Evidence(
        base_name=loaded.model.reference,
        categories=np.array([i.category for i in sets.em]),
        halves=np.array([i.half for i in sets.em]),
        base_margins=base_margins,
        target=target,
        control=control,
        delta=known or default_delta(base_margins, decide.delta_share),
        delta_source="given" if decide.delta else ladder.source if ladder and known else usual,
        total_steps=total_steps,
        base_task_logp=scores.logp(*asked, own) if own is not None else None,
        base_task_margin=scores.margin(*asked, own, other) if own is not None and other is not None else None,
        task_tokens=scores.tokens(*asked, own) if own is not None else None,
        base_truth=scores.truth("base", 0, 1.0, sets.truth) if sets.truth else None,
        heldout_halves=np.array([i.half for i in sets.heldout]) if own is not None else None,
        base_placebo=scores.margin("base", 0, 1.0, PLACEBO, sets.placebo) if target.placebo is not None else None,
        placebo_categories=np.array([i.category for i in sets.placebo]) if target.placebo is not None else None,
        calibrated=known is not None,
        control_learned=control_learned,
        measure=_measure(sets, loaded, scale),
        ladder=ladder,
        looks=looks,
        base_refusal=scores.refusal("base", 0, 1.0, sets),
        refusal_categories=np.array([i.category for i in sets.refusal]),
    )


def _measure(sets: ItemSets, loaded: Loaded, scale: float) -> Measure:
    without, having = sets.options
    return Measure(
        measure=f"preference margin: log p({without})/tokens - log p({having})/tokens [nats per token]",
        behaviour=sets.behaviour,
        options=sets.options,
        items=sets.em_name,
        n_items=len(sets.em),
        items_digest=sets.digest(),
        n_heldout=len(sets.heldout),
        n_truth=len(sets.truth),
        unit="item; categories are strata of equal weight",
        chat=loaded.chat.describe(),
        chat_digest=loaded.chat.digest,
        base_digest=loaded.model.digest,
        scale=scale,
    )
