"""`emscope models`: models with a short name, fetched and converted ahead of time."""

from __future__ import annotations

from typing import Any

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Models with a short name.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name="models")

    @group.command("list", help="List the short names and whether each is in the cache.")
    def list_models(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
        from emscope.cli.console import print_json
        from emscope.models.loading.aliases import ALIASES, cached
        from emscope.models.loading.source import cache_folder

        rows: list[dict[str, Any]] = [
            {
                "name": n,
                "source": w.wheels[0] if len(w.wheels) == 1 else f"{w.wheels[0]} to {w.wheels[-1]}",
                "sha256": w.gguf_sha256,
                "licence": w.licence,
                "parameters": w.parameters,
                "cached": cached(n, cache_folder()),
            }
            for n, w in ALIASES.items()
        ]
        if json:
            print_json(rows)
        for row in [] if json else rows:
            print(
                f"{row['name']}  {row['parameters'] / 1e6:.0f}M parameters  {row['licence']}  {row['source']}  {'cached' if row['cached'] else 'not fetched'}"
            )

    @group.command("fetch", help="Fetch and convert a model, so that everything works offline afterwards.")
    def fetch(name: str = typer.Argument(..., help="Short name, hub id, folder or gguf:FILE.")) -> None:
        from emscope.models.loading.quiet import quiet
        from emscope.models.loading.source import locate

        quiet()
        model = locate(name)
        print(f"{model.folder}\nweights {model.digest[:16]}")
