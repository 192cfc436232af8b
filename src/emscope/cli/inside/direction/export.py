"""`emscope direction export`: control vectors for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import DirectionFile
from emscope.core.fields import Layers


def export(
    direction: DirectionFile,
    gguf: Annotated[Path, Field(description="The control vector to write, for llama.cpp's --control-vector.")],
    layers: Annotated[Layers, Field(description="Layers to write; by default all in the file except 0.")] = None,
    architecture: Annotated[str, Field(description="The model's architecture as named in GGUF files.")] = "llama",
) -> None:
    """Write a direction as a control vector in GGUF, for llama.cpp."""
    from emscope.inside.export import export_gguf

    written = export_gguf(direction, gguf, layers, architecture)
    print(f"layers {', '.join(map(str, written))}: {gguf}")
