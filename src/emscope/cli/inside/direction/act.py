"""`emscope direction steer` and `emscope direction ablate`: what adding a direction or taking it out does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Behind, Controls, Json, Model, Without
from emscope.core.fields import AUTO, Device, Flag
from emscope.inside.specs import SteerSpec

Directions = Annotated[
    tuple[str, ...],
    ARGUMENT,
    Field(description="Direction files, or runs that trained a steering vector; several are averaged."),
]
Tuned = Annotated[
    tuple[str, ...],
    Flag("--checkpoint", repeated=True),
    Field(
        description="Act in this fine-tune (its last checkpoint) instead of the base; once for all directions, or once for each."
    ),
]
OUT = "Folder of scores, report.json and figure.html."


def steer(
    *,
    directions: Directions,
    base: Model = None,
    checkpoints: Tuned = (),
    controls: Controls = (),
    out: Annotated[Path, Field(description=OUT)] = Path("emscope-steer"),
    spec: Annotated[SteerSpec, Without(("way",))],
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Add a direction to a model, at each layer and strength, and read how its preference between aligned and misaligned answers moves,
    beside null directions: random ones, random ones with the activations' covariance, those of shuffled labels, those of harmless
    fine-tunes.
    """
    _try(directions, spec, out, base, checkpoints, controls, device, as_json=as_json)


def ablate(
    *,
    directions: Directions,
    base: Model = None,
    checkpoints: Tuned = (),
    controls: Controls = (),
    out: Annotated[Path, Field(description=OUT)] = Path("emscope-ablate"),
    update: Annotated[
        bool,
        Behind("together"),
        Field(description="Take it out of what the LoRA fine-tune itself writes into the stream, and leave the stream alone."),
    ] = False,
    spec: Annotated[SteerSpec, Without(("way", "scales"))],
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Take a direction out of a model and read how its preference moves, beside null directions."""
    spec = spec.model_copy(update={"way": "ablate_update" if update else "ablate"})
    _try(directions, spec, out, base, checkpoints, controls, device, as_json=as_json)


def _try(
    directions: Sequence[str],
    spec: SteerSpec,
    out: Path,
    base: str | None,
    checkpoints: Sequence[str],
    controls: Sequence[str],
    device: str,
    *,
    as_json: bool,
) -> None:
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.steer import steer as tried
    from emscope.report.inside.directions import print_steered

    with progress_bar() as progress:
        result = tried(
            directions,
            spec,
            out,
            base=base,
            checkpoints=checkpoints,
            controls=controls,
            device=device,
            progress=progress,
        )
    show_inside(result, "What a direction does", out / "report.json", print_steered, as_json=as_json)
