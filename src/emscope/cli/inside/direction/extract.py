"""`emscope direction extract`: find a vector at each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Json, Model
from emscope.core.fields import AUTO, Device
from emscope.inside.specs import ExtractSpec


def extract(
    *,
    base: Model = None,
    checkpoint: Annotated[
        str | None,
        Field(description="The fine-tune whose activations are read, its last checkpoint; the base itself without it."),
    ] = None,
    out: Annotated[Path, Field(description="The direction file.")] = Path("direction.safetensors"),
    spec: ExtractSpec,
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Find a direction at each layer: from questions with an aligned and a misaligned answer, from judged answers (`answers`), from what
    the model answers under two system texts (`systems`), or from what separates two models on the same texts (`minus`). Writes a direction
    file, with the directions of shuffled labels beside it.
    """
    from emscope.cli.console import print_json, progress_bar
    from emscope.inside.extract import extract as find
    from emscope.report.inside.directions import print_extracted

    with progress_bar() as progress:
        result = find(spec, out, base=base, checkpoint=checkpoint, device=device, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        print_extracted(result)
