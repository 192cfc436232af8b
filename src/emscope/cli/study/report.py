"""`emscope report`: draw a finished study or check again."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("report", help="Write report.html of a finished study or check again and print its tables.")
    def report(
        study: Path = typer.Argument(..., help="The folder of a study or check."),
        json: bool = typer.Option(False, "--json", help="Print the report object instead of tables."),
    ) -> None:
        from emscope.cli.output import show
        from emscope.report.study.page import read_report

        show(read_report(study), study, as_json=json)
