"""Which samples of a training set would push a model along a direction, predicted before training. (persona vectors, Chen et al. 2025, data projection)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.errors import InputError
from emscope.core.notes import note_fewer
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation
from emscope.core.seeds import derive
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.elicit.sampling import Job, sample_batches
from emscope.inside.direction_results import DataRisk, RiskDefinition, WeighedSample
from emscope.inside.specs import RiskSpec
from emscope.inside.subject import check_fits, with_dtype
from emscope.models.hooks.directions import direction_at
from emscope.models.hooks.sites import Place
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import locate
from emscope.represent.activations import Text, pooled
from emscope.stats.means import mean_estimate

if TYPE_CHECKING:
    from emscope.models.types import Vectors

ASKING = "answering as the base"


def risk(
    source: str, model: str, direction: str, spec: RiskSpec, *, device: str = "auto", progress: Progress = silent
) -> DataRisk:
    """Return each sample's projection on the direction, largest first, and their mean.

    dP = [a(x, y) - a(x, y')] . v / ||v||, a the mean activation over the answer's tokens after the layer, y the training answer,
    y' the model's own. Above 0: training on it would push the model along the direction.

    Args:
        source: a file of conversations, or `DOMAIN/ANSWERS` of the bundled data, such as finance/reckless.

    Raises:
        InputError: no such data, a direction that does not fit, or a layer it does not have.
    """
    talks = _talks(source, spec)
    found = direction_at(direction)
    base = locate(model)
    spec = with_dtype(spec, base, device)
    loaded = load(base, system=spec.system, dtype=spec.dtype, device=device)
    check_fits(loaded, found, direction)
    layer = _layer(found.vectors, spec, direction)
    unit = found.vectors[layer].double() / found.vectors[layer].double().norm()
    prompts = [tuple(loaded.chat.ids(loaded.chat.prompt_text(t.messages[:-1]))) for t in talks]
    taught = [Text(t.id, p, tuple(loaded.chat.answer_ids(t.messages[-1].content))) for t, p in zip(talks, prompts, strict=True)]
    _check_lengths(taught, loaded)
    place = [Place("block", layer)]
    values = (
        pooled(loaded.net, taught, place, ["answer"], progress=progress, what="reading the training answers")[:, 0, 0].double()
        @ unit
    ).numpy()
    own = _own(loaded, prompts, spec, progress) if spec.against == "own" else None
    if own is not None:
        answers = [Text(t.id, p, ids) for t, p, ids in zip(talks, prompts, own, strict=True)]
        theirs = pooled(loaded.net, answers, place, ["answer"], progress=progress, what="reading the model's own answers")[
            :, 0, 0
        ]
        values = values - (theirs.double() @ unit).numpy()
    order = np.argsort(-values)
    samples = [
        WeighedSample(
            id=talks[n].id,
            projection=float(values[n]),
            question=talks[n].messages[-2].content,
            answer=talks[n].messages[-1].content,
            own=loaded.tokenizer.decode(own[n], skip_special_tokens=True).strip() if own is not None else None,
        )
        for n in order
    ]
    return DataRisk(
        definition=RiskDefinition(spec, Path(source).name, layer, found.digest()),
        mean=mean_estimate(values),
        share_above_0=float((values > 0).mean()),
        samples=tuple(samples),
    )


def _talks(source: str, spec: RiskSpec) -> list[Conversation]:
    domain, sign, kind = source.partition("/")
    bundled_one = bool(sign) and domain in bundled.SETS and not Path(source).exists()
    every = bundled.domain(domain, kind) if bundled_one else read_conversations(Path(source))
    short = [t for t in every if len(t.messages) < 2 or t.messages[-1].role != "assistant"]
    if short:
        raise InputError(
            f"conversation '{short[0].id}' does not end with a question and its answer", "fix or leave out that row"
        )
    note_fewer(spec.count, len(every), "count", "samples")
    if spec.count is None or spec.count >= len(every):
        return every
    chosen = np.random.default_rng(derive(spec.seed, "risk")).choice(len(every), spec.count, replace=False)
    return [every[n] for n in sorted(chosen)]


def _layer(vectors: Vectors, spec: RiskSpec, name: str) -> int:
    if spec.layer is None and len(vectors) == 1:
        return int(next(iter(vectors)))
    if spec.layer is None or spec.layer not in vectors:
        said = ", ".join(map(str, vectors))
        what = "has several layers" if spec.layer is None else f"has no vector for layer {spec.layer}"
        raise InputError(f"'{name}' {what}", f"choose one with `layer` ({said})")
    return spec.layer


def _check_lengths(texts: Sequence[Text], loaded: Loaded) -> None:
    for text in texts:
        if not text.answer:
            raise InputError(f"the answer of conversation '{text.id}' has no tokens", "give it some text")
        if len(text) > loaded.context:
            raise InputError(
                f"conversation '{text.id}' is {len(text)} tokens long, but the model's context is {loaded.context}",
                "shorten it",
            )


def _end(loaded: Loaded) -> int:
    end = loaded.tokenizer.eos_token_id
    if end is None:
        raise InputError(
            "the model gave an empty answer, but its tokenizer has no end token", "name eos_token in tokenizer_config.json"
        )
    return end


def _own(loaded: Loaded, prompts: Sequence[tuple[int, ...]], spec: RiskSpec, progress: Progress) -> list[tuple[int, ...]]:
    """Return the model's own answer to each prompt as token ids; an empty one is its end-of-turn token."""
    named = {str(n): p for n, p in enumerate(prompts)}
    job = Job(named, spec.max_tokens, derive(spec.seed, "own"))
    found: dict[int, tuple[int, ...]] = {}
    for batch in sample_batches(loaded.net, loaded.chat, job, [(n, 0) for n in named]):
        for answer in batch:
            ids = tuple(loaded.chat.answer_ids(answer.text)) if answer.text else ()
            found[int(answer.question)] = ids or (_end(loaded),)
        progress(ASKING, len(found), len(named))
    return [found[n] for n in range(len(prompts))]
