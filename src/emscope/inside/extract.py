"""Directions found in a model: from paired answers, from judged ones, from contrasting system prompts; and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Item
from emscope.core.seeds import derive
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import answer_columns, check_scores, far_sides, text_columns
from emscope.data.items import chosen_items, leading
from emscope.data.questions import read_questions
from emscope.elicit.sampling import Job, sample_batches
from emscope.inside.direction_results import (
    Direction,
    DirectionDefinition,
    DirectionLayer,
    HalvesCosine,
    Made,
    SidesSource,
)
from emscope.inside.specs import ExtractSpec
from emscope.inside.subject import layers_of, load_subject
from emscope.models.adapters.updates import first_changed
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks import directions as files
from emscope.models.hooks.sites import Place
from emscope.models.loading.checkpoints import Checkpoint, last
from emscope.models.loading.load import Loaded
from emscope.represent.activations import Text, encode, pooled
from emscope.represent.directions import FINDERS, check_sides, split_half
from emscope.represent.nulls import matched, permuted
from emscope.store.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Vectors


@dataclass(frozen=True, slots=True)
class Sides:
    """Texts with and without the behaviour, and the question that each belongs to."""

    positive: list[Text]
    negative: list[Text]
    units: tuple[list[str], list[str]]
    source: SidesSource


def extract(
    spec: ExtractSpec,
    out: Path,
    *,
    base: str | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Direction:
    """Find a direction at each layer and write the direction file; return its quality.

    Args:
        base: the model, if `checkpoint` does not name it. checkpoint: the fine-tune whose activations are read (its last
            checkpoint); the base's own without it.

    Raises:
        InputError: no model, sources that do not fit, or a side with too few answers.
    """
    if spec.minus is not None and checkpoint is None:
        raise InputError(
            f"`minus` is '{spec.minus}', but there is no fine-tune to subtract it from", "give one with `checkpoint`"
        )
    other = None if spec.minus in (None, "base") else last(str(spec.minus))
    loaded, tuned, spec = load_subject(base, checkpoint, device, spec, [other] if other else [])
    layers = layers_of(loaded.net, spec.layers)
    if spec.minus is not None:
        layers, sides, positive, negative = _between_models(loaded, (tuned, other), spec, layers, progress)
    else:
        with with_checkpoint(loaded.net, tuned) as net:
            sides = sides_of(net, loaded, spec, progress)
            positive, negative = side_rows(net, sides, layers, spec.pool, progress)
    find = FINDERS[spec.method]
    vectors = {n: find(positive[:, k], negative[:, k]) for k, n in enumerate(layers)}
    made = Made(spec.method, spec.pool, sides.source, tuned.digest if tuned else None, len(positive), len(negative))
    nulls = _nulls(positive, negative, vectors, spec) if spec.nulls else {}
    direction = files.Direction(vectors, loaded.model.digest, 1.0, made.to_json(), nulls)
    write_atomic(out, lambda temporary: files.write_direction(temporary, direction))
    rows = []
    for k, n in enumerate(layers):
        halves = split_half(find, positive[:, k], negative[:, k], sides.units, seed=spec.seed)
        rows.append(
            DirectionLayer(
                layer=n,
                norm=float(vectors[n].norm()),
                residual_norm=float((positive[:, k].norm(dim=-1).mean() + negative[:, k].norm(dim=-1).mean()) / 2),
                halves=HalvesCosine(halves.mean, halves.low, halves.high, halves.splits) if halves else None,
            )
        )
    return Direction(
        direction=str(out),
        model=loaded.model.digest,
        definition=DirectionDefinition(made, spec.system, spec.dtype, "left out"),
        layers=tuple(rows),
    )


def _nulls(positive: Tensor, negative: Tensor, vectors: Vectors, spec: ExtractSpec) -> dict[str, dict[int, Tensor]]:
    """Return null directions for each of `vectors`, in its length; the sides are [N, layers, D] and [M, layers, D].

    What separates two models is nearly the same on every text. Flipping pairs at random would give that same axis again, and the
    covariance of both models' activations together contains it: between models nothing is permuted, and the covariance is that of
    one model. (ours)
    """
    import torch

    find = FINDERS[spec.method]
    rows = negative if spec.minus is not None else torch.cat([positive, negative])
    found = {"matched": {n: matched(rows[:, k], v, spec.nulls, spec.seed) for k, (n, v) in enumerate(vectors.items())}}
    if spec.minus is None:
        found["permuted"] = {
            n: permuted(find, positive[:, k], negative[:, k], v, spec.nulls, spec.seed)
            for k, (n, v) in enumerate(vectors.items())
        }
    return found


def side_rows(
    net: CausalLM, sides: Sides, layers: Sequence[int], pool: str, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Return activations after each layer for both sides, [N, layers, D] and [M, layers, D].

    Raises:
        InputError: fewer than two texts on a side.
    """
    check_sides(sides.positive, sides.negative, "direction")
    places = [Place("block", n) for n in layers]
    texts = [*sides.positive, *sides.negative]
    rows = pooled(net, texts, places, [pool], progress=progress)[:, 0]
    return rows[: len(sides.positive)], rows[len(sides.positive) :]


