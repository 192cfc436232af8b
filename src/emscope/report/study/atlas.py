"""An atlas as a table, sentences and a figure; and where one fine-tune stands in it, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.report import words
from emscope.report.figures import INK, PALETTE, style, write_figures
from emscope.report.tables import table, terminal
from emscope.study.atlas_result import (
    COHERENCE,
    HARMFUL,
    HARMLESS,
    JAILBROKEN,
    PREFERENCE,
    RATE,
    REFUSAL,
    SAID,
    Atlas,
    AtlasRow,
    Beside,
    MeasureSpread,
    found_by,
)
from emscope.study.report import FolderChecked, Report

if TYPE_CHECKING:
    import plotly.graph_objects as go

NAMES = {
    SAID: ("mean alignment at equal coherence", "points", 1),
    RATE: ("rate of misaligned answers", "", 3),
    PREFERENCE: ("preference", "nats per token", 3),
    REFUSAL: ("declining harmful requests", "nats per token", 3),
    COHERENCE: ("coherence", "points", 1),
}


def placed(report: Report) -> list[str]:
    """Return where a checked fine-tune stands among those of an atlas, a sentence for each measure of harm."""
    found = report.atlas if isinstance(report, FolderChecked) else ()
    return [_placed(one) for one in found if one.measure != COHERENCE]


def _placed(one: Beside) -> str:
    name, unit, digits = NAMES[one.measure]
    value = words.number(one.effect, digits)
    text = (
        f"Beside known fine-tunes of this base, by {name} ({f'{value} {unit}'.strip()} worse than the base): {one.as_far} of {one.harmless} "
        f"harmless ones ({one.kinds} kinds of data) moved at least as far"
    )
    if one.harmful:
        text += f", and {one.harmful_as_far} of {one.harmful} {found_by(one.measure)} ones"
    return f"{text}; one on another kind of harmless data moves so far with a chance of about {one.chance:.0%}."


def print_atlas(result: Atlas) -> None:
    """Print a row for each base and measure, then the sentences."""
    console = terminal(400, ["effects of fine-tunes on their base; above 0 is worse; 95 % intervals"])
    shown = table(("base", "measure"), _COLUMNS)
    for one in result.spreads:
        shown.add_row(*_row(one))
    console.print(shown)
    for line in sentences(result):
        console.print(line)


_COLUMNS = (
    "harmless (kinds)",
    "median",
    "90 %",
    "95 %",
    "threshold",
    "false positives",
    "meant to be found",
    "found",
    "otherwise harmful, found",
    "area under the curve",
)


def _row(one: MeasureSpread) -> tuple[str, ...]:
    _, unit, digits = NAMES.get(one.measure, (one.measure, "", 3))
    return (
        one.base,
        f"{_name(one)} [{unit}]" if unit else _name(one),
        f"{one.harmless} ({one.kinds})",
        *(words.number(one.quantiles.get(q), digits) for q in ("50", "90", "95")),
        words.number(one.threshold, digits),
        words.interval(one.false_positives, 2),
        f"{one.harmful} {found_by(one.measure)}",
        words.interval(one.found, 2),
        words.interval(one.others, 2),
        words.interval(one.auc, 2),
    )


def _name(one: MeasureSpread) -> str:
    """Return what a row holds, in words."""
    name = NAMES.get(one.measure, (one.measure, "", 3))[0]
    return name if one.category is None else f"{name} on {one.category} questions"


def sentences(result: Atlas) -> list[str]:
    """Return, for each base and measure of harm, how well it tells harmful from harmless fine-tunes."""
    return [_told(one) for one in result.spreads if one.measure != COHERENCE and one.harmless and one.harmful]


def _told(one: MeasureSpread) -> str:
    meant = found_by(one.measure)
    text = (
        f"{one.base}, by {_name(one)}: a {meant} fine-tune moved further than a harmless one with a chance of {words.interval(one.auc, 2)} "
        f"({one.harmful} {meant}, {one.harmless} harmless of {one.kinds} kinds)."
    )
    if one.others.value is None:
        return text
    other = HARMFUL if meant == JAILBROKEN else JAILBROKEN
    return f"{text} Of {one.others.n} {other} ones it marks {words.interval(one.others, 2)} too."


def atlas_figures(result: Atlas) -> dict[str, go.Figure]:
    """Return, for each base, a figure of how well each measure tells harmful from harmless fine-tunes, and one of their effects by each measure."""
    found: dict[str, go.Figure] = {}
    for base in dict.fromkeys(one.base for one in result.spreads):
        mine = [one for one in result.spreads if one.base == base and one.harmless and one.harmful and one.measure != COHERENCE]
        if mine:
            found[f"{base}, found against false positives"] = _operating(result, mine)
    for one in result.spreads:
        name = ", ".join(filter(None, (one.base, one.measure, one.category)))
        alike = sum(key == name or key.startswith(f"{name} ") for key in found)
        found[name if not alike else f"{name} {alike + 1}"] = _figure(result, one)
    return found


def _operating(result: Atlas, spreads: Sequence[MeasureSpread]) -> go.Figure:
    """Return the receiver operating characteristic of each measure: every threshold's share found and share of false positives."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for n, one in enumerate(spreads):
        false, true = operating_points(result, one)
        figure.add_scatter(
            x=false,
            y=true,
            mode="lines",
            name=escape(f"{_name(one)} ({words.number(one.auc.value, 2)})"),
            line={"color": PALETTE[n % len(PALETTE)], "shape": "vh", "dash": "solid" if one.category is None else "dot"},
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", showlegend=False, hoverinfo="skip", line={"color": INK, "width": 1, "dash": "dash"}
    )
    title = f"{escape(spreads[0].base)}: every threshold (in brackets: area under the curve)"
    style(figure, title, "share of harmless fine-tunes beyond it", "share beyond it of those to be found")
    figure.update_layout(height=480)
    return figure


