"""Bands of null directions, shown beside whatever a direction does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.errors import InputError
from emscope.inside.direction_results import Band
from emscope.models.hooks.directions import Direction
from emscope.represent.nulls import isotropic

if TYPE_CHECKING:
    from torch import Tensor


def nulls_of(direction: Direction, control: Sequence[Direction], count: int, seed: int) -> dict[str, dict[int, Tensor]]:
    """Return {kind: {layer: [K, D]}}, each of the direction's length at that layer; nothing where `count` is 0.

    Args:
        control: directions of harmless fine-tunes. count: of each kind; controls are used as they are.

    Raises:
        InputError: a control that lacks a layer of the direction.
    """
    import torch

    nulls = {"isotropic": {n: isotropic(v, count, seed) for n, v in direction.vectors.items()}}
    nulls |= {kind: {n: v[:count].double() for n, v in by_layer.items()} for kind, by_layer in direction.nulls.items()}
    if control:
        lacking = [n for n in direction.vectors for c in control if n not in c.vectors]
        if lacking:
            raise InputError(f"a control direction has no vector for layer {lacking[0]}", "extract it at the same layers")
        nulls["control"] = {
            n: torch.stack([c.vectors[n].double() / c.vectors[n].double().norm() * v.double().norm() for c in control])
            for n, v in direction.vectors.items()
        }
    return nulls if count else {}


def band(draws: Sequence[float], value: float | None) -> Band:
    """Return what null directions do, and the share of them with as large an effect in either direction, counting the direction itself."""
    spread = np.array(draws)
    p = None if value is None else float((1 + (np.abs(spread) >= abs(value)).sum()) / (1 + len(spread)))
    return Band(tuple(map(float, draws)), float(spread.min()), float(spread.max()), float(spread.mean()), p)
