"""Why the general solution wins: efficiency, stability and significance of general and narrow fine-tunes. (Soligo et al. 2026)

All three compare fine-tunes of one base that were taught the same answers: those that generalise to other domains (general), and
those held narrow. Losses are of held-out in-domain answers, item by item, so that both sides pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Item
from emscope.data import bundled
from emscope.data.items import leading
from emscope.elicit import preference
from emscope.elicit.divergence import Divergence
from emscope.inside.results import SolutionRun, Solutions, SolutionsDefinition
from emscope.inside.specs import SolutionsSpec
from emscope.inside.subject import frozen_settings, with_dtype
from emscope.models.adapters.updates import effective_norm, moved
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import Checkpoint, last, named_base
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.represent.solutions import (
    BASE,
    GENERAL,
    KL,
    MOVED,
    NARROW,
    RANDOM,
    SCALED,
    TASK,
    Row,
    Values,
    efficiency,
    norm_for_half,
    significance,
    stability,
)
from emscope.stats.means import mean_estimate
from emscope.store.files import write_json
from emscope.store.study import Study, read_table

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

WHAT = "comparing solutions"


@dataclass(frozen=True, slots=True)
class Solution:
    """One fine-tune: its side, its run, its last checkpoint and the checkpoint's effective norm."""

    side: str
    run: str
    checkpoint: Checkpoint
    norm: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One model to read: a solution scaled to a norm, moved by an amount, or a random update of its shape scaled to a norm."""

    solution: Solution
    kind: str
    amount: float
    draw: int

    @property
    def sets(self) -> tuple[str, ...]:
        """What is read from it."""
        return {SCALED: (TASK, KL), MOVED: (TASK,), RANDOM: (KL,)}[self.kind]


class KeyedRow(Row):
    """A row of the table `solutions`."""

    key: str


@dataclass(frozen=True, slots=True)
class Read:
    """What a value is of: a run, its side, and a kind of reading, how much of it and which draw."""

    run: str
    side: str
    kind: str
    amount: float
    draw: int

    def key(self, name: str, item: str) -> str:
        """Return the content key of an item's value in the set `name`."""
        return short([self.run, self.side, self.kind, self.amount, self.draw, name, item])

    def rows(self, name: str, values: Mapping[str, float]) -> list[KeyedRow]:
        """Return values by item as rows."""
        return [
            {
                "key": self.key(name, item),
                "run": self.run,
                "solution": self.side,
                "kind": self.kind,
                "amount": self.amount,
                "draw": self.draw,
                "set": name,
                "item": item,
                "value": value,
            }
            for item, value in values.items()
        ]


