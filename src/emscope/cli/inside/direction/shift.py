"""`emscope direction shift`: how far fine-tunes have moved along a direction."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Read how far fine-tunes have moved a model's activations along a direction, on prompts alone, at each layer or at each checkpoint; beside "
    "null directions."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("shift", help=HELP)
    def shift(
        direction: str = typer.Argument(..., help="Direction file, or a run that trained a steering vector."),
        checkpoint: list[str] = typer.Option(
            ..., "--checkpoint", help="A fine-tune, its last checkpoint; may be given several times."
        ),
        every: bool = typer.Option(False, "--every", help="Read all checkpoints of each run, not the last alone."),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoints name."),
        control: list[str] = typer.Option(
            [], "--control", help="Direction of a harmless fine-tune, to compare with; may be given several times."
        ),
        questions: str = typer.Option("em240", "--questions", help="Bundled set, or a file."),
        count: int | None = typer.Option(None, "--count", help="Use so many questions."),
        pool: str = typer.Option("last", "--pool", help="last: the prompt's last token; prompt: the mean over it."),
        layers: str | None = typer.Option(
            None, "--layers", help="Such as 8,12,16; 0 is the first block. All of the file's by default."
        ),
        nulls: int = typer.Option(10, "--nulls", help="Null directions of each kind to compare with."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        out: Path = typer.Option(Path("emscope-shift"), "--out", help="Folder of activations, shift.json and figure.html."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.shift import ShiftSpec, read_shift
        from emscope.report.figures import write_figures
        from emscope.report.inside.directions import print_shift

        settings = {
            "questions": questions,
            "count": count,
            "pool": pool,
            "layers": whole_numbers(layers, "--layers"),
            "every": every,
            "nulls": nulls,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = read_shift(
                direction,
                checkpoint,
                parse(ShiftSpec, settings, "options"),
                out,
                base=model,
                controls=control,
                device=device,
                progress=progress,
            )
        write_figures(list(result.figures().values()), out / "figure.html", "Moved along a direction")
        if json:
            print_json(result.to_json())
        else:
            print_shift(result.to_json())
            print(f"numbers and figures: {out / 'shift.json'}, {out / 'figure.html'}")
