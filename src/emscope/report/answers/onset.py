"""Onset from a file, as tables for a terminal and as figures."""

from __future__ import annotations

from html import escape
from typing import Any

from emscope.answers.labels import Label
from emscope.answers.onset_result import Onsets
from emscope.report import words
from emscope.report.answers.estimates import figure_name, interval
from emscope.report.figures import effect_figure
from emscope.report.study.terminal import STYLES

VERDICTS = {
    "em": "misaligned beyond its control",
    "safe": "safe at the last step",
    "undetermined": "undetermined at the last step",
    "style_drift": "worse than its base, no worse than its control: style drift",
    "control_moved": "worse than its control, no worse than its base: the control moved",
    "moved": "moved away from its base; cause not separable without a control",
}


def print_onset(result: Onsets) -> None:
    """Print verdict, bracket and a row a step for each run, and the notes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    console.width = 400
    console.print(_definition(result.to_json()), style="dim")
    for run in result.groups:
        console.print(f"\n{_name(run.group)}", style="bold")
        console.print(f"  {sentence(run.to_json())}")
        for why in run.why.values():
            console.print(f"  {why}", style="dim")
        table = Table(box=None, pad_edge=True, header_style="dim")
        for name in ("step", "state", "effect", "value", "rows"):
            table.add_column(name, no_wrap=True)
        known = {c.step: c for c in run.checkpoints}
        for point in run.series:
            c = known.get(point.step)
            state = Text(c.state.replace("_", " "), style=STYLES[c.state]) if c and c.state else ""
            effect = interval(c.effect) if c else ""
            table.add_row(str(point.step), state, effect, words.number(point.value), str(point.rows))
        console.print(table)
    for note in result.notes:
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


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the documented JSON of `onset` in sentences: each run's answer with what is missing, then what was measured."""
    said = []
    for run in found["groups"]:
        said += [f"{_name(run['group'])}: {sentence(run)}", *(f"{why}." for why in run["why"].values())]
    return [*said, f"{_definition(found)}.", *found["notes"]]


def onset_figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return a figure of each run that has states, of the documented JSON, by a name that can be a file's."""
    runs = [(n, r) for n, r in enumerate(found["groups"], 1) if r["verdict"] is not None]
    return {figure_name(f"{n} {_name(r['group'])}"): effect_figure(r, escape(_name(r["group"])), "effect") for n, r in runs}


def _definition(found: dict[str, Any]) -> str:
    d = found["definition"]
    return f"value: {d['value']}; delta {d['delta']:g} ({d['delta_source']}); {d['level']:.0%} intervals"


def _name(label: Label) -> str:
    return ", ".join(f"{k} {v}" for k, v in label.items()) or "all rows"
