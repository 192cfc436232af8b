"""How far a fine-tune's shifts on other prompts lie in the space of its shifts on training prompts. (Zhang et al. 2026)

A shift is an activation after the fine-tune less the one before, of one prompt at one place. All functions take rows [N, D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import Vector


@dataclass(frozen=True, slots=True)
class Subspace:
    """The main directions of a set of rows about their mean.

    Attributes:
        mean: mu [D]. basis: orthonormal rows P [K, D], by variance, largest first. variances: of the rows along them [K].
    """

    mean: Vector
    basis: Tensor
    variances: Tensor

    @property
    def rank(self) -> int:
        """K."""
        return len(self.basis)

    def leading(self, k: int) -> Subspace:
        """Return the subspace of the first k directions.

        Raises:
            InputError: k is above the rank.
        """
        check_rank(k, self.rank)
        return Subspace(self.mean, self.basis[:k], self.variances[:k])


def check_rank(k: int, rank: int) -> None:
    """Reject more directions than there are.

    Raises:
        InputError: with both numbers.
    """
    if not 1 <= k <= rank:
        raise InputError(f"k is {k}, but these rows span {rank} directions", f"use k from 1 to {rank}, or give more prompts")


def principal_subspace(rows: Tensor, k: int | None = None) -> Subspace:
    """Return the first k principal directions of rows [N, D] about their mean; all that rows span without k.

    Raises:
        InputError: fewer than two rows, or k above their rank.
    """
    import torch

    rows = rows.double()
    if len(rows) < 2:
        raise InputError(f"{len(rows)} prompts span no subspace", "give two or more")
    mean = rows.mean(0)
    _, values, basis = torch.linalg.svd(rows - mean, full_matrices=False)
    rank = int((values > values[0] * 1e-10).sum()) if float(values[0]) > 0 else 0
    check_rank(1 if k is None else k, rank)
    kept = k or rank
    return Subspace(mean, basis[:kept], values[:kept] ** 2 / (len(rows) - 1))


def random_subspace(like: Subspace, seed: int) -> Subspace:
    """Return as many random orthonormal directions about the same mean; a row's overlap with them is about sqrt(K / D)."""
    import torch

    generator = torch.Generator().manual_seed(derive(seed, "subspace"))
    drawn = torch.randn(like.basis.shape[1], like.rank, generator=generator, dtype=torch.float64)
    return Subspace(like.mean, torch.linalg.qr(drawn).Q.T, torch.ones(like.rank, dtype=torch.float64))


def overlap(space: Subspace, rows: Tensor) -> Tensor:
    """Return ||P^T P (x - mu)|| / ||x - mu|| of each row [N], from 0 to 1; 0 where a row is the mean. (Zhang et al. 2026)"""
    import torch

    centred = rows.double() - space.mean
    size = centred.norm(dim=-1)
    inside = (centred @ space.basis.T).norm(dim=-1)
    return torch.where(size > 0, inside / size.clamp(min=1e-300), torch.zeros_like(size))


def explained(space: Subspace, rows: Tensor) -> Tensor:
    """Return 1 - ||x - rec||^2 / ||x||^2 of each row [N], rec = mu + P^T P (x - mu); may be below 0. (Zhang et al. 2026)"""
    rows = rows.double()
    centred = rows - space.mean
    rest = centred - centred @ space.basis.T @ space.basis
    return 1 - rest.square().sum(-1) / rows.square().sum(-1)


def mahalanobis(space: Subspace, rows: Tensor) -> Tensor:
    """Return the distance of each row from the mean inside the subspace, in standard deviations of the rows it was made of [N]. (Zhang et al. 2026)"""
    inside = (rows.double() - space.mean) @ space.basis.T
    return (inside.square() / space.variances).sum(-1).sqrt()


def similarity(rows: Tensor, mean: Vector) -> Tensor:
    """Return the cosine of each row with a mean [D]; of shifts with the mean training shift it is P2's shift similarity."""
    import torch

    return torch.nn.functional.cosine_similarity(rows.double(), mean.double()[None], dim=-1)


def principal_angles(a: Subspace, b: Subspace) -> Tensor:
    """Return the cosines of the principal angles between two subspaces, largest first. (Bjorck and Golub 1973)"""
    import torch

    return torch.linalg.svdvals(a.basis @ b.basis.T).clamp(max=1.0)
