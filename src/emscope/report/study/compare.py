"""Studies side by side: tables for a terminal, sentences, a figure, a page."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.report import words
from emscope.report.figures import INK, PALETTE, error_bars, style, write_figures
from emscope.report.tables import table, terminal
from emscope.study.compare_result import Comparison, Difference, WayCompared, WayIn

if TYPE_CHECKING:
    import plotly.graph_objects as go


def print_comparison(result: Comparison) -> None:
    """Print the settings that differ, a row for each way in each study, and the differences from the first."""
    console = terminal(400, [f"{result.measure}; 95 % intervals"])
    for line in _settings(result):
        console.print(line)
    shown = table(("way", "study", "verdicts"), ("runs", "step", "effect", "judged: control - target", "judged: base - target"))
    for way in result.ways:
        for one in way.studies:
            shown.add_row(*_row(one))
    console.print(shown)
    for line in (*_differences(result), *_alone(result), *map(words.sentence, result.notes)):
        console.print(line)


def sentences(result: Comparison) -> list[str]:
    """Return the answer in sentences: how far the studies lie apart, which settings differ, and what else to know."""
    return [*_differences(result), *_settings(result), *_alone(result), *map(words.sentence, result.notes)]


def compare_figures(result: Comparison) -> dict[str, go.Figure]:
    """Return the effects of all ways, one colour per study."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for n, study in enumerate(result.studies):
        mine = [(way.way, one.effect) for way in result.ways for one in way.studies if one.study == study.label]
        figure.add_scatter(
            x=[effect.value for _, effect in mine],
            y=[escape(way) for way, _ in mine],
            error_x={**error_bars([effect for _, effect in mine]), "thickness": 1.2},
            mode="markers",
            name=escape(study.label),
            marker={"size": 10, "color": PALETTE[n % len(PALETTE)]},
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    style(figure, "Effect at the last checkpoint", "effect [nats per token]", "")
    figure.update_layout(scattermode="group", height=max(320, 120 + 60 * len(result.ways)))
    return {"effects": figure}


def write_comparison(result: Comparison, path: Path) -> None:
    """Write a page with the sentences, the table and the figure."""
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in _row(one))}</tr>" for w in result.ways for one in w.studies
    )
    names = ("way", "study", "verdicts", "runs", "step", "effect", "judged: control - target", "judged: base - target")
    head = "".join(f"<th align='left'>{name}</th>" for name in names)
    said = "".join(f"<p>{escape(line)}</p>" for line in sentences(result))
    look = "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1240px;margin:24px auto} td,th{padding:4px 12px 4px 0}</style>"
    title = " and ".join(one.label for one in result.studies)
    before = f"{look}<h1>{escape(title)}</h1>{said}<table><tr>{head}</tr>{rows}</table>"
    write_figures(list(result.figures().values()), path, title, before)


def _row(one: WayIn) -> tuple[str, ...]:
    reads = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in one.reads.items())
    said = (words.interval(one.said.get(name), 1) for name in ("control - target", "base - target"))
    step = str(one.step) if one.step is not None else words.BLANK
    return (one.way, one.study, reads, str(one.runs), step, words.interval(one.effect), *said)


def _settings(result: Comparison) -> list[str]:
    """Say how the settings differ from the first study's."""
    first, *others = result.studies
    return [
        f"{one.label} differs from {first.label} in: {one.differs}."
        if one.differs
        else f"{one.label} has the same settings as {first.label}."
        for one in others
    ]


def _differences(result: Comparison) -> list[str]:
    return [_difference(way, d, result.studies[0].label) for way in result.ways for d in way.differences]


def _difference(way: WayCompared, d: Difference, first: str) -> str:
    """Say how far a study's effect lies from the first one's, and which verdicts differ."""
    how = "paired by item" if d.pairing == "by item" else f"not paired: {d.why}"
    text = f"{way.way}: the effect in {d.study} minus that in {first} is {words.interval(d.effect)} nats per token ({how})"
    text += "".join(f"; by judged answers, {name} {words.interval(e, 1)} points" for name, e in d.said.items())
    changes = [f"{c.run} {c.before.replace('_', ' ')} -> {c.after.replace('_', ' ')}" for c in d.changes]
    return f"{text}." + (f" Verdicts: {', '.join(changes)}." if changes else " No verdict changed.")


def _alone(result: Comparison) -> list[str]:
    return [f"Only in {study}: {', '.join(ways)}." for study, ways in result.alone.items()]
