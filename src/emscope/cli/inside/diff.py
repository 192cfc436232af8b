"""`emscope diff`: a base and a fine-tune of it side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Behind, Json, Model
from emscope.core.fields import AUTO, Device
from emscope.inside.specs import DiffSpec


def diff(
    *,
    checkpoint: Annotated[str, ARGUMENT, Field(description="The fine-tune, its last checkpoint.")],
    base: Model = None,
    spec: DiffSpec,
    out: Annotated[Path, Behind("system"), Field(description="Folder of the base's states, diff.json and figure.html.")] = Path(
        "emscope-diff"
    ),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Compare a fine-tune with its base from the inside: how far apart their predictions are after each block (logit lens), at which
    tokens, the spectrum of the update, and for rank-1 adapters what their scalars show.
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.diff import diff as compare
    from emscope.report.inside.diff import print_diff

    with progress_bar() as progress:
        result = compare(checkpoint, spec, out, base=base, device=device, progress=progress)
    show_inside(result, "Base and fine-tune", out / "diff.json", print_diff, as_json=as_json)