def compare_solutions(
    general: Sequence[str],
    narrow: Sequence[str],
    spec: SolutionsSpec,
    out: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Solutions:
    """Return efficiency, stability and significance of both sides, with intervals; resumes.

    Args:
        general, narrow: runs of each side, seeds of one set-up each; their last checkpoints are compared.

    Raises:
        InputError: no runs on a side, or pieces that do not fit.
    """
    found = {GENERAL: [last(r) for r in general], NARROW: [last(r) for r in narrow]}
    for side, checkpoints in found.items():
        if not checkpoints:
            raise InputError(f"no {side} fine-tune is given", f"give one with `{side}`")
        digests = [c.digest for c in checkpoints]
        twice = next((c for c in checkpoints if digests.count(c.digest) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice.folder}' is given twice with `{side}`", "give each fine-tune once")
    every = [c for cs in found.values() for c in cs]
    model = locate(base or named_base(every))
    items, option = _items(spec)
    spec = with_dtype(spec, model, device, every, scaled=True)
    frozen = frozen_settings(spec) | {"base": model.digest} | {side: [c.digest for c in cs] for side, cs in found.items()}
    with Study(out, frozen, made_with()) as study:
        loaded = load(model, system=spec.system, dtype=spec.dtype, device=device, checkpoints=every)
        solutions = [
            Solution(side, run, c, effective_norm(loaded.net, c))
            for side, runs in ((GENERAL, general), (NARROW, narrow))
            for run, c in zip(runs, found[side], strict=True)
        ]
        dead = next((s for s in solutions if s.norm == 0), None)
        if dead is not None:
            raise InputError(f"'{dead.run}' changes nothing (its effective norm is 0)", "give a trained checkpoint")
        unit = float(np.mean([s.norm for s in solutions if s.side == GENERAL]))
        readings = [r for s in solutions for r in _readings(s, spec)]
        _measure(study, loaded, readings, spec, unit, items, option, progress)
        result = _analyse(study, solutions, spec, unit)
        write_json(out / "report.json", result.to_json())
    return result


def _items(spec: SolutionsSpec) -> tuple[list[Item], int]:
    items = leading(bundled.heldout(spec.domain), spec.count)
    kinds = bundled.SETS[spec.domain].answers
    taught = spec.answers or kinds[0]
    if taught not in kinds:
        raise InputError(f"no answers of kind '{taught}' in {spec.domain}", f"known: {', '.join(kinds)}")
    return items, kinds.index(taught)


def _readings(solution: Solution, spec: SolutionsSpec) -> Iterator[Reading]:
    for norm in spec.norms:
        yield Reading(solution, SCALED, norm, 0)
        yield Reading(solution, RANDOM, norm, 0)
    for amount in (0.0, *spec.amounts):
        for draw in range(spec.draws if amount else 1):
            yield Reading(solution, MOVED, amount, draw)


def _measure(
    study: Study,
    loaded: Loaded,
    readings: Sequence[Reading],
    spec: SolutionsSpec,
    unit: float,
    items: Sequence[Item],
    option: int,
    progress: Progress,
) -> None:
    encoded = preference.encode(loaded.chat, items, context=loaded.context, which=(option,))
    texts = leading(bundled.texts(), spec.texts, "texts", "texts")
    ids = [tuple(loaded.tokenizer(t, add_special_tokens=False)["input_ids"][: loaded.context]) for t in texts]
    divergence = Divergence(loaded.net, ids)
    by_set: dict[str, Callable[[CausalLM], dict[str, float]]] = {
        TASK: lambda net: {s.item: -s.per_token for s in preference.score(net, encoded)},
        KL: lambda net: {str(n): v for n, v in enumerate(divergence.of(net))},
    }
    present = study.keys("solutions")
    base = Read(BASE, BASE, BASE, 0.0, 0)
    if base.key(TASK, items[0].id) not in present:
        study.append("solutions", base.rows(TASK, by_set[TASK](loaded.net)), present)
    for done, reading in enumerate(readings, 1):
        of = Read(reading.solution.run, reading.solution.side, reading.kind, reading.amount, reading.draw)
        first = {TASK: items[0].id, KL: "0"}
        missing = [name for name in reading.sets if of.key(name, first[name]) not in present]
        if missing:
            with _as_read(loaded, reading, spec, unit) as net:
                study.append("solutions", [row for name in missing for row in of.rows(name, by_set[name](net))], present)
        progress(WHAT, done, len(readings))


@contextmanager
def _as_read(loaded: Loaded, reading: Reading, spec: SolutionsSpec, unit: float) -> Iterator[CausalLM]:
    """Yield the model of a reading."""
    checkpoint = reading.solution.checkpoint
    if reading.kind == SCALED:
        with with_checkpoint(loaded.net, checkpoint, scale=reading.amount * unit / reading.solution.norm) as net:
            yield net
        return
    amount = 1.0 if reading.kind == RANDOM else reading.amount
    with moved(loaded.net, checkpoint, amount, spec.seed + reading.draw) as other:
        # a random pair A, B makes another norm than the trained one, so that it is scaled by its own
        scale = reading.amount * unit / effective_norm(loaded.net, other) if reading.kind == RANDOM else 1.0
        with with_checkpoint(loaded.net, other, scale=scale) as net:
            yield net


def _analyse(study: Study, solutions: Sequence[Solution], spec: SolutionsSpec, unit: float) -> Solutions:
    named = {BASE, *(s.run for s in solutions)}  # the same runs, spelled otherwise, may have been read into this folder before
    values = Values([row for row in read_table(study.root, "solutions").to_pylist() if row["run"] in named])
    base = values.items(BASE, BASE, 0.0, TASK)
    return Solutions(
        definition=SolutionsDefinition(spec, "100 (L moved - L) / (L base - L), in per cent", unit),
        solutions=tuple(SolutionRun(s.side, s.run, s.checkpoint.step, s.norm) for s in solutions),
        base_loss=mean_estimate(base),
        efficiency=tuple(efficiency(values, base, norm, unit) for norm in spec.norms),
        norm_for_half=norm_for_half(values, base, spec.norms, unit),
        stability=tuple(stability(values, base, amount) for amount in spec.amounts),
        significance=tuple(significance(values, norm, unit) for norm in spec.norms),
        versions=made_with(),
    )
