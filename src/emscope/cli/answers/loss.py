"""`emscope loss`: does alignment fall with the loss, over runs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.runs.loss_spec import LossSpec
from emscope.cli.options import Files, Json


def loss(
    files: Annotated[Files, Field(description="Runs, one row each (.csv, .jsonl, .parquet).")],
    spec: LossSpec,
    figure: Annotated[Path | None, Field(description="Write a figure of the runs into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """Does a lower loss go with lower alignment? Takes a file with one row per run and prints both correlations and the slope within each
    stratum (`within`) and over strata. With `schedule` it compares schedules, or values of any setting, at equal loss.
    """
    from emscope.answers.runs.loss import loss_and_score
    from emscope.cli.console import print_json
    from emscope.report.answers.runs.loss import print_loss
    from emscope.report.figures import write_figures

    result = loss_and_score(files, spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Loss and score")
    if as_json:
        print_json(result.to_json())
    else:
        print_loss(result)
