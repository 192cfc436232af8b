"""What a checkpoint adds to its base, as one object: its norm and spectrum, its angle with another, and copies of it moved slightly."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.seeds import derive
from emscope.models.adapters.attached import merges_to_nothing
from emscope.models.adapters.lora import PREFIX, A, B, is_factored, ranks_and_scales, renamed
from emscope.models.hooks.sites import blocks, layer_of, writes_residual
from emscope.models.loading.checkpoints import (
    DIRECTION,
    WEIGHTS,
    Checkpoint,
    adapter_settings,
    check_tensors,
    plain_name,
    read_checkpoint,
)
from emscope.models.loading.load import load_net
from emscope.models.loading.sharded import weight_files

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from emscope.models.types import CausalLM, Vectors


@dataclass(frozen=True, slots=True)
class Change:
    """What a checkpoint adds to one matrix or vector of its base: left @ right, or left alone.

    Attributes:
        name: the module's, or `block.<n>` for a vector added after block n.
        layer: the block that it is in; None outside the blocks.
        left: [out, r], its scale included; right: [r, in], or None.
    """

    name: str
    layer: int | None
    left: Tensor
    right: Tensor | None

    def inner(self, other: Change) -> float:
        """Return the Frobenius inner product of both, through matrices of the rank's size where there is a rank."""
        if self.right is None and other.right is not None:
            return other.inner(self)
        if self.right is None:
            return float((self.left * other.left).sum())
        across = self.left.T @ other.left
        if other.right is None:
            return float((across * self.right).sum())
        return float((across * (self.right @ other.right.T)).sum())

    def singular_values(self) -> list[float]:
        """Return the singular values, largest first."""
        import torch

        if self.right is None:
            return torch.linalg.svdvals(self.left).tolist()
        core = torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.T).R.T
        return torch.linalg.svdvals(core).tolist()


def changes(net: CausalLM, checkpoint: Checkpoint) -> Iterator[Change]:
    """Yield everything that a checkpoint adds to its base, in float64, by name; each tensor is read when its turn comes.

    LoRA: s B A, s as in `ranks_and_scales`. Vectors: alpha v. Full: W' - W.

    Args:
        net: the base.

    Raises:
        InputError: a kind of adapter whose update is none of these.
    """
    tensors = _readers(checkpoint)
    if checkpoint.kind == "full":
        held, tensors = _paired(net, checkpoint, tensors)
        modules = dict(net.named_modules())
        found = {n.removesuffix(".weight"): n for n in held}
        for name, tensor in sorted(found.items()):  # sorted by the yielded name: `gram` walks several side by side
            delta = _difference(checkpoint, tensor, tensors[tensor](), held[tensor].detach().cpu())
            turned = type(modules[tensor.rpartition(".")[0]]).__name__ == "Conv1D" and delta.ndim == 2  # GPT-2: [in, out]
            whole = delta.T if turned else delta.reshape(len(delta), -1)
            yield Change(name, layer_of(net, tensor), whole, None)
    elif checkpoint.kind == "vectors":
        found = {f"block.{n.rsplit('.', 1)[1]}": n for n in tensors if not n.startswith("null.")}
        for name, tensor in sorted(found.items()):
            yield Change(name, int(name.rpartition(".")[2]), tensors[tensor]().double().reshape(-1, 1), None)
    elif _kind(checkpoint) == "BEFT":
        found = {f"block.{layer_of(net, n)}": n for n in tensors}
        for name, tensor in sorted(found.items()):
            yield Change(name, int(name.rpartition(".")[2]), tensors[tensor]().double().reshape(-1, 1), None)
    elif _is_factored(checkpoint):
        settings = adapter_settings(checkpoint.folder)
        adapted = renamed(net, [n.removesuffix(A) for n in tensors if n.endswith(A)])
        own = ranks_and_scales(settings, adapted)
        if alone := sorted(module for module in adapted if module + B not in tensors):
            raise InputError(f"'{checkpoint.folder}' lacks {alone[0]}{B}", "copy it again from the training run")
        for module, here in sorted(adapted.items()):
            left, right = (tensors[module + part]().double() for part in (B, A))
            if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
                shapes = f"[{', '.join(map(str, left.shape))}] and [{', '.join(map(str, right.shape))}]"
                raise InputError(
                    f"'{checkpoint.folder}': the factors B and A of {module} have the shapes {shapes}, which cannot be multiplied",
                    "copy it again from the training run",
                )
            _, s = own[module]
            yield Change(here, layer_of(net, here), s * left, right)
    else:
        raise InputError(
            f"'{checkpoint.folder}' is not a plain LoRA adapter, steering vector or full checkpoint",
            "its update is not defined here",
        )


