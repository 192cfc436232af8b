"""`emscope sizes`: does misalignment go with model size?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.runs.sizes_spec import SizesSpec
from emscope.cli.options import Files, Json


def sizes(
    files: Annotated[Files, Field(description="Models, one row each (.csv, .jsonl, .parquet).")],
    spec: SizesSpec,
    figure: Annotated[Path | None, Field(description="Write a figure of each stratum into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """Does an effect vary with model size? Takes a file with one row per model, and prints the slope per decade of parameters within families by
    meta-regression, a permutation p, the correlation beside its critical value, and every leave-k-out range.
    """
    from emscope.answers.runs.sizes import sizes as by_size
    from emscope.cli.console import print_json
    from emscope.report.answers.runs.sizes import print_sizes
    from emscope.report.figures import write_figures

    result = by_size(files, spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Size")
    if as_json:
        print_json(result.to_json())
    else:
        print_sizes(result)
