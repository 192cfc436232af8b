"""`emscope trajectories`: the paths of fine-tunes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json, Model
from emscope.core.fields import AUTO, Device


def trajectories(
    runs: Annotated[
        tuple[str, ...],
        ARGUMENT,
        Field(description="Folders of checkpoints: LoRA, steering vectors or full models of one base."),
    ],
    base: Model = None,
    out: Annotated[Path, Field(description="Folder of trajectories.json and figure.html.")] = Path("emscope-trajectories"),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Show where the checkpoints of several fine-tunes of one base lie in the space of their updates: on its main axes, by length, and by
    the cosine with each run's end. This shows whether a narrow fine-tune drifts to a general one once it is no longer restrained,
    or two seeds end in one place.
    """
    from emscope.cli.output import show_inside
    from emscope.inside.trajectories import trajectories as made
    from emscope.report.inside.trajectories import print_trajectories

    result = made(runs, out, base=base, device=device)
    show_inside(
        result, "Weight-space trajectories of fine-tunes", out / "trajectories.json", print_trajectories, as_json=as_json
    )
