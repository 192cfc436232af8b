"""A checkpoint beside its base, both in memory at once on the same weights, for code that reads the two together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import Checkpoint

if TYPE_CHECKING:
    from torch.nn import Parameter

    from emscope.models.types import CausalLM


@contextmanager
def beside(net: CausalLM, checkpoint: Checkpoint) -> Iterator[CausalLM]:
    """Yield a second model that behaves as `checkpoint` does, while `net` stays the base; unchanged tensors are shared.

    Raises:
        InputError: as `with_checkpoint`.
    """
    with with_checkpoint(net if checkpoint.kind == "full" else twin(net), checkpoint) as tuned:
        yield tuned


def twin(net: CausalLM) -> CausalLM:
    """Return a second model on the tensors of `net`; modules and parameters are its own, so that changing one does not affect the other."""
    import torch

    def second(p: Parameter) -> Parameter:
        return (
            torch.nn.Parameter(p.data, requires_grad=False) if p.is_floating_point() else p
        )  # 4-bit weights are never replaced

    shared = {id(p): second(p) for p in net.parameters()} | {id(b): b for b in net.buffers()}
    return copy.deepcopy(net, shared)
