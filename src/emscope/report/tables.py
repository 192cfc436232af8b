"""The look that all tables in a terminal share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from emscope.core.outcomes import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STYLES = {
    State.SAFE: "green",
    State.EM: "red",
    State.MOVED: "red",
    State.STYLE_DRIFT: "magenta",
    State.CONTROL_MOVED: "cyan",
    State.UNDETERMINED: "yellow",
}


def terminal(width: int, dim: Iterable[str] = ()) -> Console:
    """Return a terminal that shows texts as they are, wide enough that rows wrap, not cells; `dim` sentences are printed first."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = width
    for sentence in dim:
        console.print(sentence, style="dim", soft_wrap=True)
    return console


def table(words: Sequence[str] = (), numbers: Sequence[str] = (), *, longest: int | None = None) -> Table:
    """Return an empty table: columns of words on the left, of numbers on the right; words are cut after `longest` characters."""
    from rich.table import Table

    found = Table(box=None, pad_edge=True, header_style="dim")
    for name in words:
        found.add_column(name, no_wrap=True, overflow="ellipsis", max_width=longest)
    for name in numbers:
        found.add_column(name, justify="right", no_wrap=True)
    return found
