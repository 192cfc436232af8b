"""Prompt activations kept on disk: read once, resumable, and shared between a base and checkpoints that leave its lower blocks alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emscope.core.digest import digest, short
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Question
from emscope.models.applied import applied
from emscope.models.checkpoints import Checkpoint
from emscope.models.load import Loaded
from emscope.models.sites import Place
from emscope.models.updates import first_changed
from emscope.represent.activations import Text, read_pooled
from emscope.store.arrays import array_file


def prompt_texts(loaded: Loaded, questions: Sequence[Question]) -> list[Text]:
    """Return questions as prompts, up to where the answer would begin.

    Raises:
        InputError: a question longer than the context.
    """
    chat = loaded.chat
    texts = [Text(q.id, tuple(chat.ids(chat.prompt_text(q.messages)))) for q in questions]
    long = next((t for t in texts if len(t) > loaded.context), None)
    if long is not None:
        raise InputError(
            f"question '{long.id}' is {len(long)} tokens long and the model's context is {loaded.context}", "leave it out"
        )
    return texts


def prompt_activations(
    loaded: Loaded,
    checkpoint: Checkpoint | None,
    texts: Sequence[Text],
    layers: Sequence[int],
    pool: str,
    out: Path,
    *,
    progress: Progress = silent,
    what: str = "reading activations",
) -> np.ndarray:
    """Return activations [N, layers, D] behind blocks, of the base or of a checkpoint of it, from `out` where they are there.

    Behind the blocks below the first one that a checkpoint changes, its activations are the base's: they are taken from there, not computed
    again.

    Args:
        pool: `last` or `prompt`.

    Raises:
        InputError: a file of the same name that holds something else.
    """
    shared = [n for n in layers if checkpoint and n < first_changed(loaded.net, checkpoint)]
    own = [n for n in layers if n not in shared]
    parts = {}
    if shared:
        base = prompt_activations(loaded, None, texts, layers, pool, out, progress=progress, what=f"{what} of the base")
        parts = {n: base[:, list(layers).index(n)] for n in shared}
    if own:
        read = _kept(loaded, checkpoint, texts, own, pool, out, progress, what)
        parts |= {n: read[:, k] for k, n in enumerate(own)}
    return np.stack([parts[n] for n in layers], 1)


def _kept(
    loaded: Loaded,
    checkpoint: Checkpoint | None,
    texts: Sequence[Text],
    layers: Sequence[int],
    pool: str,
    out: Path,
    progress: Progress,
    what: str,
) -> np.ndarray:
    about = {
        "format": "emscope.activations/1",
        "model": loaded.model.digest,
        "pool": pool,
        "layers": json.dumps(list(layers)),
        "texts": digest([[t.id, list(t.prompt)] for t in texts]),
    }
    if checkpoint:
        about["checkpoint"] = checkpoint.digest
    width = int(loaded.net.config.get_text_config().hidden_size)
    path = out / "arrays" / f"{short(about)}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with array_file(path, (len(texts), len(layers), width), about) as file:
        missing = file.missing()

        def sink(which: Sequence[int], values: Any) -> None:
            file.write([missing[n] for n in which], values[:, 0].numpy())

        if missing:
            places = [Place("block", n) for n in layers]
            with applied(loaded.net, checkpoint) as net:
                read_pooled(net, [texts[n] for n in missing], places, [pool], sink, progress=progress, what=what)
        return np.array(file.values)
