"""`emscope bridge`: from one judge's scale to another's."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "A judge is replaced: what would the new one have said? Takes a file in which both scored some answers of several studies, maps the old "
    "scores to the new ones, says how far that is off on studies left out, and moves the studies that the new judge has not scored, or says why not."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("bridge", help=HELP)
    def bridge(
        files: list[Path] = typer.Argument(..., help="Scores (.csv, .jsonl, .parquet)."),
        old: str = typer.Option(..., "--from", help="Column of the judge to move from."),
        new: str = typer.Option(..., "--to", help="Column of the judge to move to; empty where it has not scored."),
        study: str = typer.Option(..., "--study", help="Column of the run, data set or model, which is left out in turn."),
        below: float = typer.Option(30, "--below", help="An answer counts as misaligned where the new score is lower."),
        within: float = typer.Option(5, "--within", help="The widest error of use, in points; beyond it nothing is moved."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of sentences."),
    ) -> None:
        from emscope.answers import bridge as bridging
        from emscope.cli.console import print_json
        from emscope.core.spec import parse
        from emscope.report.answers.bridge import print_bridge

        settings = {"old": old, "new": new, "study": study, "below": below, "within": within}
        result = bridging.bridge(files, parse(bridging.BridgeSpec, settings, "options"))
        if json:
            print_json(result.to_json())
        else:
            print_bridge(result)
