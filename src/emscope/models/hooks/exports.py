"""Directions in the formats of other programs: GGUF control vectors of llama.cpp, vectors of the steering-vectors library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emscope.models.hooks.directions import Direction

if TYPE_CHECKING:
    from steering_vectors import SteeringVector

    from emscope.models.types import Vectors


def write_control_vector(path: Path, vectors: Vectors, architecture: str) -> None:
    """Write {block: [D]} as GGUF: tensor `direction.<n>`, float32, is added after block n.

    Args:
        vectors: of blocks from 1 on; the format has no place for block 0. architecture: its name in the model's own GGUF file.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", architecture)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for n, vector in sorted(vectors.items()):
        writer.add_tensor(f"direction.{n}", vector.detach().cpu().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def steering_vector(direction: Direction) -> SteeringVector:
    """Return the direction as a `SteeringVector` of the library steering-vectors, which must be installed.

    Its `apply(model)` adds the vectors after the same blocks.
    """
    from steering_vectors import SteeringVector

    return SteeringVector(dict(direction.vectors), "decoder_block")
