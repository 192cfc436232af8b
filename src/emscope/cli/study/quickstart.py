"""`emscope quickstart`: the bundled study on an embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Json


def quickstart(
    out: Annotated[Path | None, Field(description="Study folder; by default quickstart, or quickstart-small.")] = None,
    small: Annotated[bool, Field(description="A 135M model and advice about money, for slow machines.")] = False,
    as_json: Json = False,
) -> None:
    """The main job on an embedded 1.5B model: a reckless and a careful fine-tune, what they say and prefer beside their base, a report.
    `small`: on a 135M model.
    """
    from importlib.resources import as_file, files

    from emscope.cli.study.run import run_file

    with as_file(files("emscope.study") / "files" / "quickstart.yaml") as file:
        run_file(file, out, as_json, small)
