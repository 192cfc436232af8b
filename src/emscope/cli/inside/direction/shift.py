"""`emscope direction shift`: how far fine-tunes have moved along a direction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Behind, Checkpoints, Controls, DirectionFile, Json, Model
from emscope.core.fields import AUTO, Device
from emscope.inside.specs import ShiftSpec


def shift(
    *,
    direction: DirectionFile,
    checkpoints: Checkpoints,
    base: Annotated[Model, Behind("every")] = None,
    controls: Annotated[Controls, Behind("base")] = (),
    spec: ShiftSpec,
    out: Annotated[Path, Behind("system"), Field(description="Folder of activations, shift.json and figure.html.")] = Path(
        "emscope-shift"
    ),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Read how far fine-tunes have moved a model's activations along a direction, on prompts alone, at each layer or at each checkpoint,
    beside null directions.
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.shift import read_shift
    from emscope.report.inside.directions import print_shift

    with progress_bar() as progress:
        result = read_shift(direction, checkpoints, spec, out, base=base, controls=controls, device=device, progress=progress)
    show_inside(result, "Moved along a direction", out / "shift.json", print_shift, as_json=as_json)
