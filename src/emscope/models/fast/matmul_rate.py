"""How fast this machine multiplies: the ceiling for comparing speeds."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from emscope.models.fast.float32_products import fast_float32

if TYPE_CHECKING:
    from torch.nn import Module


def matmul_gflops(seconds: float = 0.5, size: int = 1536) -> float:
    """Return the best observed float32 matmul rate [GFLOP/s] over repeats within `seconds`, by the products that readings use."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    best = 0.0
    with fast_float32(a):
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def parameters_in_blocks(net: Module) -> int:
    """Return the number of weights that every token is multiplied with, without embeddings and output matrix."""
    import torch

    linear = [m for n, m in net.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    return sum(m.weight.numel() for m in linear)