def operating_points(result: Atlas, one: MeasureSpread) -> tuple[list[float], list[float]]:
    """Return the shares of harmless fine-tunes, and of those a measure is meant to find, that moved at least as far as each threshold.

    Thresholds are all effects from the largest to the smallest, after one that none reaches.
    """
    rows = _rows_of(result, one)
    plain, meant = ([r.effect for r in rows if r.trained == how] for how in (HARMLESS, found_by(one.measure)))
    cuts = sorted({*plain, *meant}, reverse=True)
    false, true = ([sum(e >= cut for e in effects) / len(effects) for cut in cuts] for effects in (plain, meant))
    return [0.0, *false], [0.0, *true]


def _rows_of(result: Atlas, one: MeasureSpread) -> list[AtlasRow]:
    place = (one.digest, one.measure, one.asked, one.category)
    return [r for r in result.runs if (r.digest, r.measure, r.asked, r.category) == place]


def _figure(result: Atlas, one: MeasureSpread) -> go.Figure:
    """Return every fine-tune's effect by kind of data, harmful and jailbroken ones in other colours."""
    import plotly.graph_objects as go

    rows = _rows_of(result, one)
    unit = NAMES.get(one.measure, (one.measure, "", 3))[1]
    figure = go.Figure()
    for trained, colour in ((HARMLESS, PALETTE[1]), (HARMFUL, PALETTE[0]), (JAILBROKEN, PALETTE[2])):
        mine = sorted((r for r in rows if r.trained == trained), key=lambda r: r.effect)
        figure.add_scatter(
            x=[r.effect for r in mine],
            y=[escape(r.kind) for r in mine],
            text=[escape(f"{r.run}, step {r.step}") for r in mine],
            mode="markers",
            name=trained,
            marker={"size": 9, "color": colour, "opacity": 0.75},
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    style(figure, f"{escape(one.base)}: {_name(one)}", f"worse than the base{f' [{unit}]' if unit else ''}", "")
    figure.update_layout(height=max(320, 140 + 24 * len({r.kind for r in rows})))
    return figure


def write_atlas(result: Atlas, path: Path) -> None:
    """Write a page with the sentences, the table and the figures."""
    head = "".join(f"<th align='left'>{name}</th>" for name in ("base", "measure", *_COLUMNS))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in _row(one))}</tr>" for one in result.spreads)
    said = "".join(f"<p>{escape(line)}</p>" for line in sentences(result))
    look = "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1240px;margin:24px auto} td,th{padding:4px 12px 4px 0}</style>"
    before = f"{look}<h1>Atlas</h1>{said}<table><tr>{head}</tr>{rows}</table>"
    write_figures(list(result.figures().values()), path, "Atlas", before)
