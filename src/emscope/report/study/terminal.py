"""The same results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from emscope.report import words
from emscope.report.study import said

FEW = 4
STYLES = {
    "safe": "green",
    "em": "red",
    "moved": "red",
    "style_drift": "magenta",
    "control_moved": "cyan",
    "undetermined": "yellow",
}


def print_report(report: dict[str, Any]) -> None:
    """Print headline, checkpoint table and the first caveat of each target run; of more than a few runs the verdicts alone."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 142)  # the checkpoint table needs it; narrower terminals wrap lines, not cells
    targets = [r for r in report["runs"] if "check" in r]
    for run in targets:
        check = run["check"]
        console.print(f"\n{run['run']}", style="bold")
        for sentence in said.sentences(report, run["run"]):
            console.print(f"  {sentence}")
        if len(targets) <= FEW and (sentence := words.ship(report, run["run"])):
            console.print(f"  {sentence}")
        for sentence in words.headline(check)[: None if len(targets) <= FEW else 1]:
            console.print(f"  {sentence}")
        if len(targets) <= FEW:
            console.print(_table(check))
            if sentence := words.read(report):
                console.print(f"  {sentence}", style="yellow" if report["read"]["skipped"] else "dim")
            console.print(f"  {words.caveats(report, check)[0]}", style="dim")
    if report.get("methods"):
        console.print("\nWays of training compared", style="bold")
        console.print(_methods(report["methods"]))
        for sentence in words.methods(report["methods"]):
            console.print(f"  {sentence}")
    if sentences := words.recipes(report):
        console.print("\nSeveral seeds together", style="bold")
        for sentence in sentences:
            console.print(f"  {sentence}")
    for judge in (report.get("judged") or {}).get("judges", []):
        console.print(f"\nRate of misaligned answers by {judge['judge']}, at the last steps", style="bold")
        console.print(_judged(judge))
    for sentence in words.diverged(report):
        console.print(f"\n{sentence}", style="yellow")
    for style in report.get("style", []):
        share = f", {style['share_of_target']:.0%} of the target's" if style["share_of_target"] is not None else ""
        console.print(f"  Tone alone ({style['arm']}, seed {style['seed']}): effect {words.interval(style['effect'])}{share}.")


def _methods(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("way", "effect", "of the first's", "loss gain kept", "margin gain kept", "narrow"):
        table.add_column(name, justify="left", no_wrap=True)
    for m in rows:
        shares = (words.interval(m[k], 2) for k in ("effect_share", "gain_share", "gain_margin_share"))
        table.add_row(m["name"], words.interval(m["effect"]), *shares, words.answer(m["narrow"]))
    return table


def _judged(judge: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("run", "step", "rate", "over its control", "0-10 scale"):
        table.add_column(name, justify="left", no_wrap=True)
    last = {r["run"]: r for r in judge["rates"]}
    for r in last.values():
        table.add_row(
            r["run"], str(r["step"]), words.interval(r["rate"]), words.interval(r["over_control"]), words.interval(r["p1"], 2)
        )
    return table


def _table(check: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in (
        "step",
        "state",
        "effect [90 %]",
        "from base [90 %]",
        words.prefers(check),
        "held-out loss",
        "task gain",
        "truth",
    ):
        table.add_column(name, justify="left", no_wrap=True)
    base = check["base_reading"]
    table.add_row(
        "base",
        "",
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
            Text(c["state"].replace("_", " "), style=STYLES[c["state"]]),
            words.interval(c["effect"]),
            words.interval(c["base_effect"]) if "control - target" in c["contrasts"] else "",
            words.percent(c["misaligned_preference"]),
            words.number(loss),
            words.interval(c["gain"], 2),
            words.percent(c["truth"]),
        )
    return table
