"""Prompt activations kept on disk: read once, resumable, and shared between a base and checkpoints that leave its lower blocks alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.digest import digest, short
from emscope.core.errors import InputError
from emscope.core.fields import FLOAT32
from emscope.core.progress import Progress, silent
from emscope.core.records import Question
from emscope.models.adapters.updates import first_changed
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.sites import Place
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded
from emscope.represent.activations import Text, read_pooled
from emscope.store.arrays import array_file

if TYPE_CHECKING:
    from torch import Tensor


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
            f"question '{long.id}' is {len(long)} tokens long, but the model's context is {loaded.context}", "leave it out"
        )
    return texts


@dataclass(frozen=True, slots=True)
class PromptActivations:
    """Activations after `layers` of a base and its checkpoints on the same prompts, in files under `out`.

    `pool` is `last` (the prompt's last token) or `prompt` (the mean over it).
    """

    loaded: Loaded
    texts: Sequence[Text]
    layers: Sequence[int]
    pool: str
    out: Path
    progress: Progress = silent

    def of(self, checkpoint: Checkpoint | None, what: str) -> np.ndarray:
        """Return activations [N, layers, D] of a checkpoint, None for the base, from the files where they are there.

        Below the first block that a checkpoint changes, its activations are the base's: they are taken from there, not
        computed again.

        Args:
            what: is read, for the progress.

        Raises:
            InputError: a file of the same name that holds something else.
        """
        first = first_changed(self.loaded.net, checkpoint) if checkpoint else 0
        own = [n for n in self.layers if n >= first]
        parts: dict[int, np.ndarray] = {}
        if len(own) < len(self.layers):
            parts = dict(zip(self.layers, np.moveaxis(self.of(None, f"{what}, the base"), 1, 0), strict=True))
        if not own:
            with with_checkpoint(self.loaded.net, checkpoint):
                pass  # nothing of it is read, so nothing else would show that it does not fit
        if own:
            parts |= zip(own, np.moveaxis(self._kept(checkpoint, own, what), 1, 0), strict=True)
        return np.stack([parts[n] for n in self.layers], 1)

    def _kept(self, checkpoint: Checkpoint | None, layers: Sequence[int], what: str) -> np.ndarray:
        about = {
            "format": "emscope.activations/1",
            "model": self.loaded.model.digest,
            "pool": self.pool,
            "layers": json.dumps(list(layers)),
            "texts": digest([[t.id, list(t.prompt)] for t in self.texts]),
        }
        if self.loaded.dtype != FLOAT32:
            about["dtype"] = self.loaded.dtype
        if checkpoint:
            about["checkpoint"] = checkpoint.digest
        width = int(self.loaded.net.config.get_text_config().hidden_size)
        path = self.out / "arrays" / f"{short(about)}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with array_file(path, (len(self.texts), len(layers), width), about) as file:
            missing = file.missing()

            def sink(which: Sequence[int], values: Tensor) -> None:  # [B, 1, L, D]
                file.write([missing[n] for n in which], values[:, 0].numpy())

            if missing:
                places, texts = [Place("block", n) for n in layers], [self.texts[n] for n in missing]
                with with_checkpoint(self.loaded.net, checkpoint) as net:
                    read_pooled(net, texts, places, [self.pool], sink, progress=self.progress, what=what)
            return np.array(file.values)
