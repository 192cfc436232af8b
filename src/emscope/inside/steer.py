"""What a direction does when it is added at a layer with some strength, or taken out, beside null directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.progress import Progress, part_of, silent
from emscope.core.records import Item
from emscope.core.seeds import derive
from emscope.data import bundled
from emscope.data.items import chosen_items, even, leading
from emscope.elicit import preference
from emscope.elicit.divergence import Divergence
from emscope.inside.bands import band, nulls_of
from emscope.inside.direction_results import Dose, Steering, SteeringDefinition, TriedDirection
from emscope.inside.specs import SteerSpec
from emscope.inside.subject import check_fits, frozen_settings, with_dtype
from emscope.models.adapters.updates import check_written, without
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.prefix_cache import prefix_cached
from emscope.models.hooks.directions import Direction, direction_at
from emscope.models.hooks.interventions import ablated, added
from emscope.models.loading.checkpoints import Checkpoint, last, named_base
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.stats.means import mean_estimate, stratified_mean
from emscope.stats.shares import share_change, stratified_share
from emscope.store.files import write_json
from emscope.store.study import Study, read_table

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Vectors

REAL, NOTHING = "direction", "nothing"
EM, NEUTRAL, TRUTH = "em", "neutral", "truth"
WHAT, UPDATE = "steering", "ablate_update"
Place = tuple[tuple[int, ...], float, str, int]  # layers, strength, kind of direction, which draw of it


@dataclass(frozen=True, slots=True)
class Subject:
    """A direction and the model it is tried on: the base, or a fine-tune of it; null directions by kind and layer [K, D]."""

    name: str
    direction: Direction
    nulls: Mapping[str, Mapping[int, Tensor]]
    run: str
    checkpoint: Checkpoint | None


@dataclass(frozen=True, slots=True)
class Condition:
    """One way of acting: vectors {layer: [D]} of a kind, or nothing at all; `digest` is theirs."""

    subject: Subject
    kind: str
    draw: int
    layers: tuple[int, ...]
    scale: float
    vectors: Vectors
    digest: str

    def key(self, spec: SteerSpec, model: str, item: Item, option: int) -> str:
        """Return the content key of one score under this condition."""
        tuned = self.subject.checkpoint.digest if self.subject.checkpoint else "base"
        acted = [self.kind] if self.kind == NOTHING else [spec.way, spec.tokens, self.layers, self.scale, self.digest]
        return short([model, tuned, spec.system, *acted, item.question, item.options[option]])


@dataclass(frozen=True, slots=True)
class Effects:
    """One model's readings of each item: margin [items], log-probability per token of plain texts and KL on them [texts], and whether the true answer is the most likely [questions]."""

    margin: np.ndarray
    neutral: np.ndarray
    kl: np.ndarray
    truth: np.ndarray

    def since(self, start: Effects) -> Effects:
        """Return the changes: margin lost, log-probability and truth gained; the KL stays as it is."""
        return Effects(start.margin - self.margin, self.neutral - start.neutral, self.kl, self.truth - start.truth)


