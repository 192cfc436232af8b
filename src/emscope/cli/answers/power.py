"""`emscope power`: how many seeds, questions and answers does a study need?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.planning.power_spec import PowerSpec
from emscope.cli.options import ARGUMENT, Json


def power(
    spec: PowerSpec,
    file: Annotated[
        Path | None,
        ARGUMENT,
        Field(description="Judged answers of several seeds, or a study's folder, to measure the standard deviations on."),
    ] = None,
    figure: Annotated[Path | None, Field(description="Write power curves into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """How many seeds, questions and answers does a study need? Prints for each design what it costs in answers, how wide its intervals
    will be, and with what chance it finds em and safe, from how much seeds, questions and answers vary.
    """
    from emscope.answers.planning.power import plan_power
    from emscope.cli.console import print_json
    from emscope.report.answers.power import print_power
    from emscope.report.figures import write_figures

    result = plan_power(file, spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Power")
    if as_json:
        print_json(result.to_json())
    else:
        print_power(result)
