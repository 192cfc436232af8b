"""The same results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from emscope.report import words

STYLES = {"safe": "green", "em": "red", "undetermined": "yellow"}


def print_report(report: dict[str, Any]) -> None:
    """Print headline, checkpoint table and the first caveat of each target run."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 118)  # the checkpoint table needs it; narrower terminals wrap lines, not cells
    for run in report["runs"]:
        if "check" not in run:
            continue
        check = run["check"]
        console.print(f"\n{run['run']}", style="bold")
        for sentence in words.headline(check):
            console.print(f"  {sentence}")
        console.print(_table(check))
        console.print(f"  {words.caveats(report, check)[0]}", style="dim")
    for style in report.get("style", []):
        share = f", {style['share_of_target']:.0%} of the target's" if style["share_of_target"] is not None else ""
        console.print(f"  Tone alone ({style['arm']}, seed {style['seed']}): effect {words.interval(style['effect'])}{share}.")


def _table(check: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("step", "state", "effect [90 %]", words.prefers(check), "held-out loss", "task gain", "truth"):
        table.add_column(name, justify="left", no_wrap=True)
    base = check["base_reading"]
    table.add_row(
        "base",
        "",
        "",
        words.percent(base["misaligned_preference"]),
        words.number(base["loss"]["per_token"] if base["loss"] else None),
        "",
        words.percent(base["truth"]),
    )
    for c in check["checkpoints"]:
        loss = c["loss"]["per_token"] if c["loss"] else None
        table.add_row(
            str(c["step"]),
            Text(c["state"], style=STYLES[c["state"]]),
            words.interval(c["effect"]),
            words.percent(c["misaligned_preference"]),
            words.number(loss),
            words.interval(c["gain"], 2),
            words.percent(c["truth"]),
        )
    return table
