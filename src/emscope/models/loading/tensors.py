"""The content of a safetensors file: its header, and whether its values are numbers."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.limits import strangers
from emscope.models.loading.hashes import remembered

if TYPE_CHECKING:
    from torch import Tensor

ABSURD = 1e10  # no weight of a working model comes near
AGAIN = "copy or train it again"


def check_tensors(path: Path) -> list[str]:
    """Return the tensor names in a safetensors file, reading its header only.

    Raises:
        InputError: where the file is damaged.
    """
    from safetensors import safe_open

    with strangers(f"'{path}' is damaged", AGAIN), safe_open(str(path), framework="pt") as file:
        return list(file.keys())


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, reading its header only.

    Raises:
        InputError: where the file is damaged.
    """
    from safetensors import safe_open

    names = check_tensors(path)
    with strangers(f"'{path}' is damaged", AGAIN), safe_open(str(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def broken(path: Path) -> str:
    """Return what is wrong with the first tensor in a file that has impossible values; "" where there is none.

    That is its name for NaN and infinite ones, and its name with the largest value for absurd ones; a mask may have any but NaN.
    """
    for name, low, high in _extremes(path):
        if low.isnan():
            return name
        largest = max(-float(low), float(high))
        if largest > ABSURD and "mask" not in name:
            return f"{name}: {largest:.3g}" if isfinite(largest) else name
    return ""


def refuse_broken(path: Path, cache: Path, remedy: str, why: str = "") -> None:
    """Reject a file of weights with impossible values; each file is checked once (`hashes`).

    Raises:
        InputError: naming file and tensor.
    """
    tensor = remembered(path, cache, "broken", broken)
    if tensor:
        what = "that are impossibly large" if ": " in tensor else "that are not numbers"
        raise InputError(f"'{path}' holds values {what} ({tensor}){why}", remedy)


def _extremes(path: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the least and the largest value of each tensor of floating-point numbers, NaN where it holds one.

    This takes a thirtieth of the time of checking each value.
    """
    from safetensors import safe_open

    names = check_tensors(path)
    with strangers(f"'{path}' is damaged", AGAIN), safe_open(str(path), framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            tensor = tensor.abs() if tensor.is_complex() else tensor
            if tensor.is_floating_point() and tensor.numel():
                yield name, *(tensor if tensor.dtype.itemsize > 1 else tensor.float()).aminmax()
