"""How far readings in 16 bits are from float32, by a sample of items from two readings, read in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emscope.core.errors import EmscopeError
from emscope.core.estimate import Estimate
from emscope.core.plain import Result
from emscope.core.progress import Progress
from emscope.core.records import Item
from emscope.data.items import stratified
from emscope.elicit.preference import encode, encode_texts
from emscope.models.loading.load import HALVES, Loaded, load_net
from emscope.models.sizing import memory
from emscope.stats.means import stratified_mean
from emscope.store.study import Study
from emscope.study.reading.evidence import Scores
from emscope.study.reading.measuring import Questions, Reading, lacking, measure
from emscope.study.reading.sets import EM, ItemSets

SHARE = 0.05  # of the tokens of all readings may be read again
MOST, FEWEST = 64, 8  # items
LEAST = 2e-3  # nats per token: a difference below this is not worth mentioning
ROOM = 1.2  # of the weights: passes need memory too
AGAIN = "{} in float32"  # the name of a run that is read again


@dataclass(frozen=True, slots=True)
class Apart(Result):
    """The mean over items of a reading in 16 bits less the same in float32, with its standard error [nats per token]."""

    what: str
    value: float
    se: float

    @property
    def large(self) -> bool:
        """True where it is more than `LEAST` beyond chance."""
        return abs(self.value) > LEAST + 2 * self.se

    @property
    def reach(self) -> float:
        """How far rounding may have moved the mean over all items."""
        return abs(self.value) + 2 * self.se


@dataclass(frozen=True, slots=True)
class Precision(Result):
    """The effect of reading in low precision.

    Attributes:
        dtype: what was read in. items: how many were read in both; 0 where none were, and then `why` says so.
        share: tokens read again, as a share of those of all readings.
        apart: mean margins of the two readings, and the effect between them. large: one of these is above `LEAST` and chance.
        near: a bound of the effect is no farther from the threshold than that; None until it is known.
    """

    dtype: str
    items: int
    share: float
    why: str | None = None
    apart: tuple[Apart, ...] = ()
    large: bool = False
    near: bool | None = None

    def beside(self, effect: Estimate, delta: float) -> Precision:
        """Return the same, with whether rounding may have carried a bound of the effect across the threshold `delta`."""
        if not self.apart:
            return self
        bounds = [b for b in (effect.low, effect.high) if b is not None]
        return replace(self, near=any(abs(b - delta) <= self.apart[-1].reach for b in bounds))


def read_ends(readings: Sequence[Reading], target: str, control: str | None, scale: float = 1.0) -> tuple[Reading, Reading]:
    """Return the readings behind the last effect: the control's (else the base's) and the target's."""
    of = {(r.run, r.step): r for r in readings if r.checkpoint is None or r.scale == scale}
    base = next(r for r in readings if r.checkpoint is None)
    steps = [step for run, step in of if run == target]
    common = [step for step in steps if (control, step) in of]
    last = max(common or steps)
    return of.get((control or "", last), base), of[target, last]


def read_again(
    study: Study,
    loaded: Loaded,
    readings: Sequence[Reading],
    compared: tuple[Reading, Reading],
    asked: Questions,
    progress: Progress,
) -> Precision | None:
    """Read a sample of items in float32 too, within 5 % of all tokens; None where readings are in float32 already.

    Readings in the store are not repeated.

    Args:
        readings: all of the job, in 16 bits and in the store. compared: two of them, the reference and the target.
    """
    dtype = str(loaded.net.dtype).removeprefix("torch.")
    if dtype not in HALVES or getattr(loaded.net, "is_quantized", False):
        return None
    if loaded.model.held is not None:
        return Precision(dtype, 0, 0.0, "a model in memory is read as it is")
    total = sum(_cost(loaded, asked.sets, reading) for reading in readings)
    items = _sample(loaded, asked.sets.em, SHARE * total / len(compared))
    if len(items) < FEWEST:
        return Precision(dtype, 0, 0.0, f"{SHARE:.0%} of the tokens cover fewer than {FEWEST} items")
    again = [replace(r, run=AGAIN.format(r.run), wanted={EM: None}, questions=()) for r in compared]
    asked = replace(asked, sets=replace(asked.sets, em=items))
    if lacking(study, loaded, again, asked):
        if (why := _does_not_fit(loaded)) is not None:
            return Precision(dtype, 0, 0.0, why)
        try:
            wide = load_net(loaded.model.folder, dtype="float32", device=str(loaded.net.device))
            measure(study, replace(loaded, net=wide.eval().requires_grad_(False)), again, asked, progress)
        except EmscopeError as error:
            return Precision(dtype, 0, 0.0, f"reading in float32 failed: {error.fault}")
    apart = _apart(Scores(study.root, loaded.chat.digest), items, compared)
    share = len(compared) * _tokens(loaded, items) / total
    return Precision(dtype, len(items), share, None, apart, any(one.large for one in apart))


def _sample(loaded: Loaded, items: Sequence[Item], tokens: float) -> tuple[Item, ...]:
    """Return items, evenly from the categories, that together take at most this many tokens to read."""
    count = min(MOST, len(items), int(tokens / (_tokens(loaded, items) / len(items))))
    while count > 0:
        drawn = tuple(stratified(items, count, 0, cover=False))
        if _tokens(loaded, drawn) <= tokens:
            return drawn
        count -= 1
    return ()


def _apart(scores: Scores, items: Sequence[Item], compared: tuple[Reading, Reading]) -> tuple[Apart, ...]:
    """Return the differences of both mean margins, and of the effect."""
    strata = np.array([i.category for i in items])
    moved = {}
    for r in compared:
        low, wide = (scores.margin(run, r.step, r.scale, EM, items) for run in (r.run, AGAIN.format(r.run)))
        moved[f"margin of {r.run}" + f" at step {r.step}" * (r.step > 0)] = low - wide
    reference, target = moved.values()
    moved["effect"] = reference - target
    means = {what: stratified_mean(values, strata) for what, values in moved.items()}
    return tuple(Apart(what, mean.value, mean.se) for what, mean in means.items())


def _does_not_fit(loaded: Loaded) -> str | None:
    """Return why float32 weights cannot be loaded beside those in memory; None where they can."""
    device = str(loaded.net.device)
    wanted, free = memory.needed(Path(loaded.model.folder), "float32", device), memory.free_memory(device)
    if free is None or ROOM * wanted <= free:
        return None
    return f"float32 weights need {memory.in_gb(wanted)} more, but only {memory.in_gb(free)} are free"


def _cost(loaded: Loaded, sets: ItemSets, reading: Reading) -> int:
    return sum(_tokens(loaded, sets.of(name), which) for name, which in reading.wanted.items())


def _tokens(loaded: Loaded, items: Sequence[Item], which: tuple[int, ...] | None = None) -> int:
    """Return the tokens that reading some items takes."""
    asked = encode(loaded.chat, [i for i in items if i.question], context=loaded.context, which=which)
    texts = encode_texts(loaded.tokenizer, [i for i in items if not i.question], context=loaded.context)
    return sum(e.cost for e in (*asked, *texts))
