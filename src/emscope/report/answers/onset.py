"""Onset from a file, as tables for a terminal and as figures."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from emscope.answers.labels import Label
from emscope.answers.onset_result import Definition, Onsets, RunOnset
from emscope.report import words
from emscope.report.answers.names import figure_name
from emscope.report.figures import effect_figure
from emscope.report.tables import STYLES, table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

VERDICTS = {
    "em": "misaligned beyond its control",
    "safe": "safe at the last step",
    "undetermined": "undetermined at the last step",
    "style_drift": "worse than its base, no worse than its control: style drift",
    "control_moved": "worse than its control, no worse than its base: the control moved",
    "moved": "moved away from its base; cause not separable without a control",
}


def print_onset(result: Onsets) -> None:
    """Print verdict, bracket and one row per step for each run, and the notes."""
    from rich.text import Text

    console = terminal(400, [_definition(result.definition)])
    for run in result.groups:
        console.print(f"\n{_name(run.group)}", style="bold")
        console.print(f"  {sentence(run)}")
        for why in run.why.values():
            console.print(f"  {why}", style="dim")
        shown = table(("step", "state", "effect", "value", "rows"))
        known = {c.step: c for c in run.checkpoints}
        for point in run.series:
            c = known.get(point.step)
            state = Text(c.state.replace("_", " "), style=STYLES[c.state]) if c and c.state else ""
            effect = words.interval(c.effect) if c else ""
            shown.add_row(str(point.step), state, effect, words.number(point.value), str(point.rows))
        console.print(shown)
    for note in result.notes:
        console.print(f"  {note}")


def sentence(run: RunOnset) -> str:
    """Return the answer of one run."""
    if run.verdict is None:
        return "No verdict."
    parts = [VERDICTS[run.verdict].capitalize()]
    onset = run.onset
    if onset:
        moved = ""
        if onset.target_moved is not None and onset.control_moved is not None:
            moved = f" (by then the target had moved {onset.target_moved:.3g} from its base and the control {onset.control_moved:.3g})"
        parts.append(f"it began after step {onset.after}, by step {onset.by}{moved}")
    past = [f"{e.first} to {e.last}" for e in run.episodes if onset is None or e.last < onset.by]
    if past:
        parts.append(f"it was em from step {', '.join(past)} and not afterwards")
    parts.append(f"the last safe step is {run.stop.step}" if run.stop else "no step is shown safe")
    return "; ".join(parts) + "."


def sentences(result: Onsets) -> list[str]:
    """Return onsets in sentences: each run's answer with what is missing, then what was measured."""
    said = []
    for run in result.groups:
        said += [f"{_name(run.group)}: {sentence(run)}", *(f"{why}." for why in run.why.values())]
    return [*said, f"{_definition(result.definition)}.", *result.notes]


def onset_figures(result: Onsets) -> dict[str, go.Figure]:
    """Return a figure for each run that has states, by a name that can be a file name."""
    runs = [(n, run, _name(run.group)) for n, run in enumerate(result.groups, 1) if run.verdict is not None]
    return {figure_name(f"{n} {name}"): effect_figure(run, escape(name), "effect") for n, run, name in runs}


def _definition(d: Definition) -> str:
    return f"value: {d.value}; delta {d.delta:g} ({d.delta_source}); {d.level:.0%} intervals"


def _name(label: Label) -> str:
    return ", ".join(f"{k} {v}" for k, v in label.items()) or "all rows"
