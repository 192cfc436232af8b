"""`emscope shifts`: what fine-tuning did to each question's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.runs.shifts_spec import ShiftsSpec
from emscope.cli.options import Files, Json


def shifts(
    files: Annotated[Files, Field(description="Judged answers; with several files, the column `file` says which one.")],
    spec: ShiftsSpec,
    figure: Annotated[Path | None, Field(description="Write a figure of each comparison into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """How did fine-tuning move the scores of the same questions? Takes judged answers and compares each question's mean and standard
    deviation before and after: paired and unpaired tests, correlation, slope, and the slope corrected for the sampling of a
    question's answers.
    """
    from emscope.answers.runs.shifts import shifts as moved
    from emscope.cli.console import print_json
    from emscope.report.answers.runs.shifts import print_shifts
    from emscope.report.figures import write_figures

    result = moved(files, spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Score shifts")
    if as_json:
        print_json(result.to_json())
    else:
        print_shifts(result)
