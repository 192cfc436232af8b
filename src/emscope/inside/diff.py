"""A base and its fine-tune side by side: predictions at every block and token, the spectrum of the update, scalars of rank-1 adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.digest import digest, short
from emscope.core.errors import WorldError
from emscope.core.estimate import Estimate
from emscope.core.fields import FLOAT32
from emscope.core.progress import Progress, silent
from emscope.core.records import Item
from emscope.data.items import chosen_items
from emscope.elicit import preference
from emscope.inside.results import (
    AdapterScalar,
    Diff,
    DiffDefinition,
    LayerDivergence,
    ModuleUpdate,
    PlaceDivergence,
    PositionDivergence,
    Scalars,
    TokenDivergence,
)
from emscope.inside.specs import DiffSpec
from emscope.inside.subject import load_subject
from emscope.models.adapters.updates import Change, changes, effective_rank
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.head import Lens
from emscope.models.hooks.interventions import held_scalar
from emscope.models.hooks.sites import Place, blocks, check_layers
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.made_with import made_with
from emscope.represent.activations import Text, encode, read_tokens
from emscope.represent.diffing import Compared, adapter_scalars, compare_streams, tell_apart
from emscope.stats.means import mean_estimate
from emscope.stats.shares import stratified_share
from emscope.store.arrays import array_file
from emscope.store.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM

FIRST, SHOWN, AROUND, KEPT_VALUES = 12, 60, 8, 16
HELD = 16  # each adapter that is held costs a pass over the items


def diff(
    checkpoint: str, spec: DiffSpec, out: Path, *, base: str | None = None, device: str = "auto", progress: Progress = silent
) -> Diff:
    """Return what a run's last checkpoint changes: the divergence of its predictions by block, place and token, and its update's spectrum.

    The base's states are kept in `out` and read from there when it is called again.

    Raises:
        InputError: no model, or parts that do not fit together.
    """
    loaded, tuned, spec = load_subject(base, checkpoint, device, spec)
    assert tuned is not None
    layers = _layers(loaded.net, spec.layers)
    items = chosen_items(spec.items, spec.half, spec.count, spec.seed)
    pairs = [(f"{i.id}/{k}", i.question, i.options[k]) for i in items for k in (0, 1)]
    texts = encode(loaded.chat, pairs, context=loaded.context)
    compared = _compare(loaded, tuned, texts, layers, out, progress)
    added = list(changes(loaded.net, tuned)) if _has_changes(tuned) else []
    result = Diff(
        definition=DiffDefinition(spec, "KL(base || fine-tune) of the next token through the logit lens"),
        run=checkpoint,
        step=tuned.step,
        model=loaded.model.digest,
        items=len(items),
        layers=tuple(_by_layer(compared, layers, items)),
        positions=tuple(_by_position(compared)),
        tokens=tuple(_by_token(loaded, compared, texts)),
        places=tuple(_largest(loaded, compared, texts)),
        update=tuple(map(_spectrum, added)),
        scalars=_scalars(loaded, tuned, added, texts, items, spec, progress),
        versions=made_with(),
    )
    write_json(out / "diff.json", result.to_json())
    return result


def _layers(net: CausalLM, layers: tuple[int, ...] | None) -> list[int]:
    """Return the blocks to read after, by default ten spread over the model, with the last one."""
    check_layers(net, layers, "layers")
    last = len(blocks(net)) - 1
    chosen = layers or tuple(round(n * last / 9) for n in range(10))
    return sorted({*chosen, last})


def _compare(
    loaded: Loaded, tuned: Checkpoint, texts: Sequence[Text], layers: Sequence[int], out: Path, progress: Progress
) -> list[Compared]:
    """Write the base's states to disk, then read the fine-tune's and compare text by text."""
    places = [Place("block", n) for n in layers]
    ends = np.cumsum([len(t) for t in texts])
    starts = ends - [len(t) for t in texts]
    about = {
        "format": "emscope.streams/1",
        "model": loaded.model.digest,
        "layers": ",".join(map(str, layers)),
        "texts": digest([[*t.prompt, -1, *t.answer] for t in texts]),
    }
    if loaded.dtype != FLOAT32:
        about["dtype"] = loaded.dtype
    width = int(loaded.net.config.get_text_config().hidden_size)
    path = out / "arrays" / f"{short(about)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[int, Compared] = {}
    with array_file(path, (int(ends[-1]), len(layers), width), about) as file:
        missing = [n for n in range(len(texts)) if not file.done[starts[n]]]

        def keep(which: Sequence[int], values: Tensor) -> None:  # [T, L, D]
            n = missing[which[0]]
            file.write(range(starts[n], ends[n]), values.numpy())

        if missing:
            read_tokens(loaded.net, [texts[n] for n in missing], places, keep, progress=progress, what="reading the base")
        before_lens = Lens(loaded.net, frozen=True)
        import torch

        with with_checkpoint(loaded.net, tuned) as net:
            after_lens = Lens(net)

            def compare(which: Sequence[int], values: Tensor) -> None:  # [T, L, D]
                n = which[0]
                rows = predicting(texts[n])
                before = torch.from_numpy(np.array(file.values[starts[n] : ends[n]]))[rows]
                ids = [*texts[n].prompt, *texts[n].answer][rows.start :]
                found[n] = compare_streams(before_lens, after_lens, before, values[rows], ids, net.device)
                if not torch.isfinite(found[n].kl).all():
                    raise WorldError(
                        f"'{tuned.folder}' gives predictions that are not numbers",
                        "its weights diverged, or exceed this dtype's range: try float32",
                    )

            read_tokens(net, texts, places, compare, progress=progress, what="reading the fine-tune")
    return [found[n] for n in range(len(texts))]


def predicting(text: Text) -> slice:
    """Return the places whose next token is one of the answer's."""
    return slice(len(text.prompt) - 1, len(text) - 1)


