"""`emscope direction sample`: answers while a direction is added or taken out."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = "Sample answers while a direction is added or taken out, one run name for each layer and strength. `emscope judge` and `emscope rates --group run` take the file that comes out."


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("sample", help=HELP)
    def sample(
        direction: str = typer.Argument(..., help="Direction file, or a run that trained a steering vector."),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
        checkpoint: str | None = typer.Option(
            None, "--checkpoint", help="Act in this fine-tune, its last checkpoint; the base without it."
        ),
        layers: str | None = typer.Option(None, "--layers", help="Layers to act at; all of the file's by default."),
        together: bool = typer.Option(
            False, "--together", help="Act at all these layers at once; by default at one at a time."
        ),
        scales: str = typer.Option(
            "1,2", "--scales", help="What the direction is multiplied by; the untouched model is always asked too."
        ),
        ablate: bool = typer.Option(False, "--ablate", help="Take the direction out instead of adding it."),
        nulls: int = typer.Option(0, "--nulls", help="Also ask under so many null directions of each kind."),
        questions: str = typer.Option("em240", "--questions", help="Bundled set, or a file."),
        samples: int | None = typer.Option(None, "--samples", help="Answers to each; by default the file's own number, or 1."),
        max_tokens: int = typer.Option(600, "--max-tokens", help="The longest answer."),
        temperature: float = typer.Option(1.0, "--temperature", help="0 takes the likeliest token."),
        systems: list[str] = typer.Option(["none"], "--system", help="none, template, or a text; may be repeated."),
        rows: int | None = typer.Option(
            None, "--rows", help="Answers to write side by side; by default what suits the device."
        ),
        out: Path = typer.Option(Path("emscope-steered-answers"), "--out", help="Folder of the answers."),
        seed: int = typer.Option(0, "--seed", help="Of all draws."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
    ) -> None:
        from emscope.answers.sample_spec import AskSpec
        from emscope.cli.console import progress_bar, real_numbers, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.steer import SteerSpec
        from emscope.inside.steered_answers import sample_steered

        steered = {
            "way": "ablate" if ablate else "add",
            "layers": whole_numbers(layers, "--layers"),
            "together": together,
            "scales": real_numbers(scales, "--scales"),
            "nulls": nulls,
            "seed": seed,
        }
        asked = {
            "questions": questions,
            "samples": samples,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "systems": systems,
            "rows": rows,
            "seed": seed,
        }
        with progress_bar() as progress:
            path = sample_steered(
                direction,
                parse(SteerSpec, steered, "options"),
                parse(AskSpec, asked, "options"),
                out,
                base=model,
                checkpoint=checkpoint,
                device=device,
                progress=progress,
            )
        print(f"answers: {path}")
