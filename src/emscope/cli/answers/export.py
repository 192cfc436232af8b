"""`emscope export`: judged answers as Inspect logs."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Write judged answers as Inspect logs, one for each group, to look through them with `inspect view`. `emscope rates`, "
    "`agreement` and `distil` read Inspect's logs in turn, these and any other."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("export", help=HELP)
    def export(
        files: list[Path] = typer.Argument(..., help="Judged answers (.csv, .jsonl, .parquet)."),
        out: Path = typer.Option(Path("emscope-logs"), "--out", help="Folder of the logs."),
        by: str | None = typer.Option(None, "--by", help="Columns whose values make a log each, such as run,step."),
        scores: str | None = typer.Option(
            None, "--scores", help="Columns of scores; by default those that have a NAME_outcome beside them."
        ),
        question: str | None = typer.Option(
            None, "--question", help="Column of the question's text; auto-detected by default."
        ),
        answer: str | None = typer.Option(None, "--answer", help="Column of the answer's text; auto-detected by default."),
        task: str = typer.Option("emscope", "--task", help="Name of the task in the logs."),
    ) -> None:
        from emscope.answers.export import export_logs
        from emscope.cli.console import listed, progress_bar

        with progress_bar() as progress:
            written = export_logs(
                files,
                out,
                by=listed(by) or (),
                scores=listed(scores) or (),
                question=question,
                answer=answer,
                task=task,
                progress=progress,
            )
        print(f"{len(written)} logs in {out}; look at them with: inspect view --log-dir {out}")
