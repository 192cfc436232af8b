"""`emscope direction sample`: answers while a direction is added or taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.sample_spec import AskSpec
from emscope.cli.options import Behind, DirectionFile, Model, Without
from emscope.core.fields import AUTO, Device, Dtype, Layers, Nulls, Reals
from emscope.inside.specs import SteerSpec


def sample(
    *,
    direction: DirectionFile,
    base: Model = None,
    checkpoint: Annotated[
        str | None, Field(description="Act in this fine-tune, its last checkpoint; the base without it.")
    ] = None,
    layers: Annotated[Layers, Field(description="Layers to act at; by default all in the file.")] = None,
    together: Annotated[bool, Field(description="Act at all these layers at once; by default one at a time.")] = False,
    scales: Annotated[
        Reals, Field(description="What the direction is multiplied by; the untouched model is always asked too.")
    ] = (1.0, 2.0),
    ablate: Annotated[bool, Field(description="Take the direction out instead of adding it.")] = False,
    nulls: Annotated[Nulls, Field(description="Also sample under this many null directions of each kind.")] = 0,
    spec: Annotated[AskSpec, Without(("triggers", "only_last"))],
    out: Annotated[Path, Behind("systems"), Field(description="Folder of the answers.")] = Path("emscope-steered-answers"),
    dtype: Dtype = AUTO,
    device: Device = AUTO,
) -> None:
    """Sample answers while a direction is added or taken out, one run name for each layer and strength. `emscope judge` and
    `emscope rates --group run` take the resulting file.
    """
    from emscope.cli.console import progress_bar
    from emscope.inside.steered_answers import sample_steered

    acting = SteerSpec(
        way="ablate" if ablate else "add",
        layers=layers,
        together=together,
        scales=scales,
        nulls=nulls,
        dtype=dtype,
        seed=spec.seed,
    )
    with progress_bar() as progress:
        path = sample_steered(direction, acting, spec, out, base=base, checkpoint=checkpoint, device=device, progress=progress)
    print(f"answers: {path}")
