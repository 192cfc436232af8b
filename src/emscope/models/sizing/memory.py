"""How many bytes a model's weights take, what is free, and an error before loading anything that surely does not fit.

Weights are counted from a configuration alone, on a model without storage. What work needs besides is in `models.needs`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, WorldError
from emscope.core.plain import Result
from emscope.models.loading.checkpoints import tensor_shapes
from emscope.models.loading.load import DTYPES, HALVES, QUANTISED, pick_device, pick_dtype
from emscope.models.loading.sharded import weight_files
from emscope.models.loading.source import Model
from emscope.models.sizing.cgroups import free_in_cgroups

if TYPE_CHECKING:
    from emscope.models.types import Config

GB = 1e9
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
NF4 = 0.5 + 4 / 64  # half a byte a weight, and a float32 scale for each 64
FULL = 0.95  # of free memory: more surely does not fit


@dataclass(frozen=True, slots=True)
class Counted(Result):
    """How many weights a model has.

    Attributes:
        parameters: all of them, tied ones counted once.
        embedding, head: of the token matrices; head is 0 where it is tied to the embedding.
        blocks: in the transformer blocks. other: the rest (last norm, towers for images).
        linear: in matrices that 4-bit loading compresses. largest: of the largest of these.
        depth: number of blocks. width: of the residual stream. vocabulary: rows of the embedding.
    """

    parameters: int
    embedding: int
    head: int
    blocks: int
    other: int
    linear: int
    largest: int
    depth: int
    width: int
    vocabulary: int

    def bytes_in(self, dtype: str, *, on_cpu: bool = True) -> int:
        """Return the bytes of the weights.

        Args:
            dtype: one of `BYTES` or `nf4`.
            on_cpu: there 4-bit loading keeps what it leaves alone in float32, on a GPU in bfloat16.
        """
        if dtype != QUANTISED:
            return self.parameters * BYTES[dtype]
        return round(self.linear * NF4) + (self.parameters - self.linear) * BYTES[compute_dtype(dtype, on_cpu=on_cpu)]


def read_config(folder: Path) -> Config:
    """Return a model's configuration, running no code of its own.

    Raises:
        InputError: no config.json, an invalid one, or an architecture that transformers does not have.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' has no config.json", "give a model folder in Hugging Face layout")
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # strict configurations raise their own errors
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"'{folder}/config.json' is not a configuration that transformers knows ({first[:200]})",
            "fix it, or update transformers if the architecture is newer",
        ) from None


def counted(config: Config) -> Counted:
    """Return how many weights a model of this configuration has."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from emscope.models.hooks.sites import blocks
    from emscope.models.sizing.simulated import whole_model

    with torch.device("meta"):
        net = whole_model(config)
    total = sum(p.numel() for p in net.parameters())
    ends = net.get_input_embeddings(), net.get_output_embeddings()
    embedding = sum(p.numel() for p in ends[0].parameters())
    head = 0 if ends[1] is None or ends[1].weight is ends[0].weight else sum(p.numel() for p in ends[1].parameters())
    inside = sum(p.numel() for p in blocks(net).parameters())
    small = [m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not ends[1]]
    text = net.config.get_text_config()
    rows, width = ends[0].weight.shape
    return Counted(
        total,
        embedding,
        head,
        inside,
        total - embedding - head - inside,
        sum(small),
        max(small, default=0),
        int(text.num_hidden_layers),
        int(getattr(text, "hidden_size", None) or width),
        int(rows),
    )


def compute_dtype(dtype: str, *, on_cpu: bool = True) -> str:
    """Return what is computed in: of 4-bit weights what `models.load` unpacks them to."""
    return dtype if dtype != QUANTISED else "float32" if on_cpu else "bfloat16"


def product(shape: Iterable[int]) -> int:
    """Return how many elements a tensor of this shape has."""
    found = 1
    for n in shape:
        found *= n
    return found


def free_memory(device: str = "cpu") -> int | None:
    """Return the free bytes on a device; None where unknown."""
    import torch

    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    found = [n for n in (_meminfo(), free_in_cgroups()) if n is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _meminfo() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def needed(folder: Path, dtype: str, device: str = "cpu") -> int:
    """Return the bytes of a model's weights in `dtype`, as its files' headers have them; nothing is loaded."""
    stored = sum(product(shape) for path in weight_files(folder) for shape in tensor_shapes(path).values())
    if dtype != QUANTISED and stored:
        return stored * BYTES[dtype]
    return counted(read_config(folder)).bytes_in(dtype, on_cpu=device == "cpu")


def refuse_beyond(model: Model, dtype: str, device: str = "auto") -> None:
    """Refuse to load a model whose weights alone exceed the free memory.

    Args:
        dtype, device: as `models.load.load` takes them.

    Raises:
        WorldError: with both numbers, and what would fit.
    """
    where = pick_device(device)
    dtype = pick_dtype(dtype, model, where)
    free = free_memory(where)
    if free is None or (wanted := needed(model.folder, dtype, where)) <= FULL * free:
        return
    kind = "GPU" if where.startswith("cuda") else "machine"
    raise WorldError(
        f"{model.reference} needs {in_gb(wanted)} in {dtype}, but this {kind} has {in_gb(free)} free",
        _remedy(model, dtype, where, free),
    )


def _remedy(model: Model, dtype: str, device: str, free: int) -> str:
    """Return the options that would fit."""
    smaller = {d: needed(model.folder, d, device) for d in DTYPES if d in (*HALVES, QUANTISED) and d != dtype}
    fits = [f"`dtype={d}` ({in_gb(n)})" for d, n in smaller.items() if n <= FULL * free]
    if device.startswith("cuda") and (on_cpu := free_memory("cpu")) and needed(model.folder, dtype) <= FULL * on_cpu:
        fits.append(f"`device=cpu` ({in_gb(on_cpu)} free)")
    return f"try {' or '.join(fits)}" if fits else "use a machine with more memory, or a smaller model"


def in_gb(size_in_bytes: float) -> str:
    """Write bytes as gigabytes (10^9)."""
    value = size_in_bytes / GB
    return f"{value:.0f} GB" if value >= 100 else f"{value:.1f} GB" if value >= 1 else f"{value:.2f} GB"
