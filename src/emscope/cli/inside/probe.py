"""`emscope probe`: what activations before a fine-tune say about its answers."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Predict each question's score after a fine-tune from a model's activations before it, with folds that keep a question's forms together, beside what its words and "
    "its category say."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("probe", help=HELP)
    def probe(
        scores: Path = typer.Argument(..., help="Judged answers of the fine-tune: one row an answer."),
        questions: str = typer.Option(..., "--questions", help="The questions that were asked: bundled set or file."),
        model: list[str] = typer.Option(..., "--model", help="Model whose activations are read; may be given several times."),
        score: str | None = typer.Option(
            None, "--score", help="Column of the score; by default the alignment score, auto-detected."
        ),
        question: str | None = typer.Option(
            None, "--question", help="Column of the question's id or text; auto-detected by default."
        ),
        where: list[str] = typer.Option([], "--where", help="Keep the rows with this value, as column=value; may be repeated."),
        layers: str | None = typer.Option(None, "--layers", help="Such as 8,12,16; 0 is the first block. All by default."),
        pool: str = typer.Option("last", "--pool", help="last: the prompt's last token; prompt: the mean over it."),
        k: int = typer.Option(150, "--k", help="Directions to project on."),
        estimators: str = typer.Option("ridge", "--estimators", help="Of ols, ridge, lasso, tree, with commas between."),
        random_seeds: int = typer.Option(0, "--random", help="Also so many sets of random directions."),
        folds: int = typer.Option(5, "--folds", help="Parts that the questions are split in."),
        repeats: int = typer.Option(10, "--repeats", help="Times that they are split."),
        permutations: int = typer.Option(0, "--permutations", help="Shuffles of the scores, for a permutation test."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        out: Path = typer.Option(Path("emscope-probe"), "--out", help="Folder of activations, probe.json and figure.html."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import listed, pairs, print_json, progress_bar, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.probe import ProbeSpec, run_probe
        from emscope.report.figures import write_figures
        from emscope.report.inside.probe import print_probed

        settings = {
            "questions": questions,
            "score": score,
            "question": question,
            "where": pairs(where, "--where"),
            "layers": whole_numbers(layers, "--layers"),
            "pool": pool,
            "k": k,
            "estimators": listed(estimators),
            "random_seeds": random_seeds,
            "folds": folds,
            "repeats": repeats,
            "permutations": permutations,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = run_probe(scores, model, parse(ProbeSpec, settings, "options"), out, device=device, progress=progress)
        write_figures(list(result.figures().values()), out / "figure.html", "Prior probe")
        if json:
            print_json(result.to_json())
        else:
            print_probed(result.to_json())
            print(f"numbers and figure: {out / 'probe.json'}, {out / 'figure.html'}")
