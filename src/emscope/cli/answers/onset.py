"""`emscope onset`: when did it begin, from a file of values along training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.onset_spec import OnsetSpec
from emscope.cli.options import Files, Json


def onset(
    files: Annotated[Files, Field(description="Values along training (.csv, .jsonl, .parquet).")],
    spec: OnsetSpec,
    figure: Annotated[Path | None, Field(description="Write a figure of each run into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """From which step on is a fine-tune misaligned? Takes a file with values along training: any column (`value`), or judged answers by
    their two thresholds. With `unit` the states rest on intervals; with `arm` and `control` the verdict can be em.
    """
    from emscope.answers.onset import follow
    from emscope.cli.console import print_json
    from emscope.report.answers.onset import print_onset
    from emscope.report.figures import write_figures

    result = follow(files, spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Onset")
    if as_json:
        print_json(result.to_json())
    else:
        print_onset(result)
