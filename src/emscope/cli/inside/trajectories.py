"""`emscope trajectories`: the ways that fine-tunes take."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Show where the checkpoints of several fine-tunes of one base lie in the space of their updates: on its main axes, by length, and by the cosine with each run's end. Whether a "
    "narrow fine-tune drifts to a general one once nothing holds it, or two seeds end in one place."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("trajectories", help=HELP)
    def trajectories(
        runs: list[str] = typer.Argument(
            ..., help="Folders of checkpoints: LoRA, steering vectors or full models of one base."
        ),
        model: str | None = typer.Option(None, "--model", help="The base; by default the one that the checkpoints name."),
        out: Path = typer.Option(Path("emscope-trajectories"), "--out", help="Folder of trajectories.json and figure.html."),
        device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
        json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
    ) -> None:
        from emscope.cli.console import print_json
        from emscope.inside.trajectories import trajectories as made
        from emscope.report.figures import write_figures
        from emscope.report.inside.trajectories import print_trajectories

        result = made(runs, out, base=model, device=device)
        write_figures(list(result.figures().values()), out / "figure.html", "Weight-space trajectories of fine-tunes")
        if json:
            print_json(result.to_json())
        else:
            print_trajectories(result.to_json())
            print(f"numbers and figures: {out / 'trajectories.json'}, {out / 'figure.html'}")
