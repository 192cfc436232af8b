"""How far a study has got, for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from emscope.core.visible import one_line
from emscope.study.cells.standing import CellStanding, Standing


def print_standing(found: Standing, *, every: bool = False) -> None:
    """Print the counts, the time left, and the cells that run or have failed, or all."""
    console = Console(highlight=False, markup=False)
    total = len(found.cells)
    console.print(
        f"{found.study}: {found.finished} of {total} cells finished, {found.running} running, {found.waiting} waiting, {found.failed} failed"
    )
    if found.left:
        console.print(
            f"time left: about {span(found.seconds_left)}"
            if found.seconds_left is not None
            else f"time left: unknown ({found.why})"
        )
    shown = [cell for cell in found.cells if every or cell.state in ("running", "failed")]
    if shown:
        console.print(_table(shown))


def _table(cells: list[CellStanding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "state", "host", "seconds", "memory", "why"):
        table.add_column(name, justify="right" if name in ("seconds", "memory") else "left")
    for one in cells:
        where = one.host or "" if one.pid is None else f"{one.host} (process {one.pid})"
        seconds = f"{one.seconds:.0f}" if one.seconds is not None else ""
        memory = f"{one.peak_bytes / 1e9:.1f} GB" if one.peak_bytes else ""
        table.add_row(
            one.cell, one.state, where, seconds, memory, one_line(one.why or ""), style="red" if one.state == "failed" else None
        )
    return table


def span(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
