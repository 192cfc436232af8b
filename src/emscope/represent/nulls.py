"""Null directions, for the bands that a real direction must exceed.

A random vector alone is too easy: activations lie along few directions, so that any direction made from activations has more
effect than an isotropic one, whatever its purpose. (ours)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.core.seeds import derive
from emscope.represent.directions import Finder

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from emscope.models.types import Vector

KINDS = ("isotropic", "permuted", "matched", "control")


def isotropic(direction: Vector, count: int, seed: int) -> Tensor:
    """Return random vectors [count, D] of the length of `direction` [D].

    The unit vector is drawn first: `randn * ||v||` would be sqrt(D) times too long.
    """
    import torch

    drawn = torch.randn(count, len(direction), generator=_generator(seed, "isotropic"), dtype=torch.float64)
    return _of_length(drawn, direction)


def permuted(find: Finder, positive: Tensor, negative: Tensor, direction: Vector, count: int, seed: int) -> Tensor:
    """Return directions [count, D] found after the labels were shuffled, with the length of `direction` [D].

    With pairs (as many rows on both sides) each is flipped or not by a fair coin; otherwise all labels are reshuffled.
    """
    import torch

    generator = _generator(seed, "permuted")
    rows = torch.cat([positive, negative])
    found = []
    for _ in range(count):
        if len(positive) == len(negative):
            turned = (torch.rand(len(positive), generator=generator) < 0.5)[:, None]
            sides = torch.where(turned, negative, positive), torch.where(turned, positive, negative)
        else:
            dealt = rows[torch.randperm(len(rows), generator=generator)]
            sides = dealt[: len(positive)], dealt[len(positive) :]
        found.append(find(*sides))
    return _of_length(torch.stack(found), direction)


def matched(rows: Tensor, direction: Vector, count: int, seed: int) -> Tensor:
    """Return normal vectors [count, D] with the covariance of the activations `rows` [N, D] and the length of `direction` [D]."""
    import torch

    centred = (rows - rows.mean(0)).double()
    weights = torch.randn(count, len(rows), generator=_generator(seed, "matched"), dtype=torch.float64)
    return _of_length(weights @ centred, direction)


def _of_length(vectors: Tensor, direction: Vector) -> Tensor:
    return vectors.double() / vectors.double().norm(dim=-1, keepdim=True) * direction.double().norm()


def _generator(seed: int, kind: str) -> Generator:
    import torch

    return torch.Generator().manual_seed(derive(seed, "null", kind))
