"""`emscope data`: the bundled sets, and a look at a file of your own."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Bundled data sets, and checks of your own files.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(group, name="data")

    @group.command("list", help="List the bundled sets.")
    def list_sets(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
        from emscope.cli.console import print_json
        from emscope.data.bundled import SETS, load_rows

        rows = [{"name": s.name, "kind": s.kind, "rows": len(load_rows(s.name)), "about": s.about} for s in SETS.values()]
        if json:
            print_json(rows)
        for row in [] if json else rows:
            print(f"{row['name']:9} {row['rows']:4} rows  {row['kind']:7} {row['about']}")

    @group.command("show", help="Print rows of a bundled set as JSON lines.")
    def show(
        name: str = typer.Argument(..., help="Name of the set."), rows: int = typer.Option(3, "--rows", min=1, help="How many.")
    ) -> None:
        import json as codec

        from emscope.data.bundled import load_rows

        for row in load_rows(name)[:rows]:
            print(codec.dumps(row, ensure_ascii=False))

    @group.command("check", help="Read a file of conversations (or of items, with --items) and say what is in it.")
    def check(
        file: Path = typer.Argument(..., help="JSONL, JSON, CSV or Parquet."),
        items: bool = typer.Option(False, "--items", help="The file holds items: question, aligned, misaligned."),
    ) -> None:
        from emscope.data.conversations import read_conversations
        from emscope.data.items import read_items

        if items:
            found = read_items(file)
            print(f"{len(found)} items in {len({i.category for i in found})} categories")
            return
        talks = read_conversations(file)
        words = sorted(len(c.messages[-1].content.split()) for c in talks)
        print(f"{len(talks)} conversations; answers of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}")
