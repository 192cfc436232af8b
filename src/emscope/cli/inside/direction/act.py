"""`emscope direction steer` and `emscope direction ablate`: what adding a direction or taking it out does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

STEER = (
    "Add a direction to a model, at each layer and strength, and read how its preference between aligned and misaligned answers moves, beside "
    "null directions: random ones, random ones with the activations' covariance, those of shuffled labels, those of harmless fine-tunes."
)
ABLATE = "Take a direction out of a model and read how its preference moves, beside null directions."


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("steer", help=STEER)(_tries("add"))
    app.command("ablate", help=ABLATE)(_tries("ablate"))


def _tries(way: str) -> Callable[..., None]:
    """Return the command that tries directions by adding them or by taking them out: they share all options but the scales."""

    def run(
        directions: list[str] = typer.Argument(
            ..., help="Direction files, or runs that trained a steering vector; several are averaged."
        ),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoint names."),
        checkpoint: list[str] = typer.Option(
            [],
            "--checkpoint",
            help="Act in this fine-tune, its last checkpoint; once for all directions, or once for each. The base without it.",
        ),
        control: list[str] = typer.Option(
            [], "--control", help="Direction of a harmless fine-tune, to compare with; may be given several times."
        ),
        out: Path = typer.Option(
            Path("emscope-steer" if way == "add" else "emscope-ablate"),
            "--out",
            help="Folder of scores, report.json and figure.html.",
        ),
        layers: str | None = typer.Option(
            None, "--layers", help="Such as 8,12,16; 0 is the first block. All of the file's by default."
        ),
        together: bool = typer.Option(
            False, "--together", help="Act at all these layers at once; by default at one at a time."
        ),
        scales: str = typer.Option(
            "-2,-1,1,2", "--scales", help="What the direction is multiplied by.", hidden=way == "ablate"
        ),
        update: bool = typer.Option(
            False,
            "--update",
            help="Take it out of what the LoRA fine-tune itself writes into the stream, and leave the stream alone.",
            hidden=way == "add",
        ),
        tokens: str = typer.Option("all", "--tokens", help="Act at all tokens, at the prompt's or at the answer's."),
        items: str = typer.Option("em240", "--items", help="Bundled set, or file with question, aligned and misaligned."),
        half: str = typer.Option("both", "--half", help="A or B: the half that the direction was not found on."),
        count: int | None = typer.Option(None, "--count", help="Use so many items."),
        neutral: int = typer.Option(0, "--neutral", help="Also read so many neutral texts: what it does to anything else."),
        truth: int = typer.Option(
            0, "--truth", help="Also read so many questions on misconceptions: is the true answer the likeliest?"
        ),
        nulls: int = typer.Option(5, "--nulls", help="Try so many null directions of each kind."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar, real_numbers, whole_numbers
        from emscope.core.errors import InputError
        from emscope.core.spec import parse
        from emscope.inside.steer import SteerSpec, steer
        from emscope.report.figures import write_figures
        from emscope.report.inside.directions import print_steered

        if update and way == "add":
            raise InputError("--update stands with steer", "it belongs to ablate")
        settings = {
            "way": "ablate_update" if update else way,
            "layers": whole_numbers(layers, "--layers"),
            "together": together,
            "scales": real_numbers(scales, "--scales"),
            "tokens": tokens,
            "items": items,
            "half": half,
            "count": count,
            "neutral": neutral,
            "truth": truth,
            "nulls": nulls,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = steer(
                directions,
                parse(SteerSpec, settings, "options"),
                out,
                base=model,
                checkpoints=checkpoint,
                controls=control,
                device=device,
                progress=progress,
            )
        write_figures(list(result.figures().values()), out / "figure.html", "What a direction does")
        if json:
            print_json(result.to_json())
        else:
            print_steered(result.to_json())
            print(f"numbers and figure: {out / 'report.json'}, {out / 'figure.html'}")

    return run
