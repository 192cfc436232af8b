"""`emscope diff`: a base and a fine-tune of it side by side."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Compare a fine-tune with its base from the inside: how far their predictions are apart behind each block (logit lens), at which tokens, the spectrum of the update, and "
    "for rank-1 adapters what their scalars tell."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("diff", help=HELP)
    def diff(
        checkpoint: str = typer.Argument(..., help="The fine-tune, its last checkpoint."),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
        items: str = typer.Option("em240", "--items", help="Bundled set, or file with question, aligned and misaligned."),
        half: str = typer.Option("both", "--half", help="A or B: one half of the items."),
        count: int = typer.Option(60, "--count", help="Use so many items, both answers of each."),
        layers: str | None = typer.Option(
            None, "--layers", help="Such as 8,12,16; 0 is the first block. Ten spread over the model by default."
        ),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        out: Path = typer.Option(Path("emscope-diff"), "--out", help="Folder of the base's states, diff.json and figure.html."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of tables."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.diff import DiffSpec
        from emscope.inside.diff import diff as compare
        from emscope.report.figures import write_figures
        from emscope.report.inside.diff import print_diff

        settings = {
            "items": items,
            "half": half,
            "count": count,
            "layers": whole_numbers(layers, "--layers"),
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = compare(
                checkpoint, parse(DiffSpec, settings, "options"), out, base=model, device=device, progress=progress
            )
        write_figures(list(result.figures().values()), out / "figure.html", "Base and fine-tune")
        if json:
            print_json(result.to_json())
        else:
            print_diff(result.to_json())
            print(f"numbers and figures: {out / 'diff.json'}, {out / 'figure.html'}")
