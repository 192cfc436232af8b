"""What `emscope doctor --model` found, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.study.doctor import WEIGHTS, Diagnosis, Room, Speed
from emscope.study.examining import Passed

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {Passed.PASS: "green", Passed.FAIL: "red", Passed.NOT_APPLICABLE: "yellow"}
GB = 1e9


def print_diagnosis(found: Diagnosis) -> None:
    """Print what was examined, each check, memory, speed, what is untested and what will work."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 120)
    what = "the weights themselves" if found.examined == WEIGHTS else "a tiny random copy of its structure"
    console.print(f"{found.model}: {found.architecture}, {found.counted.parameters / 1e9:.3g} billion parameters", style="bold")
    console.print(f"  examined: {what} ({found.why})")
    checks = Table(box=None, pad_edge=True, show_header=False)
    for column in ("check", "outcome"):
        checks.add_column(column, no_wrap=True)
    checks.add_column("sentence")
    for finding in found.findings:
        checks.add_row(finding.check, Text(finding.outcome, style=STYLES[finding.outcome]), finding.sentence)
    console.print(checks)
    console.print(f"\nMemory on {found.device}, predicted{_free(found.free)}", style="bold")
    console.print(_memory(found.memory))
    for why in dict.fromkeys(f"{r.work}: {r.why}" for r in found.memory if r.why):
        console.print(f"  {why}", style="dim")
    console.print(f"\n{_speed(found.speed)}")
    if found.untested:
        console.print(f"No test of this version of emscope covers: {'; '.join(found.untested)}.", style="yellow")
    console.print("\nWhat will work", style="bold")
    for sentence in found.works:
        console.print(f"  {sentence}")


def _free(free: int | None) -> str:
    return "" if free is None else f" ({free / GB:.1f} GB are free)"


def _memory(rooms: Sequence[Room]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=True, header_style="dim")
    dtypes = list(dict.fromkeys(r.dtype for r in rooms))
    table.add_column("work", no_wrap=True)
    for dtype in dtypes:
        table.add_column(f"{dtype} [GB]", justify="right", no_wrap=True)
    by = {(r.work, r.dtype): r for r in rooms}
    for work in dict.fromkeys(r.work for r in rooms):
        cells = []
        for dtype in dtypes:
            room = by[work, dtype]
            text = "–" if room.need is None else f"{room.need.total / GB:.1f}"
            cells.append(Text(text, style={True: "green", False: "red", None: ""}[room.fits]))
        table.add_row(work, *cells)
    return table


def _speed(speed: Speed) -> str:
    if speed.gflops is None:
        return f"Speed was not measured: {speed.why}."
    return (
        f"This machine reaches {speed.gflops:.0f} GFLOP/s in float32 matrix products. That allows at most {speed.reading:.3g} tokens/s when "
        f"reading and {speed.training:.3g} when training adapters (ignoring the head and attention over long texts)."
    )
