"""A model restored exactly, whatever was done to its modules and weights in between.

PEFT's own `unload` leaves saved modules, trained biases and residual weights (PiSSA, OLoRA, CorDA) in the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from emscope.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Container = TypeVar("Container", dict[str, object], set[str])


class Kept:
    """Every module of a model with everything it holds, and every tensor, for `restore`.

    Nothing is copied, so a tensor that is written into stays changed; `sums` tells whether one was.

    Args:
        net: any torch module.
    """

    def __init__(self, net: Module) -> None:
        self._parts = [(m, type(m), dict(m.__dict__), _containers(m)) for m in net.modules()]
        self._config = (net.config, dict(net.config.__dict__)) if hasattr(net, "config") else None
        self._named = {name: t for named in (net.named_parameters, net.named_buffers) for name, t in named()}
        self._all = dict(net.named_parameters(remove_duplicate=False))
        self._data = {name: (t.data, t.requires_grad) for name, t in self._named.items()}
        self._values = {
            (path, name): p.data for path, m in net.named_modules() for name, p in m._parameters.items() if p is not None
        }

    def value(self, path: str, name: str) -> Tensor | None:
        """Return the tensor that a parameter of the module at `path` was, None where there was none."""
        return self._values.get((path, name))

    def privately(self, names: Collection[str]) -> None:
        """Give the parameters of these names, and all that are no matrices, tensors of their own until `restore`: they may be written into."""
        written = {id(p) for name, p in self._all.items() if name in names}
        for t in self._named.values():
            if t.is_floating_point() and (t.ndim < 2 or id(t) in written):
                t.data = t.data.clone()

    def restore(self) -> None:
        """Put modules, parameters and tensors back."""
        for module, kind, held, containers in self._parts:
            module.__class__ = kind  # a parametrised module has a class made for it
            module.__dict__.clear()
            module.__dict__.update(held)
            for refill in containers:
                refill()
        if self._config:
            self._config[0].__dict__.update(self._config[1])
        for name, t in self._named.items():
            data, trained = self._data[name]
            if t.data_ptr() != data.data_ptr() or t.dtype != data.dtype or t.shape != data.shape:
                t.data = data
            t.requires_grad_(trained)

    def sums(self) -> dict[str, int]:
        """Return a sum over the bits of each tensor, by name; writing into one changes it."""
        return {name: bit_sum(data) for name, (data, _) in self._data.items()}


@contextmanager
def intact(net: Module, what: Path | str, written: Collection[str] = ()) -> Iterator[Kept]:
    """Restore `net` on every exit: modules, parameters, values, bit by bit.

    Args:
        what: what would have caused a change, for the message.
        written: names of parameters that may be written into inside the block; they get tensors of their own.

    Raises:
        InputError: a tensor of the base has different values afterwards.
    """
    kept = Kept(net)
    before = kept.sums()
    try:
        kept.privately(written)
        yield kept
    finally:
        kept.restore()
    after = kept.sums()
    check_unchanged(before, after, what)


def check_unchanged(before: dict[str, int], after: dict[str, int], what: Path | str) -> None:
    """Refuse to continue where a tensor's sum has changed.

    Raises:
        InputError: naming it.
    """
    changed = next((name for name in before if before[name] != after.get(name)), None)
    if changed is not None:
        raise InputError(
            f"reading '{what}' changed the base itself ({changed}), so no later reading would be right",
            "merge it into a full model, give that, and report the kind of adapter",
        )


def bit_sum(tensor: Tensor) -> int:
    """Return the sum of a tensor's bits, read as 8-byte words, modulo 2^64; as quick as memory."""
    import torch

    flat = tensor.detach().contiguous().view(-1)
    if (flat.storage_offset() * flat.element_size()) % 8:
        flat = flat.clone()  # words begin at multiples of their size
    flat = flat.view(torch.uint8)
    whole = len(flat) // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())


def _containers(module: Module) -> list[Callable[[], None]]:
    """Return what puts back the content of each dict and set that a module holds."""
    held = module.__dict__.values()
    return [*(_refill(c) for c in held if isinstance(c, dict)), *(_refill(c) for c in held if isinstance(c, set))]


def _refill(container: Container) -> Callable[[], None]:
    content = container.copy()

    def back() -> None:
        container.clear()
        container.update(content)

    return back