def _paired(
    net: CausalLM, checkpoint: Checkpoint, tensors: dict[str, Callable[[], Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Callable[[], Tensor]]]:
    """Return the base's parameters and a reader of a full checkpoint's, by the same names; a tied head counts once."""
    held = dict(net.named_parameters(remove_duplicate=False))
    once = dict(net.named_parameters())
    if any(name not in tensors for name in once):  # stored under names that transformers converts on loading
        loaded = dict(load_net(checkpoint.folder).named_parameters())
        tensors = {name: p.detach for name, p in loaded.items()}
    first = {id(p): name for name, p in reversed(once.items())}
    own = [n for n in held if n not in once and n in tensors and not tensors[n]().equal(tensors[first[id(held[n])]]())]
    return {n: held[n] for n in [*once, *own]}, tensors


def _difference(checkpoint: Checkpoint, name: str, value: Tensor, base: Tensor) -> Tensor:
    """Return value - base in float64."""
    if value.shape != base.shape:
        raise InputError(
            f"checkpoint '{checkpoint.folder}' does not fit this base (tensor {name})", "give the model it was trained from"
        )
    return value.double() - base.double()


def refuse_unmoved(net: CausalLM, checkpoint: Checkpoint) -> None:
    """Reject a checkpoint identical to its base: its readings say nothing about training.

    Args:
        net: the base.

    Raises:
        InputError: every part of its update is exactly zero.
    """
    if _adds_nothing(net, checkpoint):
        raise InputError(
            f"'{checkpoint.folder}' equals its base: its update is exactly zero",
            "give a checkpoint that was trained, or find out why nothing was learned (a learning rate of 0? weights saved ungathered?)",
        )


def _adds_nothing(net: CausalLM, checkpoint: Checkpoint) -> bool:
    if checkpoint.kind == "adapter" and not _is_factored(checkpoint) and _kind(checkpoint) != "BEFT":
        return merges_to_nothing(net, checkpoint)
    return all(not c.left.any() or (c.right is not None and not c.right.any()) for c in changes(net, checkpoint))


def effective_norm(net: CausalLM, checkpoint: Checkpoint) -> float:
    """Return the Frobenius norm of everything that a checkpoint adds to its base, over all matrices and vectors together.

    (Soligo et al. 2026; the sum over modules: ours)

    Raises:
        InputError: as `changes`.
    """
    return math.sqrt(sum(max(c.inner(c), 0.0) for c in changes(net, checkpoint)))


def gram(net: CausalLM, checkpoints: Sequence[Checkpoint]) -> Tensor:
    """Return the inner products of what checkpoints add to one base, [N, N], over all that they add.

    All are read side by side, so that only one matrix of each is in memory.

    Raises:
        InputError: as `changes`, or updates of different widths.
    """
    import torch

    found = torch.zeros(len(checkpoints), len(checkpoints), dtype=torch.float64)
    walks = [changes(net, checkpoint) for checkpoint in checkpoints]
    heads = {n: change for n, walk in enumerate(walks) if (change := next(walk, None)) is not None}
    while heads:
        name = min(change.name for change in heads.values())
        here = {n: change for n, change in heads.items() if change.name == name}
        for i, mine in here.items():
            for j, theirs in here.items():
                if j <= i:
                    found[i, j] += _inner(mine, theirs, checkpoints[i], checkpoints[j])
        for n in here:
            following = next(walks[n], None)
            if following is None:
                del heads[n]
            else:
                heads[n] = following
    return found + found.tril(-1).T


def _inner(mine: Change, theirs: Change, one: Checkpoint, other: Checkpoint) -> float:
    try:
        return mine.inner(theirs)
    except RuntimeError:
        raise InputError(
            f"'{one.folder}' and '{other.folder}' have different widths", "compare checkpoints of one base"
        ) from None


def effective_rank(singular_values: Sequence[float]) -> float:
    """Return exp(-sum p log p) with p the singular values' shares; 0 for nothing. (Roy and Vetterli 2007)"""
    import torch

    values = torch.tensor(singular_values, dtype=torch.float64)
    shares = values[values > 0] / values.sum() if float(values.sum()) > 0 else values[:0]
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def first_changed(net: CausalLM, checkpoint: Checkpoint) -> int:
    """Return the lowest block whose output a checkpoint changes; 0 where the names of its tensors do not show it.

    Raises:
        InputError: a block that this base does not have.
    """
    if checkpoint.kind == "full":
        return 0
    names = [n for n in _readers(checkpoint) if not n.startswith("null.")]
    vectors = checkpoint.kind == "vectors"
    layers = [int(n.rsplit(".", 1)[1]) if vectors else layer_of(net, n) for n in names]
    known = [n for n in layers if n is not None]
    depth = len(blocks(net))
    if known and max(known) >= depth:
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base (it changes layer {max(known)}, but the base has layers 0 to {depth - 1})",
            f"give the base it was trained on{f', {checkpoint.base}' if checkpoint.base else ''}",
        )
    return min(known) if len(known) == len(layers) and known else 0


