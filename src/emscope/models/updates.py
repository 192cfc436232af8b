"""What a checkpoint changes, as one object: its effective norm, and copies of it moved a little away."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from emscope.core.errors import InputError
from emscope.core.seeds import derive
from emscope.models.checkpoints import DIRECTION, WEIGHTS, Checkpoint, adapter_settings, read_checkpoint
from emscope.models.lora import PREFIX, A, B
from emscope.models.sites import layer_of


def effective_norm(net: Any, checkpoint: Checkpoint) -> float:
    """Return the Frobenius norm of everything that a checkpoint adds to its base, over all matrices and vectors together.

    LoRA: sqrt(sum of s^2 ||B A||_F^2), s = alpha / r, or alpha / sqrt(r) with rsLoRA. Vectors: ||alpha v||. Full: ||W' - W||. (P3; the sum
    over modules: ours)

    Args:
        net: the base.

    Raises:
        InputError: a kind of adapter whose update is neither.
    """
    return math.sqrt(sum(_squares(net, checkpoint)))


def first_changed(net: Any, checkpoint: Checkpoint) -> int:
    """Return the lowest block whose output a checkpoint changes; 0 where that cannot be told from the names of its tensors."""
    if checkpoint.kind == "full":
        return 0
    layers = [
        int(name.rsplit(".", 1)[1]) if checkpoint.kind == "vectors" else layer_of(net, name)
        for name in _tensors(checkpoint)
        if not name.startswith("null.")
    ]
    return min((n for n in layers if n is not None), default=0) if None not in layers else 0


def _squares(net: Any, checkpoint: Checkpoint) -> Iterator[float]:
    tensors = _tensors(checkpoint)
    if checkpoint.kind == "full":
        held = dict(net.named_parameters())
        for name, value in tensors.items():
            if name in held:
                yield float((value.float() - held[name].detach().cpu().float()).square().sum())
    elif checkpoint.kind == "vectors" or _kind(checkpoint) == "BEFT":
        for value in tensors.values():
            yield float(value.float().square().sum())
    elif _kind(checkpoint) == "LORA" and all(n.endswith((A, B)) for n in tensors):
        settings = adapter_settings(checkpoint.folder)
        s = settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
        for name in tensors:
            if name.endswith(A):
                a, b = tensors[name].double(), tensors[name.removesuffix(A) + B].double()
                yield s * s * float(((b.T @ b) * (a @ a.T)).sum())  # ||B A||^2 through matrices of the rank's size
    else:
        raise InputError(
            f"'{checkpoint.folder}' is no plain LoRA adapter, steering vector or full checkpoint",
            "its effective norm is not defined here",
        )


def orthogonal_move(x: Any, amount: float, generator: Any) -> Any:
    """Return sqrt(1 - e^2) x + e y with y random, orthogonal to x and as long; e = 1 is a random tensor of x's norm. (P3)"""
    import torch

    flat = x.double().flatten()
    size = flat.norm()
    if float(size) == 0:
        return x
    drawn = torch.randn(len(flat), generator=generator, dtype=torch.float64)
    drawn -= (drawn @ flat) / (size * size) * flat
    if float(drawn.norm()) == 0:
        return x  # one number has nothing orthogonal to it
    y = drawn / drawn.norm() * size
    return (math.sqrt(1 - amount * amount) * flat + amount * y).view(x.shape).to(x.dtype)


@contextmanager
def moved(net: Any, checkpoint: Checkpoint, amount: float, seed: int) -> Iterator[Checkpoint]:
    """Yield a copy of the checkpoint with each trained tensor moved by `orthogonal_move`; it is deleted on every exit.

    Each tensor is moved by itself, so that all keep their norms: of LoRA each A and B, of vectors each vector, of a full checkpoint each
    tensor's change. (ours, where P3 does not say)
    """
    import torch

    generator = torch.Generator().manual_seed(derive(seed, "moved", repr(amount)))
    held = dict(net.named_parameters()) if checkpoint.kind == "full" else {}

    def change(name: str, value: Any) -> Any:
        if name not in held:
            return value if checkpoint.kind == "full" else orthogonal_move(value, amount, generator)
        start = held[name].detach().cpu().to(value.dtype)
        return start + orthogonal_move(value - start, amount, generator)

    with TemporaryDirectory() as folder:
        yield _rewritten(checkpoint, Path(folder) / checkpoint.folder.name, change)


def _rewritten(checkpoint: Checkpoint, folder: Path, change: Callable[[str, Any], Any]) -> Checkpoint:
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir()
    weights = _files(checkpoint)
    for path in checkpoint.folder.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder / path.name)
    for path in weights:
        with safe_open(str(path), framework="pt") as file:
            about = file.metadata()
            tensors = {name: change(name, file.get_tensor(name)).contiguous() for name in sorted(file.keys())}
        save_file(tensors, str(folder / path.name), about)
    return read_checkpoint(folder, checkpoint.step)


def _files(checkpoint: Checkpoint) -> list[Path]:
    if checkpoint.kind == "full":
        return sorted(checkpoint.folder.glob("*.safetensors"))
    return [checkpoint.folder / (DIRECTION if checkpoint.kind == "vectors" else WEIGHTS)]


def _tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in _files(checkpoint):
        found |= load_file(str(path))
    return {name.removeprefix(PREFIX) if checkpoint.kind != "full" else name: v for name, v in found.items()}


def _kind(checkpoint: Checkpoint) -> str:
    return str(adapter_settings(checkpoint.folder)["peft_type"])
