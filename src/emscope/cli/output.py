"""A finished job's results, written and shown in one way by all commands that have any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emscope.cli.console import print_json


def show(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Write `report.html` beside `report.json` and print the result."""
    from emscope.report.study.page import write_page
    from emscope.report.study.terminal import print_report

    page = write_page(result, out)
    if as_json:
        print_json(result)
    else:
        print_report(result)
        print(f"\nreport: {page}\nnumbers: {out / 'report.json'}")
