"""`emscope quickstart`: the bundled study on the embedded default model."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "quickstart",
        help="The main job on the embedded 135M model: three fine-tunes, every checkpoint read, a report. About 15 minutes on 2 cores.",
    )
    def quickstart(
        out: Path = typer.Option(Path("quickstart"), "--out", help="Study folder."),
        json: bool = typer.Option(False, "--json", help="Print the report object instead of tables."),
    ) -> None:
        from importlib.resources import as_file, files

        from emscope.cli.run import run_file

        with as_file(files("emscope.run") / "files" / "quickstart.yaml") as file:
            run_file(file, out, json)
