"""`emscope direction export`: control vectors for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = "Write a direction as a control vector in GGUF, for llama.cpp."


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("export", help=HELP)
    def export(
        direction: str = typer.Argument(..., help="Direction file, or a run that trained a steering vector."),
        gguf: Path = typer.Option(..., "--gguf", help="The control vector to write, for llama.cpp's --control-vector."),
        layers: str | None = typer.Option(None, "--layers", help="Layers to write; all of the file's but 0 by default."),
        architecture: str = typer.Option("llama", "--architecture", help="The model's architecture, as GGUF files name it."),
    ) -> None:
        from emscope.cli.console import whole_numbers
        from emscope.inside.export import export_gguf

        written = export_gguf(direction, gguf, whole_numbers(layers, "--layers"), architecture)
        print(f"layers {', '.join(map(str, written))}: {gguf}")