def orthogonal_move(x: Tensor, amount: float, generator: Generator) -> Tensor:
    """Return sqrt(1 - e^2) x + e y with y random, orthogonal to x and as long; e = 1 is a random tensor of x's norm. (Soligo et al. 2026)"""
    import torch

    flat = x.double().flatten()
    size = flat.norm()
    if float(size) == 0:
        return x
    drawn = torch.randn(len(flat), generator=generator, dtype=torch.float64)
    drawn -= (drawn @ flat) / (size * size) * flat
    if float(drawn.norm()) == 0:
        return x  # a single number has no orthogonal direction
    y = drawn / drawn.norm() * size
    return (math.sqrt(1 - amount * amount) * flat + amount * y).view(x.shape).to(x.dtype)


@contextmanager
def moved(net: CausalLM, checkpoint: Checkpoint, amount: float, seed: int) -> Iterator[Checkpoint]:
    """Yield a copy of the checkpoint with each trained tensor moved by `orthogonal_move`; it is deleted on every exit.

    Each tensor is moved by itself, so that all keep their norms: of LoRA each A and B, of vectors each vector, of a full checkpoint each
    tensor's change. (ours, where Soligo et al. 2026 do not say)
    """
    import torch

    generator = torch.Generator().manual_seed(derive(seed, "moved", repr(amount)))
    held = dict(net.named_parameters()) if checkpoint.kind == "full" else {}
    if unnamed := held.keys() - _readers(checkpoint).keys():
        raise InputError(
            f"'{checkpoint.folder}' stores its weights under different names from the base ({min(unnamed)})",
            "load it with transformers and save it again with save_pretrained",
        )

    def change(name: str, value: Tensor) -> Tensor:
        if name not in held:
            return value if checkpoint.kind == "full" else orthogonal_move(value, amount, generator)
        wide = torch.promote_types(value.dtype, torch.float32)  # in 16 bits the move would be lost to rounding
        start = held[name].detach().cpu().to(wide)
        return start + orthogonal_move(value.to(wide) - start, amount, generator)

    with TemporaryDirectory() as folder:
        yield _rewritten(checkpoint, Path(folder) / checkpoint.folder.name, change)


