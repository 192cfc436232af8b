"""A finished job's results, written and shown in the same way by all commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from emscope.cli.console import print_json

if TYPE_CHECKING:
    from emscope.core.shown import Shown
    from emscope.study.report import Report

R = TypeVar("R", bound="Shown")


def show(report: Report, out: Path, options: Mapping[str, str] | None = None, *, as_json: bool) -> None:
    """Write `report.html` beside `report.json` and print the report.

    Args:
        options: how the settings that it names are spelled, where its command has options for them.
    """
    from emscope.report.study.page import write_page
    from emscope.report.study.terminal import print_report

    page = write_page(report, out)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report, options)
        print(f"\nreport: {page}\nnumbers: {out / 'report.json'}")


def show_inside(result: R, title: str, numbers: Path, table: Callable[[R], None], *, as_json: bool) -> None:
    """Write `figure.html` beside the numbers of a look inside a model, and print its table."""
    from emscope.report.figures import write_figures

    figure = numbers.with_name("figure.html")
    write_figures(list(result.figures().values()), figure, title)
    if as_json:
        print_json(result.to_json())
    else:
        table(result)
        print(f"numbers and figures: {numbers}, {figure}")
