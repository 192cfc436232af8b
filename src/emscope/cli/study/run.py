"""`emscope run`: a study from its YAML file."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(
        "run",
        help="Run a study from its YAML file: train, read every checkpoint, analyse, report. Run again, it does only what is missing.",
    )
    def run(
        study: Path = typer.Argument(..., help="The study's YAML file."),
        out: Path | None = typer.Option(None, "--out", help="Study folder; by default the study's name in the current folder."),
        small: bool = typer.Option(False, "--small", help="Lay the file's settings under `small` over the rest."),
        json: bool = typer.Option(False, "--json", help="Print the report object instead of tables."),
    ) -> None:
        run_file(study, out, json, small)


def run_file(file: Path, out: Path | None, as_json: bool, small: bool = False) -> None:
    """Run the study in `file` into `out` and show what came of it."""
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show
    from emscope.study.spec import load_study

    spec = load_study(file, small)
    folder = out or Path(spec.name)
    from emscope.study.run import run_study

    with progress_bar() as progress:
        result = run_study(spec, folder, progress)
    if result:  # of several processes the first one's
        show(result, folder, as_json=as_json)
