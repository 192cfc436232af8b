"""Directions compared: cosines at each layer, and between the layers of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.inside.direction_results import BetweenLayers, Cosines, LayerCosines
from emscope.models.hooks.directions import FORMAT, direction_at
from emscope.represent.directions import cosines

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import Vectors


def compare(references: Sequence[str]) -> Cosines:
    """Return the cosines between directions at each layer that all of them have, and between the layers of each.

    Args:
        references: direction files, runs that trained a steering vector, or safetensors files of plain vectors, each of whose tensors is one
            direction (a run's checkpoints, say).

    Raises:
        InputError: fewer than two directions, or vectors of different widths.
    """
    import torch

    named: dict[str, Vectors] = {}
    for reference in references:
        for name, vectors in vectors_of(reference).items():
            if name in named:
                raise InputError(f"'{name}' is given twice", "name each direction once")
            named[name] = vectors
    if len(named) < 2:
        raise InputError(f"{len(named)} direction is given", "give two or more to compare")
    widths = {name: len(next(iter(v.values()))) for name, v in named.items()}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {w}" for name, w in widths.items())
        raise InputError(f"the directions are of different widths ({said})", "compare directions of one model")
    shared = sorted(set.intersection(*(set(v) for v in named.values())))
    if not shared:
        raise InputError("the directions have no layer in common", "extract them at the same layers")
    rows = {n: torch.stack([v[n] for v in named.values()]) for n in shared}
    width = next(iter(widths.values()))
    return Cosines(
        directions=tuple(named),
        width=width,
        random_sd=width**-0.5,
        layers=tuple(LayerCosines(n if n >= 0 else None, tuple(r.norm(dim=-1).tolist()), _matrix(r)) for n, r in rows.items()),
        between_layers={name: _between_layers(v) for name, v in named.items() if len(v) > 1},
    )


def _matrix(rows: Tensor) -> tuple[tuple[float, ...], ...]:
    """Return the cosines between rows [N, D]."""
    return tuple(map(tuple, cosines(rows, rows).tolist()))


def _between_layers(vectors: Vectors) -> BetweenLayers:
    """Return the cosines [L, L] between the layers of one direction."""
    import torch

    layers = sorted(vectors)
    return BetweenLayers(tuple(layers), _matrix(torch.stack([vectors[n] for n in layers])))


def vectors_of(reference: str) -> dict[str, Vectors]:
    """Return the directions of a file or run by name, each {layer: [D]}; plain vectors are stored under layer -1.

    Raises:
        InputError: there are none.
    """
    from safetensors import safe_open

    from emscope.models.loading.checkpoints import check_tensors

    path = Path(reference).expanduser()
    if not path.is_file():
        return {reference: direction_at(reference).vectors}
    names = check_tensors(path)
    with safe_open(str(path), framework="pt") as file:
        if (file.metadata() or {}).get("format") == FORMAT:
            return {reference: direction_at(reference).vectors}
        found = {name: file.get_tensor(name).flatten().float() for name in names}
    if not found:
        raise InputError(f"'{path}' holds no vector", "give a direction file")
    return {name: {-1: v} for name, v in found.items()}
