"""`emscope report`: draw a finished study or check again, and give its numbers to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json
from emscope.core.errors import InputError


def report(
    study: Annotated[Path, ARGUMENT, Field(description="The folder of a study or check.")],
    tables: Annotated[
        Path | None,
        Field(description="Write the numbers behind every figure and table into this folder, as CSV and Parquet."),
    ] = None,
    card: Annotated[bool, Field(description="Print a section for a model card, in Markdown, and nothing else.")] = False,
    as_json: Json = False,
) -> None:
    """Write report.html of a finished study or check again and print its tables."""
    from emscope.cli.output import show
    from emscope.report.study.card import card as card_of
    from emscope.report.study.exported import write_tables
    from emscope.study.report import read_report

    if card and as_json:
        raise InputError("`card` prints Markdown and `as_json` JSON", "give one of them")
    found = read_report(study)
    names = write_tables(found, study, tables) if tables is not None else []
    if card:
        print(card_of(found), end="")
        return
    show(found, study, as_json=as_json)
    if names and not as_json:
        print(f"tables: {tables} ({', '.join(names)})")
