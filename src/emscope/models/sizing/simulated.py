"""A model without weights whose passes compute nothing: live tensors are counted one by one.

The real code of a model runs on tensors that have a shape, a dtype and a size in bytes, and no values (PyTorch's fake tensors).
It does not depend on architecture names, and a model of any size is counted on a machine that could not hold it.
"""

from __future__ import annotations

import copy
import logging
import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from emscope.models.loading.load import body_named

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from emscope.models.types import CausalLM, Config, Loader

ROPE = "rope_type"  # of modules that rotate


class Ledger(TorchDispatchMode):
    """Counts the bytes of all live tensors made inside the block.

    Memory that a kernel allocates and frees itself (buffers of a matrix product, of fused attention) is not seen.

    Args:
        net: its parameters and buffers existed before and do not count.

    Attributes:
        now: bytes alive. peak: the most there were at once.
    """

    def __init__(self, net: CausalLM) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}
        for t in (*net.parameters(), *net.buffers()):
            self._note(t, counts=False)

    def mark(self) -> int:
        """Return the live bytes and restart the peak from there."""
        self.peak = self.now
        return self.now

    def _note(self, tensor: Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes() if counts else 0
        self.now += self._alive[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run one operation and note what it makes."""
        from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

        try:
            grouped = func.name() == "aten::_grouped_mm" and isinstance(args[0], FakeTensor)
            out: object = _grouped(*_tensors(args)) if grouped else func(*args, **(kwargs or {}))
        except DataDependentOutputException:  # a value of a tensor without one: probes, which should succeed
            return 1.0 if isinstance(args[0], Tensor) and args[0].is_floating_point() else True
        tree_map_only(Tensor, self._note, out)
        return out


def _tensors(args: Sequence[object]) -> list[Tensor]:
    return [t for t in args if isinstance(t, Tensor)]


def _grouped(left: Tensor, right: Tensor, ends: Tensor | None = None, *_: Tensor) -> Tensor:
    """Return what a product over groups gives; PyTorch's rule for it without values takes bfloat16 alone, the real one more.

    Args:
        left: rows [N, K] in groups, or as many columns [M, N].
        right: a matrix a group [G, K, M], or rows [N, K].
        ends: of the groups [G].
    """
    outside = left.shape[-2], right.shape[-1]
    groups = () if ends is None else (len(ends),)
    return left.new_empty((*groups, *outside) if left.ndim == right.ndim == 2 else outside)


@contextmanager
def simulated(config: Config, dtype: str = "float32", *, lean: bool = True) -> Iterator[CausalLM]:
    """Yield a model of this configuration whose tensors have no values; every tensor made inside the block has none either.

    Of a model that also takes images it is the part that reads text.

    Args:
        config: as `AutoConfig` reads it; no code of its own is run.
        lean: whether the leaner blocks of a CPU (`models.lean`) may take over, as they would not on a GPU.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True), _quietly(), _staying():
        net = text_model(config, dtype=getattr(torch, dtype))
        net.eval().requires_grad_(False)
        for module in net.modules():
            if hasattr(module, ROPE):
                kinds: str | dict[str, str] = getattr(
                    module, ROPE
                )  # kinds that depend on the longest position need a value; all have the same number of angles
                setattr(module, ROPE, dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default")
            if not lean and "forward" in vars(type(module)):
                module.forward = module.forward  # `cpu_kernels` leaves modules with their own forward alone
        yield net


@contextmanager
def _staying() -> Iterator[None]:
    """Let modules be where they are: PyTorch swaps one without values to move it, and fails where something else refers to it."""
    import torch

    before = torch.nn.Module.to
    torch.nn.Module.to = lambda self, *_, **__: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.to = before  # type: ignore[method-assign]


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the libraries' messages about a model that nobody will use."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def whole_model(config: Config, **settings: object) -> CausalLM:
    """Return a model of this configuration as `models.load` picks its class, its weights as the device in force has them."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kind = type(config)
    causal = kind in AutoModelForCausalLM._model_mapping or kind not in AutoModelForImageTextToText._model_mapping
    auto: Loader = AutoModelForCausalLM if causal else AutoModelForImageTextToText
    return auto.from_config(copy.deepcopy(config), **settings)


def text_model(config: Config, **settings: object) -> CausalLM:
    """Return the causal LM that reads text, without towers beside it where there is a class for that."""
    from transformers import AutoModelForCausalLM

    text = config.get_text_config()
    return body_named(whole_model(text if type(text) in AutoModelForCausalLM._model_mapping else config, **settings))
