"""`emscope status`: how far a study is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def status(
    study: Annotated[Path, ARGUMENT, Field(description="The folder of a study.")],
    every: Annotated[bool, Field(description="List every cell, not those alone that run or have failed.")] = False,
    as_json: Json = False,
) -> None:
    """How far is a study? Shows its cells that are finished, run, wait and have failed, with the reason, and the time left; from any
    terminal of any machine that sees the folder, while it runs or after.
    """
    from emscope.cli.console import print_json
    from emscope.report.study.standing import print_standing
    from emscope.study.cells.standing import standing

    found = standing(study)
    if as_json:
        print_json(found.to_json())
    else:
        print_standing(found, every=every)
