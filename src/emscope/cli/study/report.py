"""`emscope report`: draw a finished study or check again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def report(
    study: Annotated[Path, ARGUMENT, Field(description="The folder of a study or check.")], as_json: Json = False
) -> None:
    """Write report.html of a finished study or check again and print its tables."""
    from emscope.cli.output import show
    from emscope.core.limits import consistent
    from emscope.study.report import AGAIN, read_report

    found = read_report(study)
    with consistent(f"'{study / 'report.json'}'", AGAIN):
        show(found, study, as_json=as_json)
