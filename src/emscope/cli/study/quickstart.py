"""`emscope quickstart`: the bundled study on an embedded model."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "The main job on an embedded 1.5B model: a reckless and a careful fine-tune, what they say and prefer beside their base, a report. "
    "--small: on a 135M model."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("quickstart", help=HELP)
    def quickstart(
        out: Path | None = typer.Option(None, "--out", help="Study folder; by default quickstart, or quickstart-small."),
        small: bool = typer.Option(False, "--small", help="A 135M model and advice about money, for slow machines."),
        json: bool = typer.Option(False, "--json", help="Print the report object instead of tables."),
    ) -> None:
        from importlib.resources import as_file, files

        from emscope.cli.study.run import run_file

        with as_file(files("emscope.study") / "files" / "quickstart.yaml") as file:
            run_file(file, out, json, small)
