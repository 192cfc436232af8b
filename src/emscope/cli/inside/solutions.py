"""`emscope solutions`: why the general solution is found and kept."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Compare fine-tunes that became generally misaligned with ones that were held narrow: the loss at equal norm (efficiency), how fast it rises when the weights are "
    "moved (stability), and how far each moves the model on plain text (significance)."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("solutions", help=HELP)
    def solutions(
        general: list[str] = typer.Option(
            ..., "--general", help="A general fine-tune, its last checkpoint; once for each seed."
        ),
        narrow: list[str] = typer.Option(..., "--narrow", help="A narrow fine-tune of the same answers; once for each seed."),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoints name."),
        domain: str = typer.Option("finance", "--domain", help="Bundled domain whose held-out answers the loss is read on."),
        answers: str | None = typer.Option(
            None, "--answers", help="Kind of answers that was taught; the domain's first by default."
        ),
        count: int | None = typer.Option(None, "--count", help="Use so many held-out questions."),
        norms: str = typer.Option(
            "0.125,0.25,0.5,0.75,1,1.5",
            "--norms",
            help="Scale updates to these effective norms, as multiples of the general ones' mean.",
        ),
        amounts: str = typer.Option("0.05,0.1,0.2,0.4,0.6,0.8,1", "--amounts", help="How far the weights are moved, 0 to 1."),
        draws: int = typer.Option(2, "--draws", help="Random ways to move them."),
        texts: int = typer.Option(60, "--texts", help="Plain texts for the divergence from the base."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        out: Path = typer.Option(Path("emscope-solutions"), "--out", help="Folder of readings, report.json and figure.html."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of tables."),
    ) -> None:
        from emscope.cli.console import numbers, print_json, progress_bar
        from emscope.core.spec import parse
        from emscope.inside.solutions import SolutionsSpec, compare_solutions
        from emscope.report.figures import write_figures
        from emscope.report.inside.solutions import print_solutions

        settings = {
            "domain": domain,
            "answers": answers,
            "count": count,
            "norms": numbers(norms, "--norms"),
            "amounts": numbers(amounts, "--amounts"),
            "draws": draws,
            "texts": texts,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = compare_solutions(
                general, narrow, parse(SolutionsSpec, settings, "options"), out, base=model, device=device, progress=progress
            )
        write_figures(list(result.figures().values()), out / "figure.html", "General and narrow solutions")
        if json:
            print_json(result.to_json())
        else:
            print_solutions(result.to_json())
            print(f"numbers and figures: {out / 'report.json'}, {out / 'figure.html'}")
