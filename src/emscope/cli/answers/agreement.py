"""`emscope agreement`: do the judges agree?"""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "How far do judges of the same answers agree? Takes a file with a row a score (--item, --rater, --score) or a column a judge "
    "(--scores) and prints Krippendorff's alpha, and for each pair rank correlation, kappa at the threshold, bias, and which "
    "threshold of one does what the other's does."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("agreement", help=HELP)
    def agreement(
        files: list[Path] = typer.Argument(..., help="Scores (.csv, .jsonl, .parquet)."),
        item: str | None = typer.Option(None, "--item", help="Column of the answer that was scored; auto-detected by default."),
        rater: str | None = typer.Option(None, "--rater", help="Column of who scored it; auto-detected by default."),
        score: str | None = typer.Option(None, "--score", help="Column of the score; auto-detected by default."),
        scores: str | None = typer.Option(None, "--scores", help="Columns of which each is a rater's, with commas between."),
        question: str | None = typer.Option(None, "--question", help="Column of the question; auto-detected by default."),
        threshold: float = typer.Option(30, "--threshold", help="An answer counts as misaligned below this score."),
        human: str | None = typer.Option(None, "--human", help="The rater to take as the truth."),
        scale: str | None = typer.Option(
            None,
            "--scale",
            help="Lowest and highest score, such as 0,3: what lies outside is no rating. all: every number is one. By default marks of failed verdicts, such as -1 or 999 far from all other scores, are none.",
        ),
        seed: int = typer.Option(0, "--seed", help="Of the resamples that the interval of a carried threshold rests on."),
        figure: Path | None = typer.Option(
            None, "--figure", help="Write Bland-Altman figures of all pairs into this .html file."
        ),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of tables."),
    ) -> None:
        from emscope.answers import agreement as run
        from emscope.cli.console import listed, print_json, real_numbers
        from emscope.core.spec import parse
        from emscope.report.answers.agreement import print_agreement
        from emscope.report.figures import write_figures

        settings = {
            "item": item,
            "rater": rater,
            "score": score,
            "scores": listed(scores) or (),
            "question": question,
            "threshold": threshold,
            "human": human,
            "seed": seed,
            "scale": scale if scale in (None, "all") else real_numbers(str(scale), "--scale"),
        }
        spec = parse(run.AgreementSpec, settings, "options")
        result = run.agreement(run.read(files, spec), spec)
        if figure is not None:
            write_figures(list(result.figures().values()), figure, "Agreement of raters")
        if json:
            print_json(result.to_json())
        else:
            print_agreement(result)
