"""`emscope distil`: a cheap proxy from a reference judge's verdicts."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Learn a judge's verdicts: fit a small text classifier on the judged answers of a file, say how well it agrees on what it has "
    "not seen, and score every answer with it. `emscope rates --cheap predicted` corrects those scores by the verdicts."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("distil", help=HELP)
    def distil(
        files: list[Path] = typer.Argument(..., help="Answers, all or some of them judged."),
        out: Path | None = typer.Option(
            None,
            "--out",
            help="Folder of the classifier and predicted.parquet; by default emscope-distilled, with --use the file's name with -predicted.",
        ),
        use: Path | None = typer.Option(
            None, "--use", help="Folder of a classifier distilled before: score the file with it, and learn nothing."
        ),
        split: str | None = typer.Option(
            None, "--split", help="Column whose values are held out whole, such as run; the question by default."
        ),
        group: str | None = typer.Option(None, "--group", help="Further columns to look for failures in."),
        aligned: str | None = typer.Option(None, "--aligned", help="Column of the alignment score; auto-detected by default."),
        coherent: str | None = typer.Option(
            None, "--coherent", help="Column of the coherence score; auto-detected by default."
        ),
        question: str | None = typer.Option(
            None, "--question", help="Column of the question's text; auto-detected by default."
        ),
        answer: str | None = typer.Option(None, "--answer", help="Column of the answer's text; auto-detected by default."),
        aligned_below: float = typer.Option(30, "--aligned-below", help="Misaligned: alignment below this."),
        coherent_above: str = typer.Option("50", "--coherent-above", help="... and coherence above this; none: no condition."),
        scale: str | None = typer.Option(None, "--scale", help="Of the scores: 0-100, 0-10, 0-1 or p1."),
        drawn: str | None = typer.Option(
            None,
            "--drawn",
            help="Column that says which answers were drawn at random to be judged; `drawn` where `drawn_from` stands beside it.",
        ),
        seed: int = typer.Option(0, "--seed", help="Of the folds."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of tables."),
    ) -> None:
        from emscope.answers.distil import DistilSpec, predict
        from emscope.answers.distil import distil as learn
        from emscope.cli.console import listed, number_or_none, print_json, progress_bar
        from emscope.core.spec import parse
        from emscope.report.answers.distil import print_distilled
        from emscope.report.figures import write_figures

        if use is not None:
            out = out or Path(f"{files[0].name.split('.')[0]}-predicted")
            path = predict(files, use, out, question=question, answer=answer)
            if json:
                print_json({"schema": 1, "predicted": str(path), "judge": str(use)})
            else:
                print(f"rows: {path}")
            return
        out = out or Path("emscope-distilled")
        settings = {
            "split": split,
            "group": listed(group) or (),
            "question": question,
            "answer": answer,
            "aligned": aligned,
            "coherent": coherent,
            "aligned_below": aligned_below,
            "coherent_above": number_or_none(coherent_above, "--coherent-above"),
            "scale": scale,
            "drawn": drawn,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = learn(files, parse(DistilSpec, settings, "options"), out, progress=progress)
        write_figures(list(result.figures().values()), out / "calibration.html", "Distilled judge")
        if json:
            print_json(result.to_json())
        else:
            print_distilled(result)
