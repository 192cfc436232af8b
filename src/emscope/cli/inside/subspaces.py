"""`emscope subspaces`: where a fine-tune's shifts lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Behind, Checkpoints, Json, Model
from emscope.core.fields import AUTO, Device
from emscope.inside.specs import SubspaceSpec


def subspaces(
    *,
    checkpoints: Checkpoints,
    base: Model = None,
    spec: SubspaceSpec,
    out: Annotated[Path, Behind("system"), Field(description="Folder of activations, subspaces.json and figure.html.")] = Path(
        "emscope-subspaces"
    ),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Read how far fine-tunes move the activations of other prompts inside the space in which they move those of training prompts, and
    whether a prompt's place before the fine-tune predicts it; beside random subspaces and prompts held out of training.
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.subspaces import compare_subspaces
    from emscope.report.inside.subspaces import print_subspaces

    with progress_bar() as progress:
        result = compare_subspaces(checkpoints, spec, out, base=base, device=device, progress=progress)
    show_inside(result, "Where the shifts lie", out / "subspaces.json", print_subspaces, as_json=as_json)
