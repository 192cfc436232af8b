"""The direction file: vectors in a model's residual stream, with their origin.

A safetensors file. Tensor `layer.<n>` [D], float32, is added after block n at every token, strength included. The
metadata say the format and its version, the digest of the model, where the vectors apply, and how they were made. Tensors
`null.<kind>.<n>` [K, D], if there are any, are null directions, for comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.plain import Json
from emscope.models.loading.checkpoints import ADAPTER, WEIGHTS, adapter_settings, check_tensors, last
from emscope.models.loading.checkpoints import DIRECTION as FILE

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Vector, Vectors

FORMAT, SITE = "emscope.direction/1", "block output"


@dataclass(frozen=True, slots=True)
class Direction:
    """Vectors by block number.

    Attributes:
        vectors: {block: [D]}, added to the output of that block.
        model: digest of the base that they were made on.
        scale: what the trained or extracted vectors were multiplied by to get `vectors`, for the record.
        about: how they were made, as plain values, for the record.
        nulls: {kind: {block: [K, D]}}, null directions of the same length.
    """

    vectors: dict[int, Vector]
    model: str
    scale: float = 1.0
    about: Mapping[str, Json] = field(default_factory=dict)
    nulls: Mapping[str, Vectors] = field(default_factory=dict)

    def digest(self) -> str:
        """Return a digest of the vectors."""
        return short([[n, v.tolist()] for n, v in sorted(self.vectors.items())])


def write_direction(path: Path, direction: Direction) -> None:
    """Write a direction file."""
    import torch
    from safetensors.torch import save_file

    named = {f"layer.{n}": v for n, v in sorted(direction.vectors.items())}
    named |= {f"null.{kind}.{n}": v for kind, by_layer in direction.nulls.items() for n, v in sorted(by_layer.items())}
    tensors = {name: v.detach().to("cpu", torch.float32).contiguous() for name, v in named.items()}
    known = {"format": FORMAT, "model": direction.model, "site": SITE, "scale": repr(float(direction.scale))}
    if direction.about:
        known["about"] = json.dumps(dict(direction.about), sort_keys=True)
    save_file(tensors, str(path), known)


def read_direction(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        InputError: missing, damaged, or not a direction file of this format.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"no file '{path}'", f"give a direction file ({FILE})")
    check_tensors(path)
    with safe_open(str(path), framework="pt") as file:
        about = file.metadata() or {}
        if about.get("format") != FORMAT or about.get("site") != SITE:
            raise InputError(
                f"'{path}' is not a direction file ({about.get('format', 'no format named')}, site {about.get('site', 'not named')})",
                f"give a file of format {FORMAT}, site {SITE}",
            )
        try:
            vectors: dict[int, Vector] = {}
            nulls: dict[str, dict[int, Vector]] = {}
            for name in file.keys():  # noqa: SIM118
                kind, layer = name.removeprefix("null.").rsplit(".", 1)
                (nulls.setdefault(kind, {}) if name.startswith("null.") else vectors)[int(layer)] = file.get_tensor(name)
            made = json.loads(about.get("about", "{}"))
            return Direction(dict(sorted(vectors.items())), about["model"], float(about["scale"]), made, nulls)
        except (KeyError, ValueError) as error:
            raise InputError(f"'{path}' is a damaged direction file ({error})", "make it again") from None


def direction_at(reference: str) -> Direction:
    """Return the vectors of a direction file, or of the last checkpoint of a trained steering vector in a folder.

    Raises:
        InputError: neither is there.
    """
    path = Path(reference).expanduser()
    if not path.is_dir():
        return read_direction(path)
    folder = last(reference).folder
    if (folder / FILE).is_file():
        return read_direction(folder / FILE)
    if not (folder / ADAPTER).is_file() or adapter_settings(folder)["peft_type"] != "BEFT":
        raise InputError(f"'{folder}' holds no steering vector", f"give a run that trained one, or a direction file ({FILE})")
    from safetensors.torch import load_file

    # PEFT's name of a bias after a block's MLP: base_model.model.<blocks>.<n>.mlp.down_proj.beft_bias
    tensors = load_file(str(folder / WEIGHTS))
    vectors = {int(re.findall(r"\.(\d+)\.", name)[-1]): v.flatten().float() for name, v in tensors.items()}
    return Direction(dict(sorted(vectors.items())), "not recorded")


def check_direction(net: CausalLM, direction: Direction, path: Path | str) -> None:
    """Reject a direction whose shape does not fit the model.

    Raises:
        InputError: naming both sides.
    """
    config = net.config.get_text_config()
    wrong = [n for n in direction.vectors if n >= config.num_hidden_layers]
    if wrong:
        raise InputError(
            f"'{path}' has a vector for layer {wrong[0]}, but this model has layers 0 to {config.num_hidden_layers - 1}",
            "give a direction made on this model",
        )
    sizes = {tuple(v.shape) for v in direction.vectors.values()} - {(config.hidden_size,)}
    if sizes:
        raise InputError(
            f"'{path}' has vectors of shape {next(iter(sizes))}, but this model's residual stream is {config.hidden_size} wide",
            "give a direction made on this model",
        )
