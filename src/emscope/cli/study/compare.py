"""`emscope compare`: finished studies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Files, Json


def compare(
    studies: Annotated[Files, Field(description="Folders of two or more finished studies or checks.")],
    page: Annotated[Path | None, Field(description="Write the comparison into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """How do finished studies or checks differ? Takes two or more folders and compares each with the first: settings, the effect of each way of
    training with the interval of the difference, paired by item where the items are the same, what it says, verdicts before and after.
    """
    from emscope.cli.console import print_json
    from emscope.report.study.compare import print_comparison, write_comparison
    from emscope.study.compare import compare_studies

    result = compare_studies(studies)
    if page is not None:
        write_comparison(result, page)
    if as_json:
        print_json(result.to_json())
    else:
        print_comparison(result)
