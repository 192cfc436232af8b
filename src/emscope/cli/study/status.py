"""`emscope status`: how far a study has got."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def status(
    study: Annotated[Path, ARGUMENT, Field(description="The folder of a study.")],
    every: Annotated[bool, Field(description="List every cell, not only those that run or have failed.")] = False,
    as_json: Json = False,
) -> None:
    """How far along is a study? Shows which cells are finished, running, waiting or failed, with the reason, and the time left, from any
    terminal on any machine that sees the folder, during the run or after it.
    """
    from emscope.cli.console import print_json
    from emscope.report.study.standing import print_standing
    from emscope.study.cells.standing import standing

    found = standing(study)
    if as_json:
        print_json(found.to_json())
    else:
        print_standing(found, every=every)
