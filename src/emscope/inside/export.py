"""Directions for other programs."""

from __future__ import annotations

from pathlib import Path

from emscope.core.errors import InputError
from emscope.models.hooks.directions import direction_at
from emscope.models.hooks.exports import write_control_vector
from emscope.store.files import write_atomic


def export_gguf(direction: str, path: Path, layers: tuple[int, ...] | None, architecture: str) -> list[int]:
    """Write a direction as a GGUF control vector; return the layers in it.

    Raises:
        InputError: layers that the direction does not have, or layer 0, which such a file cannot hold.
    """
    vectors = direction_at(direction).vectors
    chosen = [n for n in vectors if n] if layers is None else list(layers)
    lacking = [n for n in chosen if n not in vectors]
    if lacking:
        said = ", ".join(map(str, vectors))
        raise InputError(f"'{direction}' has no vector for layer {lacking[0]}", f"it has layers {said}")
    if 0 in chosen or not chosen:
        raise InputError("a control vector has no place for layer 0", "choose later layers with `layers`")
    write_atomic(path, lambda temporary: write_control_vector(temporary, {n: vectors[n] for n in chosen}, architecture))
    return chosen
