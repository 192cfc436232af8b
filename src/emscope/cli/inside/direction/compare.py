"""`emscope direction compare`: cosines."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Cosines between directions: direction files, runs that trained a steering vector, or safetensors files of plain vectors, each tensor of "
    "which is a direction (one for each checkpoint, say)."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("compare", help=HELP)
    def compare(
        directions: list[str] = typer.Argument(..., help="Direction files, runs, or files of plain vectors."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
        plot: Path | None = typer.Option(None, "--plot", help="Write the figure into this HTML file."),
    ) -> None:
        from emscope.cli.console import print_json
        from emscope.inside.compare import compare as compared
        from emscope.report.figures import write_figures
        from emscope.report.inside.directions import print_compared

        result = compared(directions)
        if plot is not None:
            write_figures(list(result.figures().values()), plot, "Directions compared")
        if json:
            print_json(result.to_json())
        else:
            print_compared(result.to_json())
