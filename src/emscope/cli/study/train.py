"""`emscope train`: one fine-tune by itself."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("train", help="Fine-tune once: LoRA adapters from conversations, checkpoints at a plan. Resumes by itself.")
    def train(
        spec: Path = typer.Argument(
            ..., help="YAML file with model, data (bundled domain and answers, or a file), seed and train settings."
        ),
        out: Path = typer.Option(..., "--out", help="Folder for the checkpoints."),
        json: bool = typer.Option(False, "--json", help="Print the readings instead of a summary."),
    ) -> None:
        from emscope.cli.console import print_json, progress_bar
        from emscope.core.spec import load
        from emscope.study.train import SingleSpec, run_single
        from emscope.train import processes

        settings = load(SingleSpec, spec)
        with progress_bar() as progress:
            result = run_single(settings, out, progress)
        if not processes.is_first():
            return
        if json:
            print_json(result)
        else:
            first, last = result["readings"][0], result["readings"][-1]
            print(
                f"loss {first['loss']:.3f} -> {last['loss']:.3f} nats per answer token in {last['step']} steps; checkpoints in {out}"
            )
