"""`emscope subspaces`: where a fine-tune's shifts lie."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Read how far fine-tunes move the activations of other prompts inside the space in which they move those of training prompts, and whether a prompt's place before "
    "the fine-tune says so; beside random subspaces and prompts held out of training."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("subspaces", help=HELP)
    def subspaces(
        checkpoint: list[str] = typer.Option(
            ..., "--checkpoint", help="A fine-tune, its last checkpoint; may be given several times."
        ),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoints name."),
        train: str = typer.Option("finance", "--train", help="The training prompts: bundled domain, or file of conversations."),
        questions: str = typer.Option("em240", "--questions", help="The other prompts: bundled set or file."),
        layers: str | None = typer.Option(None, "--layers", help="Such as 8,12,16; 0 is the first block. All by default."),
        pool: str = typer.Option("last", "--pool", help="last: the prompt's last token; prompt: the mean over it."),
        ks: str = typer.Option("1,2,5,10,20,50", "--ks", help="Directions that the subspace has."),
        held: int = typer.Option(5, "--held", help="Keep every so-many-th training prompt out of the subspace."),
        count: int | None = typer.Option(None, "--count", help="Use so many prompts of each kind."),
        random_seeds: int = typer.Option(5, "--random", help="Random subspaces to compare with."),
        system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
        out: Path = typer.Option(
            Path("emscope-subspaces"), "--out", help="Folder of activations, subspaces.json and figure.html."
        ),
        seed: int = typer.Option(0, "--seed", help="Random seed."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar, whole_numbers
        from emscope.core.spec import parse
        from emscope.inside.subspaces import SubspaceSpec, compare_subspaces
        from emscope.report.figures import write_figures
        from emscope.report.inside.subspaces import print_subspaces

        settings = {
            "train": train,
            "questions": questions,
            "layers": whole_numbers(layers, "--layers"),
            "pool": pool,
            "ks": whole_numbers(ks, "--ks"),
            "held": held,
            "count": count,
            "random_seeds": random_seeds,
            "system": system,
            "seed": seed,
        }
        with progress_bar() as progress:
            result = compare_subspaces(
                checkpoint, parse(SubspaceSpec, settings, "options"), out, base=model, device=device, progress=progress
            )
        write_figures(list(result.figures().values()), out / "figure.html", "Where the shifts lie")
        if json:
            print_json(result.to_json())
        else:
            print_subspaces(result.to_json())
            print(f"numbers and figures: {out / 'subspaces.json'}, {out / 'figure.html'}")