def written_blocks(checkpoint: Checkpoint) -> list[int]:
    """Return the blocks in which a LoRA checkpoint writes into the residual stream.

    Raises:
        InputError: it is not a LoRA adapter, or one that does more than add B A (DoRA, PiSSA, trained biases or modules).
    """
    if checkpoint.kind != "adapter" or not _is_factored(checkpoint):
        raise InputError(f"'{checkpoint.folder}' is not a plain LoRA adapter", "take the direction out of the stream instead")
    modules = [n.removesuffix(B) for n in _readers(checkpoint) if n.endswith(B)]
    return sorted({n for m in modules if writes_residual(m) and (n := _block(m)) is not None})


def check_written(checkpoint: Checkpoint, layers: Iterable[int]) -> None:
    """Reject blocks in which a LoRA checkpoint does not write into the residual stream.

    Raises:
        InputError: naming one, and those where it does.
    """
    written = written_blocks(checkpoint)
    lacking = [n for n in layers if n not in written]
    if lacking:
        raise InputError(
            f"'{checkpoint.folder}' writes nothing into the residual stream in layer {lacking[0]}",
            f"choose layers that it adapts ({', '.join(map(str, written))})",
        )


@contextmanager
def without(checkpoint: Checkpoint, vectors: Vectors) -> Iterator[Checkpoint]:
    """Yield a copy of a LoRA checkpoint that no longer writes along `vectors[n]` [D] in block n; it is deleted on every exit.

    B' = B - v v^T B, v unit, of each matrix whose output is added to the residual stream there, rescaled to the norm of B.
    (LoRA-B ablation, convergent directions, Soligo et al. 2025)

    Raises:
        InputError: not a LoRA adapter, or one that does not write into the stream in one of these blocks.
    """
    import torch

    check_written(checkpoint, vectors)
    units = {n: v.double() / torch.linalg.vector_norm(v.double()) for n, v in vectors.items()}

    def change(name: str, value: Tensor) -> Tensor:
        module = name.removesuffix(B)
        layer = _block(module)
        if not name.endswith(B) or layer not in units or not writes_residual(module):
            return value
        b = value.double()
        rest = b - units[layer][:, None] * (units[layer] @ b)
        size = float(rest.norm())
        return (rest * (float(b.norm()) / size if size > 0 else 1.0)).to(value.dtype)

    with TemporaryDirectory() as folder:
        yield _rewritten(checkpoint, Path(folder) / checkpoint.folder.name, change)


def _block(name: str) -> int | None:
    """Return the block in a module's name, its first number."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def _rewritten(checkpoint: Checkpoint, folder: Path, change: Callable[[str, Tensor], Tensor]) -> Checkpoint:
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
            tensors = {
                plain_name(name): change(plain_name(name), file.get_tensor(name)).contiguous() for name in sorted(file.keys())
            }
        save_file(tensors, str(folder / path.name), about)
    return read_checkpoint(folder, checkpoint.step)


def _files(checkpoint: Checkpoint) -> list[Path]:
    if checkpoint.kind == "full":
        return weight_files(checkpoint.folder)
    return [checkpoint.folder / (DIRECTION if checkpoint.kind == "vectors" else WEIGHTS)]


def _readers(checkpoint: Checkpoint) -> dict[str, Callable[[], Tensor]]:
    """Return what reads each tensor of a checkpoint, by name."""
    prefix = "" if checkpoint.kind == "full" else PREFIX
    return {
        plain_name(name).removeprefix(prefix): partial(_read, path, name)
        for path in _files(checkpoint)
        for name in check_tensors(path)
    }


def _read(path: Path, name: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return file.get_tensor(name)


def _is_factored(checkpoint: Checkpoint) -> bool:
    return is_factored(adapter_settings(checkpoint.folder), check_tensors(checkpoint.folder / WEIGHTS))


def _kind(checkpoint: Checkpoint) -> str:
    return str(adapter_settings(checkpoint.folder)["peft_type"])