def _by_layer(compared: Sequence[Compared], layers: Sequence[int], items: Sequence[Item]) -> Iterator[LayerDivergence]:
    """Yield divergence and agreement at each block, the mean over an item's two answers being one reading."""
    strata = np.array([i.category for i in items])
    kl = np.array([c.kl.double().mean(1).numpy() for c in compared]).reshape(len(items), 2, len(layers)).mean(1)
    same = np.array([c.same.double().mean(1).numpy() for c in compared]).reshape(len(items), 2, len(layers)).mean(1)
    for n, layer in enumerate(layers):
        yield LayerDivergence(layer, mean_estimate(kl[:, n], strata), stratified_share(same[:, n], strata))


def _by_position(compared: Sequence[Compared]) -> Iterator[PositionDivergence]:
    """Yield the mean divergence at the first tokens of an answer."""
    for place in range(FIRST):
        values = np.array([float(c.kl[-1, place]) for c in compared if c.kl.shape[1] > place])
        if len(values) >= 2:
            yield PositionDivergence(place, mean_estimate(values))


def _by_token(loaded: Loaded, compared: Sequence[Compared], texts: Sequence[Text]) -> list[TokenDivergence]:
    """Return which tokens the divergence falls on: share of all of it, times seen and mean, by the token that was written there."""
    sums: dict[int, list[float]] = {}
    for text, c in zip(texts, compared, strict=True):
        for token, value in zip(text.answer, c.kl[-1].tolist(), strict=True):
            sums.setdefault(token, []).append(value)
    total = sum(map(sum, sums.values())) or 1.0
    order = sorted(sums, key=lambda t: sum(sums[t]), reverse=True)[:SHOWN]
    return [
        TokenDivergence(loaded.tokenizer.decode([t]), sum(sums[t]) / total, len(sums[t]), float(np.mean(sums[t])))
        for t in order
    ]


