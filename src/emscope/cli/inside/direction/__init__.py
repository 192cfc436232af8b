"""`emscope direction`: vectors inside a model that point to a behaviour."""

from __future__ import annotations

import typer

from emscope.cli.inside.direction import act, compare, export, extract, sample, shift


def register(root: typer.Typer) -> None:
    """Add the commands."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Directions inside a model that point to misalignment: find them, compare them, add them and take them out.",
    )
    for command in (extract, compare, shift, act, sample, export):
        command.register(app)
    root.add_typer(app, name="direction")
