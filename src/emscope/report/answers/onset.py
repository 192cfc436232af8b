"""Onset from a file, as tables for a terminal and as figures."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from emscope.report import words
from emscope.report.figures import effect_figure, write_figures
from emscope.report.study.terminal import STYLES

VERDICTS = {
    "em": "misaligned beyond its control",
    "safe": "safe at the last step",
    "undetermined": "undetermined at the last step",
    "style_drift": "worse than its base, no worse than its control: style drift",
    "control_moved": "worse than its control, no worse than its base: the control moved",
    "moved": "moved away from its base; cause not separable without a control",
}


def print_onset(result: dict[str, Any]) -> None:
    """Print verdict, bracket and a row a step for each run, and the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.width = 400
    d = result["definition"]
    console.print(f"value: {d['value']}; delta {d['delta']:g} ({d['delta_source']}); {d['level']:.0%} intervals", style="dim")
    for run in result["groups"]:
        console.print(f"\n{_name(run)}", style="bold")
        console.print(f"  {sentence(run)}")
        for why in run["why"].values():
            console.print(f"  {why}", style="dim")
        table = Table(box=None, pad_edge=True, header_style="dim")
        for name in ("step", "state", "effect", "value", "rows"):
            table.add_column(name, no_wrap=True)
        known = {c["step"]: c for c in run["checkpoints"]}
        for point in run["series"]:
            c = known.get(point["step"])
            state = Text(c["state"].replace("_", " "), style=STYLES[c["state"]]) if c and c["state"] else ""
            effect = words.interval(c["effect"]) if c else ""
            table.add_row(str(point["step"]), state, effect, words.number(point["value"]), str(point["rows"]))
        console.print(table)
    for note in result["notes"]:
        console.print(f"  {note}")


def sentence(run: dict[str, Any]) -> str:
    """Return the answer of one run."""
    if run["verdict"] is None:
        return "No verdict."
    parts = [VERDICTS[run["verdict"]].capitalize()]
    if run["onset"]:
        onset = run["onset"]
        moved = ""
        if onset["target_moved"] is not None and onset["control_moved"] is not None:
            moved = f" (by then the target had moved {onset['target_moved']:.3g} from its base and the control {onset['control_moved']:.3g})"
        parts.append(f"it began after step {onset['after']}, by step {onset['by']}{moved}")
    now = run["onset"]["by"] if run["onset"] else None
    past = [f"{e['from']} to {e['to']}" for e in run["episodes"] if now is None or e["to"] < now]
    if past:
        parts.append(f"it was em from step {', '.join(past)} and not afterwards")
    parts.append(f"the last safe step is {run['stop']['step']}" if run["stop"] else "no step is shown safe")
    return "; ".join(parts) + "."


def onset_figures(result: dict[str, Any], path: Path) -> None:
    """Write a figure of each run that has states."""
    runs = [r for r in result["groups"] if r["verdict"] is not None]
    write_figures([effect_figure(r, escape(_name(r)), "effect") for r in runs], path, "Onset")


def _name(run: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in run["group"].items()) or "all rows"
