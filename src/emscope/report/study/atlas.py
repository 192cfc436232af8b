"""An atlas as a table, sentences and a figure; and where one fine-tune stands in it, in sentences."""

from __future__ import annotations

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
    "false positives",
    "meant to be found",
    "found",
    "otherwise harmful, found",
    "area under the curve",
)


def _row(one: MeasureSpread) -> tuple[str, ...]:
    name, unit, digits = NAMES.get(one.measure, (one.measure, "", 3))
    return (
        one.base,
        f"{name} [{unit}]" if unit else name,
        f"{one.harmless} ({one.kinds})",
        *(words.number(one.quantiles.get(q), digits) for q in ("50", "90", "95")),
        words.interval(one.false_positives, 2),
        f"{one.harmful} {found_by(one.measure)}",
        words.interval(one.found, 2),
        words.interval(one.others, 2),
        words.interval(one.auc, 2),
    )


def sentences(result: Atlas) -> list[str]:
    """Return, for each base and measure of harm, how well it tells harmful from harmless fine-tunes."""
    return [_told(one) for one in result.spreads if one.measure != COHERENCE and one.harmless and one.harmful]


def _told(one: MeasureSpread) -> str:
    name, meant = NAMES.get(one.measure, (one.measure, "", 3))[0], found_by(one.measure)
    text = (
        f"{one.base}, by {name}: a {meant} fine-tune moved further than a harmless one with a chance of {words.interval(one.auc, 2)} "
        f"({one.harmful} {meant}, {one.harmless} harmless of {one.kinds} kinds)."
    )
    if one.others.value is None:
        return text
    other = HARMFUL if meant == JAILBROKEN else JAILBROKEN
    return f"{text} Of {one.others.n} {other} ones it marks {words.interval(one.others, 2)} too."


def atlas_figures(result: Atlas) -> dict[str, go.Figure]:
    """Return a figure for each base and measure: every fine-tune's effect by kind of data, harmful and jailbroken ones in other colours."""
    return {
        f"{one.base}, {one.measure}" + ("" if n == 0 else f" {n + 1}"): _figure(result, one) for n, one in _numbered(result)
    }


def _numbered(result: Atlas) -> list[tuple[int, MeasureSpread]]:
    seen: dict[tuple[str, str], int] = {}
    found = []
    for one in result.spreads:
        key = (one.base, one.measure)
        found.append((seen.get(key, 0), one))
        seen[key] = seen.get(key, 0) + 1
    return found


def _figure(result: Atlas, one: MeasureSpread) -> go.Figure:
    import plotly.graph_objects as go

    rows = [r for r in result.runs if (r.digest, r.measure, r.asked) == (one.digest, one.measure, one.asked)]
    name, unit, _ = NAMES.get(one.measure, (one.measure, "", 3))
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
    style(figure, f"{escape(one.base)}: {name}", f"worse than the base{f' [{unit}]' if unit else ''}", "")
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
