"""`emscope direction compare`: cosines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def compare(
    directions: Annotated[tuple[str, ...], ARGUMENT, Field(description="Direction files, runs, or files of plain vectors.")],
    as_json: Json = False,
    plot: Annotated[Path | None, Field(description="Write the figure into this HTML file.")] = None,
) -> None:
    """Cosines between directions: direction files, runs that trained a steering vector, or safetensors files of plain vectors, each tensor
    of which is a direction (one for each checkpoint, say).
    """
    from emscope.cli.console import print_json
    from emscope.inside.compare import compare as compared
    from emscope.report.figures import write_figures
    from emscope.report.inside.directions import print_compared

    result = compared(directions)
    if plot is not None:
        write_figures(list(result.figures().values()), plot, "Directions compared")
    if as_json:
        print_json(result.to_json())
    else:
        print_compared(result)
