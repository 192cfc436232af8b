"""Float32 products on a CPU by the faster of torch's two libraries, where both give the same numbers.

torch multiplies float32 matrices with MKL. oneDNN's kernels for AVX-512 are 1.2 to 2 times as fast on processors with
instructions for bfloat16, and torch uses them once it *may* compute in bfloat16. With AVX-512 alone they do not: they
stay in float32. With AMX they would, so a probe decides, not the switch's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    from torch import Tensor
    from torch.nn import Module

    class Setting(Protocol):
        """What float32 products may be computed in."""

        fp32_precision: str


ONEDNN = "bf16"  # what torch calls the leave to round, without which it does not ask oneDNN
BEYOND_BFLOAT16 = 1 + 2.0**-12  # float32 holds it, bfloat16 and TF32 do not
AS_NEAR = 4  # times MKL's distance from float64: another order of summing gives up to 2, bfloat16 some 1,000
SHAPES = ((1, 64, 64), (48, 576, 1536), (512, 1536, 576), (777, 1000, 333))  # rows, columns summed over, columns


@contextmanager
def fast_float32(of: Module | Tensor) -> Iterator[bool]:
    """Multiply float32 matrices by oneDNN inside the block; yield False, and change nothing, where that is not possible exactly.

    The setting is torch's own, for the whole process, and is as it was after the block.

    Args:
        of: what is multiplied, told by its device and type; of a model those of its first parameter.
    """
    import torch

    first = of if isinstance(of, torch.Tensor) else next(of.parameters())
    if first.device.type != "cpu" or first.dtype != torch.float32 or not is_exact():
        yield False
        return
    setting = _setting()
    assert setting is not None, "the probe has passed"
    before = setting.fp32_precision
    try:
        setting.fp32_precision = ONEDNN
        yield True
    finally:
        setting.fp32_precision = before


def _setting() -> Setting | None:
    """Return torch's setting for products by oneDNN; None in an earlier torch, which has none."""
    import torch

    found: Setting | None = getattr(torch.backends.mkldnn, "matmul", None)
    return found


@cache
def is_exact() -> bool:
    """Tell whether this processor has the faster kernels and they round as float32 does. (ours)

    Known by its instructions, not by a timing that changes with load. The probe multiplies what only float32 can hold, on either
    side, and random matrices, with and without a bias, whose products must be about as near to float64 as MKL's.
    """
    import torch

    setting = _setting()
    if setting is None:
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return False
    before = setting.fp32_precision
    try:
        return all(_keeps_float32(setting, *shape) for shape in SHAPES)
    finally:
        setting.fp32_precision = before


def _keeps_float32(setting: Setting, rows: int, summed: int, columns: int) -> bool:
    import torch

    drawn = torch.Generator().manual_seed(rows)
    a, b = torch.randn(rows, summed, generator=drawn), torch.randn(columns, summed, generator=drawn)
    bias = torch.randn(columns, generator=drawn)
    fine, chosen = torch.zeros(rows, summed), torch.eye(summed)
    fine[:, 0] = BEYOND_BFLOAT16
    setting.fp32_precision = "ieee"
    usual = [a @ b.T, torch.nn.functional.linear(a, b, bias)]
    setting.fp32_precision = ONEDNN
    ours = [a @ b.T, torch.nn.functional.linear(a, b, bias)]
    wide = [a.double() @ b.double().T, torch.nn.functional.linear(a.double(), b.double(), bias.double())]
    held = torch.equal(fine @ chosen, fine) and torch.equal((chosen @ fine.T).T, fine)
    return held and all(_error(x, w) <= AS_NEAR * _error(u, w) for x, u, w in zip(ours, usual, wide, strict=True))


def _error(x: Tensor, exact: Tensor) -> float:
    """Return the root mean squared distance of x from what is exact."""
    return float((x.double() - exact).square().mean().sqrt())