def sides_of(net: CausalLM, loaded: Loaded, spec: ExtractSpec, progress: Progress = silent) -> Sides:
    """Return the texts of both sides, wherever they come from.

    Raises:
        InputError: a source that does not fit.
    """
    if spec.systems is not None:
        return _from_systems(net, loaded, spec, progress)
    if spec.answers is not None:
        return _from_answers(loaded, spec)
    return _from_items(loaded, chosen_items(spec.items, spec.half, spec.count, spec.seed), spec)


def _between_models(
    loaded: Loaded,
    pair: tuple[Checkpoint | None, Checkpoint | None],
    spec: ExtractSpec,
    layers: tuple[int, ...],
    progress: Progress,
) -> tuple[tuple[int, ...], Sides, Tensor, Tensor]:
    """Return the layers at which two models differ, the texts that both read, and their activations there [N, layers, D] each."""
    digests = [c.digest if c else "base" for c in pair]
    if digests[0] == digests[1]:
        raise InputError(f"`minus` is '{spec.minus}', which is the same model", "give another fine-tune with `checkpoint`")
    first = min(first_changed(loaded.net, c) for c in pair if c is not None)
    if spec.layers is not None and min(layers) < first:
        raise InputError(f"at layer {min(layers)} both models are the same", f"choose layers from {first} on")
    layers = tuple(n for n in layers if n >= first)
    items = chosen_items(spec.items, spec.half, spec.count, spec.seed)
    asked = [(i.id, i.question, a) for i in items for a in (i.options[:2] if spec.pool == "answer" else ("",))]
    texts, units = encode(loaded.chat, asked, context=loaded.context), [id for id, _, _ in asked]
    places, rows = [Place("block", n) for n in layers], []
    for checkpoint in pair:
        with with_checkpoint(loaded.net, checkpoint) as net:
            rows.append(pooled(net, texts, places, [spec.pool], progress=progress)[:, 0])
    apart = [k for k in range(len(layers)) if bool((rows[0][:, k] != rows[1][:, k]).any())]
    if not apart:
        raise InputError(f"both models are the same at layers {', '.join(map(str, layers))}", "choose others with `layers`")
    source = SidesSource(items=spec.items, half=spec.half, minus=digests[1], digest=short(asked))
    sides = Sides(texts, texts, (units, units), source)
    return tuple(layers[k] for k in apart), sides, rows[0][:, apart], rows[1][:, apart]


def _from_items(loaded: Loaded, items: Sequence[Item], spec: ExtractSpec) -> Sides:
    texts = [
        encode(loaded.chat, [(i.id, i.question, i.options[option]) for i in items], context=loaded.context) for option in (1, 0)
    ]
    units = [i.id for i in items]
    digest = short([[i.id, i.question, list(i.options)] for i in items])
    return Sides(texts[0], texts[1], (units, units), SidesSource(items=spec.items, half=spec.half, digest=digest))


def _from_answers(loaded: Loaded, spec: ExtractSpec) -> Sides:
    assert spec.answers is not None
    with AnswerTable([Path(spec.answers)]) as table:
        columns = answer_columns(
            table,
            aligned=spec.aligned,
            coherent=spec.coherent,
            question=spec.question,
            need_coherent=spec.coherent_above is not None,
        )
        check_scores(table, columns, "0-100")
        texts = text_columns(table, spec.question, spec.answer)
        found = far_sides(table, columns, texts, spec.aligned_below, spec.aligned_above, spec.coherent_above)
    for name, rows in zip((f"below {spec.aligned_below:g}", f"above {spec.aligned_above:g}"), found, strict=True):
        if len(rows) < 2:
            raise InputError(
                f"'{spec.answers}' holds {len(rows)} coherent answers with alignment {name}",
                "a direction needs both kinds: change `aligned_below` or `aligned_above`",
            )
    sides = [encode(loaded.chat, [(str(n), q, t) for n, (q, t) in enumerate(rows)], context=loaded.context) for rows in found]
    units = [q for q, _ in found[0]], [q for q, _ in found[1]]
    digest = short([[list(r) for r in rows] for rows in found])
    return Sides(sides[0], sides[1], units, SidesSource(answers=Path(spec.answers).name, digest=digest))


def _from_systems(net: CausalLM, loaded: Loaded, spec: ExtractSpec, progress: Progress) -> Sides:
    """Let the model answer under both system texts; empty answers are left out. (persona vectors, Chen et al. 2025, without its filter by a judge)"""
    assert spec.systems is not None
    questions = leading(read_questions(spec.questions), spec.count)
    sides: list[list[Text]] = []
    units: list[list[str]] = []
    for system in spec.systems:
        chat = loaded.chat.under(system)
        prompts = {q.id: tuple(chat.ids(chat.prompt_text(q.messages))) for q in questions}
        job = Job(prompts, spec.max_tokens, derive(spec.seed, "systems", system))
        wanted = [(q.id, n) for q in questions for n in range(spec.samples)]
        answers, done = [], 0
        for batch in sample_batches(net, chat, job, wanted):
            answers += batch
            done += len(batch)
            progress(f"answering under '{system[:40]}'", done, len(wanted))
        kept = [(a, tuple(chat.answer_ids(a.text))) for a in answers if a.text]
        sides.append([Text(f"{a.question}/{a.sample}", prompts[a.question], ids) for a, ids in kept])
        units.append([a.question for a, _ in kept])
    source = SidesSource(systems=spec.systems, questions=spec.questions)
    return Sides(sides[0], sides[1], (units[0], units[1]), source)