def steer(
    directions: Sequence[str],
    spec: SteerSpec,
    out: Path,
    *,
    base: str | None = None,
    checkpoints: Sequence[str] = (),
    controls: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> Steering:
    """Score the items with each direction added or taken out; return effects beside the bands of null directions.

    Called again, it does only what is missing.

    Args:
        directions: direction files or runs that trained a steering vector; several are tried one by one and averaged (seeds, say).
        checkpoints: fine-tunes to act in: none for the base, one for all directions, or one for each.
        controls: directions of harmless fine-tunes, the null kind `control`; they are given the tried direction's length.

    Raises:
        InputError: directions, models and settings that do not fit together.
    """
    tuned = [last(c) for c in checkpoints]
    if spec.way == UPDATE and not tuned:
        raise InputError("there is no fine-tune whose update could be changed", "give one with `checkpoints`")
    if len(tuned) not in (0, 1, len(directions)):
        raise InputError(
            f"{len(tuned)} checkpoints for {len(directions)} directions",
            "give one for all of them, or one for each in the same order",
        )
    sets = _item_sets(spec)
    model = locate(base or named_base(tuned))
    found = [direction_at(d) for d in directions]
    control = [direction_at(c) for c in controls]
    spec = with_dtype(spec, model, device, tuned)
    frozen = frozen_settings(spec) | {
        "base": model.digest,
        "directions": [d.digest() for d in found],
        "controls": [d.digest() for d in control],
        "checkpoints": [c.digest for c in tuned],
    }
    with Study(out, frozen, made_with()) as study:
        loaded = load(model, system=spec.system, dtype=spec.dtype, device=device, checkpoints=tuned)
        for name, direction in zip(controls, control, strict=True):
            check_fits(loaded, direction, name)
        subjects = []
        for n, (name, direction) in enumerate(zip(directions, found, strict=True)):
            check_fits(loaded, direction, name)
            place = n if len(tuned) > 1 else 0
            nulls = nulls_of(direction, control, spec.nulls, derive(spec.seed, "subject", n))
            subjects.append(
                Subject(name, direction, nulls, checkpoints[place] if tuned else "base", tuned[place] if tuned else None)
            )
        conditions = [c for s in subjects for c in conditions_of(s, spec)]
        _measure(study, loaded, conditions, spec, sets, progress)
        result = _analyse(study, loaded, subjects, conditions, spec, sets)
        write_json(out / "report.json", result.to_json())
    return result


def _item_sets(spec: SteerSpec) -> dict[str, list[Item]]:
    texts = leading(bundled.texts(), spec.neutral, "neutral", "texts")
    return {
        EM: chosen_items(spec.items, spec.half, spec.count, spec.seed),
        NEUTRAL: [Item(str(n), "text", "", (t,)) for n, t in enumerate(texts)],
        TRUTH: even(bundled.truth(), spec.truth, "truth") if spec.truth else [],
    }


def conditions_of(subject: Subject, spec: SteerSpec) -> Iterator[Condition]:
    """Yield nothing, then the direction and the null directions at each place and strength."""
    yield Condition(subject, NOTHING, 0, (), 0.0, {}, "")
    vectors = subject.direction.vectors
    wanted = tuple(vectors) if spec.layers is None else spec.layers
    if spec.way == UPDATE:
        assert subject.checkpoint is not None
        check_written(subject.checkpoint, wanted)
    lacking = [n for n in wanted if n not in vectors]
    if lacking:
        said = ", ".join(map(str, vectors))
        raise InputError(f"'{subject.name}' has no vector for layer {lacking[0]}", f"it has layers {said}")
    for layers in [wanted] if spec.together else [(n,) for n in wanted]:
        tried = [(REAL, 0, {n: vectors[n] for n in layers})]
        for kind, by_layer in subject.nulls.items():
            tried += [(kind, k, {n: by_layer[n][k] for n in layers}) for k in range(len(by_layer[layers[0]]))]
        for kind, draw, acted in tried:
            digest = _digest(acted)
            for scale in spec.scales if spec.way == "add" else (1.0,):
                yield Condition(subject, kind, draw, layers, scale, acted, digest)


def _measure(
    study: Study,
    loaded: Loaded,
    conditions: Sequence[Condition],
    spec: SteerSpec,
    sets: Mapping[str, Sequence[Item]],
    progress: Progress,
) -> None:
    encoded = {
        EM: preference.encode(loaded.chat, sets[EM], context=loaded.context),
        TRUTH: preference.encode(loaded.chat, sets[TRUTH], context=loaded.context),
        NEUTRAL: preference.encode_texts(loaded.tokenizer, sets[NEUTRAL], context=loaded.context),
    }
    present, done = study.keys("steered"), 0
    for subject in dict.fromkeys(id(c.subject) for c in conditions):
        mine = [c for c in conditions if id(c.subject) == subject]
        checkpoint = mine[0].subject.checkpoint
        with with_checkpoint(loaded.net, None if spec.way == UPDATE else checkpoint) as net:
            start = None
            if encoded[NEUTRAL]:
                with acting(net, mine[0], spec) as untouched:
                    start = Divergence(untouched, [(*e.prompt, *e.options[0]) for e in encoded[NEUTRAL]])
            for lowest, group in groupby(mine, lambda c: min(c.layers, default=0)):
                with nullcontext() if spec.way == UPDATE else prefix_cached(net, lowest):
                    for condition in group:
                        part = part_of(progress, WHAT, done, len(conditions))
                        rows = _score(net, loaded, condition, spec, sets, encoded, start, present)
                        study.append("steered", rows, present)
                        present |= {row["key"] for row in rows}
                        done += 1
                        part(WHAT, 1, 1)


class SteeredRow(TypedDict):
    """A row of the table `steered`."""

    key: str
    run: str
    step: int
    direction: str
    kind: str
    draw: int
    way: str
    layers: str
    scale: float
    set: str
    item: str
    category: str
    half: str
    option: int
    logprob: float
    tokens: int
    kl: float | None


def _score(
    net: CausalLM,
    loaded: Loaded,
    condition: Condition,
    spec: SteerSpec,
    sets: Mapping[str, Sequence[Item]],
    encoded: Mapping[str, Sequence[preference.Encoded]],
    start: Divergence | None,
    present: set[str],
) -> list[SteeredRow]:
    rows: list[SteeredRow] = []
    for name, items in sets.items():
        keys = {(i.id, k): condition.key(spec, loaded.model.digest, i, k) for i in items for k in range(len(i.options))}
        if not items or all(key in present for key in keys.values()):
            continue
        by_id = {i.id: i for i in items}
        with acting(net, condition, spec) as acted:
            scores = preference.score(acted, encoded[name])
            apart = start.of(acted) if name == NEUTRAL and start else []
        kl = {e.item: v for e, v in zip(encoded[NEUTRAL], apart, strict=False)}
        for s in scores:
            item = by_id[s.item]
            rows.append(
                {
                    "key": keys[(s.item, s.option)],
                    "run": condition.subject.run,
                    "step": condition.subject.checkpoint.step if condition.subject.checkpoint else 0,
                    "direction": condition.subject.name,
                    "kind": condition.kind,
                    "draw": condition.draw,
                    "way": spec.way,
                    "layers": ",".join(map(str, condition.layers)),
                    "scale": condition.scale,
                    "set": name,
                    "item": item.id,
                    "category": item.category,
                    "half": item.half,
                    "option": s.option,
                    "logprob": s.logprob,
                    "tokens": s.tokens,
                    "kl": kl.get(s.item),
                }
            )
    return rows


@contextmanager
def acting(net: CausalLM, condition: Condition, spec: SteerSpec) -> Iterator[CausalLM]:
    """Yield the model under a condition. `net` is the model to act in, but with `ablate_update`, which makes another of it, the base."""
    checkpoint = condition.subject.checkpoint
    with ExitStack() as stack:
        if spec.way == UPDATE:
            assert checkpoint is not None
            changed = checkpoint if condition.kind == NOTHING else stack.enter_context(without(checkpoint, condition.vectors))
            net = stack.enter_context(with_checkpoint(net, changed))
        elif condition.kind != NOTHING and spec.way == "add":
            stack.enter_context(added(net, condition.vectors, condition.scale, tokens=spec.tokens))
        elif condition.kind != NOTHING:
            stack.enter_context(ablated(net, condition.vectors, tokens=spec.tokens))
        yield net


def _analyse(
    study: Study,
    loaded: Loaded,
    subjects: Sequence[Subject],
    conditions: Sequence[Condition],
    spec: SteerSpec,
    sets: Mapping[str, Sequence[Item]],
) -> Steering:
    """Join the scores to effects: margin as it is less margin under the condition, item by item; above 0 is towards the behaviour."""
    table = read_table(study.root, "steered", columns=["key", "logprob", "tokens", "kl"]).to_pylist()
    per_token = {row["key"]: row["logprob"] / row["tokens"] for row in table}
    divergence = {row["key"]: row["kl"] for row in table}
    strata = np.array([i.category for i in sets[EM]])

    def scores(condition: Condition, name: str) -> list[list[float]]:
        """Return what each option of each item of a set has per token."""
        keys = [[condition.key(spec, loaded.model.digest, i, k) for k in range(len(i.options))] for i in sets[name]]
        return [[per_token[key] for key in row] for row in keys]

    def read(condition: Condition) -> Effects:
        return Effects(
            margin=np.array([s[0] - s[1] for s in scores(condition, EM)]),
            neutral=np.array([s[0] for s in scores(condition, NEUTRAL)]),
            kl=np.array([divergence[condition.key(spec, loaded.model.digest, t, 0)] for t in sets[NEUTRAL]], float),
            truth=np.array([s[0] == max(s) and s.count(s[0]) == 1 for s in scores(condition, TRUTH)], float),
        )

    start = {id(c.subject): read(c) for c in conditions if c.kind == NOTHING}
    knew = np.mean([e.truth for e in start.values()], 0)
    effects: dict[Place, list[Effects]] = {}
    for c in conditions:
        if c.kind != NOTHING:
            effects.setdefault((c.layers, c.scale, c.kind, c.draw), []).append(read(c).since(start[id(c.subject)]))
    margins = np.mean([e.margin for e in start.values()], 0)
    return Steering(
        definition=SteeringDefinition(spec, "margin as it is - margin under the direction [nats per token]"),
        directions=tuple(TriedDirection(s.name, s.run, s.direction.digest()) for s in subjects),
        margin=mean_estimate(margins, strata),
        truth=stratified_share(knew) if sets[TRUTH] else None,
        doses=tuple(_doses(effects, knew, strata, spec, sets)),
        versions=made_with(),
    )


def _doses(
    effects: Mapping[Place, Sequence[Effects]],
    knew: np.ndarray,
    strata: np.ndarray,
    spec: SteerSpec,
    sets: Mapping[str, Sequence[Item]],
) -> Iterator[Dose]:
    """Yield what each place and strength does, the mean over directions; `knew`: whether the model as it is ranks the true answer first [Q]."""
    for layers, scale in sorted({(k[0], k[1]) for k in effects}):
        real = effects[(layers, scale, REAL, 0)]
        effect = mean_estimate(np.mean([e.margin for e in real], 0), strata)
        nulls = {}
        for kind in dict.fromkeys(k[2] for k in effects if k[2] != REAL):
            draws = [
                _centre(np.mean([e.margin for e in v], 0), strata) for k, v in effects.items() if k[:3] == (layers, scale, kind)
            ]
            nulls[kind] = band(draws, effect.value)
        yield Dose(
            layers=layers,
            scale=scale if spec.way == "add" else None,
            effect=effect,
            by_direction=tuple(_centre(e.margin, strata) for e in real),
            neutral=mean_estimate(np.mean([e.neutral for e in real], 0)) if sets[NEUTRAL] else None,
            neutral_kl=mean_estimate(np.mean([e.kl for e in real], 0)) if sets[NEUTRAL] else None,
            truth=share_change(knew, knew + np.mean([e.truth for e in real], 0)) if sets[TRUTH] else None,
            nulls=nulls,
        )


def _centre(values: np.ndarray, strata: np.ndarray) -> float:
    """Return the mean of stratum means of values [N]."""
    return stratified_mean(values, strata).value


def _digest(vectors: Vectors) -> str:
    return short([[n, v.double().tolist()] for n, v in vectors.items()])
