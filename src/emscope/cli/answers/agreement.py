"""`emscope agreement`: do the judges agree?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.agreement_spec import AgreementSpec
from emscope.cli.options import Files, Json


def agreement(
    files: Annotated[Files, Field(description="Scores (.csv, .jsonl, .parquet).")],
    spec: AgreementSpec,
    figure: Annotated[Path | None, Field(description="Write Bland-Altman figures of all pairs into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """How far do judges of the same answers agree? Takes a file with one row per score (`item`, `rater`, `score`) or one column per judge
    (`scores`) and prints Krippendorff's alpha, and for each pair rank correlation, kappa at the threshold, bias, and the
    threshold for one that matches the other's.
    """
    from emscope.answers.agreement import agreement as agreed
    from emscope.answers.agreement import read
    from emscope.cli.console import print_json
    from emscope.report.answers.agreement import print_agreement
    from emscope.report.figures import write_figures

    result = agreed(read(files, spec), spec)
    if figure is not None:
        write_figures(list(result.figures().values()), figure, "Agreement of raters")
    if as_json:
        print_json(result.to_json())
    else:
        print_agreement(result)
