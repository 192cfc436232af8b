"""`emscope solutions`: why the general solution is found and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Behind, Json, Model
from emscope.core.fields import AUTO, Device, Flag
from emscope.inside.specs import SolutionsSpec


def solutions(
    *,
    general: Annotated[
        tuple[str, ...],
        Flag(repeated=True),
        Field(description="A general fine-tune, its last checkpoint; once for each seed."),
    ],
    narrow: Annotated[
        tuple[str, ...],
        Flag(repeated=True),
        Field(description="A narrow fine-tune of the same answers; once for each seed."),
    ],
    base: Model = None,
    spec: SolutionsSpec,
    out: Annotated[Path, Behind("system"), Field(description="Folder of readings, report.json and figure.html.")] = Path(
        "emscope-solutions"
    ),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Compare fine-tunes that became generally misaligned with ones that were kept narrow: the loss at equal norm (efficiency), how fast it
    rises when the weights are moved (stability), and how far each moves the model on plain text (significance).
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.solutions import compare_solutions
    from emscope.report.inside.solutions import print_solutions

    with progress_bar() as progress:
        result = compare_solutions(general, narrow, spec, out, base=base, device=device, progress=progress)
    show_inside(result, "General and narrow solutions", out / "report.json", print_solutions, as_json=as_json)