def _largest(loaded: Loaded, compared: Sequence[Compared], texts: Sequence[Text]) -> list[PlaceDivergence]:
    """Return the single places where both models differ most, with what stood before and what each would say."""
    every = [(float(v), n, t) for n, c in enumerate(compared) for t, v in enumerate(c.kl[-1].tolist())]
    found = []
    for value, n, t in sorted(every, reverse=True)[:SHOWN]:
        text, c = texts[n], compared[n]
        ids = [*text.prompt, *text.answer]
        at = len(text.prompt) + t
        decode = loaded.tokenizer.decode
        found.append(
            PlaceDivergence(
                text=text.id,
                place=t,
                after=decode(ids[max(0, at - AROUND) : at]),
                written=decode([ids[at]]),
                base_says=decode([int(c.tops[0, t])]),
                tuned_says=decode([int(c.tops[1, t])]),
                kl=value,
                gain=float(c.gain[t]),
            )
        )
    return found


def _has_changes(tuned: Checkpoint) -> bool:
    from emscope.models.loading.checkpoints import adapter_settings

    return tuned.kind != "adapter" or adapter_settings(tuned.folder)["peft_type"] in ("LORA", "BEFT")


def _spectrum(change: Change) -> ModuleUpdate:
    values = change.singular_values()
    return ModuleUpdate(
        module=change.name,
        layer=change.layer,
        norm=float(np.sqrt(max(change.inner(change), 0.0))),
        effective_rank=effective_rank(values),
        singular_values=tuple(values[:KEPT_VALUES]),
    )


def _held(
    net: CausalLM, loaded: Loaded, adapters: Sequence[Change], means: np.ndarray, items: Sequence[Item], progress: Progress
) -> list[Estimate]:
    """Return how the margin changes when each adapter's scalar in turn is held at its mean on aligned answers, `means` [adapters]. (scalar patching, convergent directions, Soligo et al. 2025)"""
    encoded = preference.encode(loaded.chat, items, context=loaded.context)
    strata = np.array([i.category for i in items])

    def margins() -> np.ndarray:
        found = {(s.item, s.option): s.per_token for s in preference.score(net, encoded)}
        return np.array([found[i.id, 0] - found[i.id, 1] for i in items])

    start, rows = margins(), []
    for n, adapter in enumerate(adapters):
        with held_scalar(net, adapter, float(means[n])):
            rows.append(mean_estimate(margins() - start, strata))
        progress("holding the adapters", n + 1, len(adapters))
    return rows


def _scalars(
    loaded: Loaded,
    tuned: Checkpoint,
    added: Sequence[Change],
    texts: Sequence[Text],
    items: Sequence[Item],
    spec: DiffSpec,
    progress: Progress,
) -> Scalars | None:
    """Return how well the scalars of rank-1 adapters separate misaligned from aligned answers; None where ranks are higher."""
    adapters = [c for c in added if c.right is not None and len(c.right) == 1]
    if not adapters or len(adapters) < len(added):
        return None
    with with_checkpoint(loaded.net, tuned) as net:
        values = adapter_scalars(
            net, adapters, texts, lambda done, total: progress("reading the adapters", done, total)
        ).numpy()
        labels = np.tile([0, 1], len(items))
        means = values[labels == 0].mean(0)
        held: Sequence[Estimate | None] = [None] * len(adapters)
        if len(adapters) <= HELD:
            held = _held(net, loaded, adapters, means, items, progress)
    told = tell_apart(values, labels, [i.id for i in items for _ in (0, 1)], spec.seed)
    rows = [
        AdapterScalar(
            module=a.name,
            weight=w,
            aligned=float(values[labels == 0, n].mean()),
            misaligned=float(values[labels == 1, n].mean()),
            held=held[n],
        )
        for n, (a, w) in enumerate(zip(adapters, told.weights, strict=True))
    ]
    return Scalars(told.auc, told.low, told.high, tuple(told.weights), tuple(rows))
