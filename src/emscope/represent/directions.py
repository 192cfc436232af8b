"""Directions that separate two sets of activations, and how reliable they are.

A finder is a function from two sets of rows [N, D], of answers with and without the behaviour, to one vector [D] that points to the
behaviour. All finders give it the same length: the distance of the two means along it, so that adding it once moves an activation
from one mean to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.seeds import derive

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import Vector

Finder = Callable[["Tensor", "Tensor"], "Tensor"]
SPLITS = 50


def mean_difference(positive: Tensor, negative: Tensor) -> Vector:
    """Return mean(positive) - mean(negative) [D] of rows [N, D] and [M, D]. (convergent directions, Soligo et al. 2025 section 2)"""
    return positive.double().mean(0) - negative.double().mean(0)


def principal(positive: Tensor, negative: Tensor) -> Vector:
    """Return the first principal direction [D] of the differences of pairs [N, D], about zero.

    About zero, so that what all pairs share is in it; without pairs (N is not M) of the rows about the middle of both means.
    """
    import torch

    positive, negative = positive.double(), negative.double()
    between = mean_difference(positive, negative)
    if len(positive) == len(negative):
        rows = positive - negative
    else:
        rows = torch.cat([positive, negative]) - (positive.mean(0) + negative.mean(0)) / 2
    return _along(torch.linalg.svd(rows, full_matrices=False).Vh[0], between)


def logistic(positive: Tensor, negative: Tensor) -> Vector:
    """Return the direction [D] of an L2 logistic regression on standardised activations, carried back to their own units.

    The penalty (C = 1 over N rows) matters where rows are fewer than D, as they are here. (scikit-learn's)
    """
    import torch
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([positive.double(), negative.double()])
    scale = rows.std(0)
    scale[scale == 0] = 1.0
    labels = [1] * len(positive) + [0] * len(negative)
    fit = LogisticRegression(max_iter=2000).fit(((rows - rows.mean(0)) / scale).numpy(), labels)
    return _along(torch.from_numpy(fit.coef_[0]) / scale, mean_difference(positive, negative))


FINDERS: dict[str, Finder] = {"mean": mean_difference, "pca": principal, "logistic": logistic}


def _along(vector: Vector, between: Vector) -> Vector:
    """Return the projection of `between` on the line of `vector`: its orientation and length are those of the difference of means."""
    unit = vector / vector.norm()
    return unit * (unit @ between)


def check_sides(positive: Sized, negative: Sized, what: str) -> None:
    """Reject sides too small for a direction.

    Raises:
        InputError: fewer than two rows on a side.
    """
    for side, rows in (("with", positive), ("without", negative)):
        if len(rows) < 2:
            raise InputError(
                f"{what}: {len(rows)} answers {side} the behaviour",
                "a direction needs at least two on each side; change the thresholds",
            )


@dataclass(frozen=True, slots=True)
class Halves:
    """Cosine of the directions of two random halves: mean, and the range that holds 95 % of the splits; `splits` many."""

    mean: float
    low: float
    high: float
    splits: int


def split_half(
    find: Finder,
    positive: Tensor,
    negative: Tensor,
    units: tuple[Sequence[str], Sequence[str]],
    *,
    splits: int = SPLITS,
    seed: int = 0,
) -> Halves | None:
    """Return how similar the directions of two halves of the questions are; None with fewer than four questions.

    A question's answers stay in one half, on both sides, so that its topic is not in both directions. (ours)

    Args:
        positive, negative: rows [N, D] and [M, D]; units: the question of each row.
    """
    import torch

    names = sorted({*units[0], *units[1]})
    sides = [
        (positive, torch.tensor([names.index(u) for u in units[0]])),
        (negative, torch.tensor([names.index(u) for u in units[1]])),
    ]
    found = []
    for n in range(splits if len(names) >= 4 else 0):
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(derive(seed, "halves", n)))
        inside = torch.zeros(len(names), dtype=torch.bool)
        inside[order[: len(names) // 2]] = True
        parts = [[rows[inside[unit] == half] for rows, unit in sides] for half in (True, False)]
        if all(len(rows) >= 2 for part in parts for rows in part):
            found.append(cosine(*(find(*part) for part in parts)))
    if not found:
        return None
    values = torch.tensor(found, dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Halves(float(values.mean()), low, high, len(found))


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors [D]; 0 where one of them is zero."""
    size = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / size if size > 0 else 0.0


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each of `rows` [N, D] with each of `others` [M, D] as [N, M]; 0 for a zero vector."""
    import torch

    a, b = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (rows, others))
    return a @ b.T
