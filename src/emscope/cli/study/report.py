"""`emscope report`: draw a finished study or check again, and give its numbers to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json, spellings
from emscope.core.errors import InputError

if TYPE_CHECKING:
    from emscope.study.report import Report


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
    from jinja2 import TemplateError

    from emscope.core.limits import consistent
    from emscope.study.report import AGAIN, read_report

    if card and as_json:
        raise InputError("`card` prints Markdown and `as_json` JSON", "give one of them")
    found = read_report(study)
    with consistent(f"'{study / 'report.json'}'", AGAIN, TemplateError):
        _told(found, study, tables, card, as_json)


def _told(found: Report, study: Path, tables: Path | None, card: bool, as_json: bool) -> None:
    """Write and print the requested parts of a report."""
    from emscope.cli.output import show
    from emscope.cli.study.check import check
    from emscope.report.study.card import card as card_of
    from emscope.report.study.exported import write_tables
    from emscope.study.report import FolderChecked

    names = write_tables(found, study, tables) if tables is not None else []
    if card:
        print(card_of(found), end="")
        return
    show(found, study, spellings(check) if isinstance(found, FolderChecked) else None, as_json=as_json)
    if names and not as_json:
        print(f"tables: {tables} ({', '.join(names)})")
