"""A dose ladder in sentences, as a table for a terminal, and as a page with its figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.core.outcomes import Calibration
from emscope.core.pages import plot_data
from emscope.report import words
from emscope.report.figures import COLOURS, INK, MUTED, style
from emscope.store.files import write_text
from emscope.study.reading.ladders import LadderResult, RungRead

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONTRASTS = {"control - target": COLOURS["target"], "base - target": "#2563eb"}
STATUS = {
    Calibration.CALIBRATED: "Calibrated",
    Calibration.PROVISIONAL: "Provisional: no threshold yet",
    Calibration.UNCALIBRATED: "Not calibrated",
}
HEADINGS = (
    "dose",
    "judged: control - target",
    "judged: base - target",
    "preference: control - target",
    "preference: from base",
)


def sentences(result: LadderResult) -> list[str]:
    """Return what a ladder says, first whether it gives a threshold."""
    return [s for s in (_status(result), _harm(result), _floor(result), _asked(result)) if s]


def _status(result: LadderResult) -> str:
    if result.delta is None:
        return f"{STATUS[result.status]}: {result.why}."
    return f"{STATUS[result.status]}: on this base, the harm threshold is {result.delta:.3f} nats per token."


def _harm(result: LadderResult) -> str:
    if result.scale is None:
        return ""
    return (
        f"From dose {result.scale:g} of {result.name}, judged answers are shown to be at least {result.judged.delta:g} points worse than "
        f"control and base; at that dose, preference has moved by {words.number(result.shown)}."
    )


def _floor(result: LadderResult) -> str:
    shifts = [h.shift for h in result.harmless]
    moved = f"{len(shifts)} harmless fine-tune{'s' * (len(shifts) != 1)} moved by {min(shifts):.3f} to {max(shifts):.3f} from the base"
    if result.floor is None:
        return f"{moved}."
    return (
        f"{moved}. Another would stay below {result.floor.value:.3f} with 95 % probability; the threshold is never set lower."
    )


def _asked(result: LadderResult) -> str:
    j, m = result.judged, result.measured
    failed = f" ({j.failed} verdicts failed)" if j.failed else ""
    return (
        f"{j.judge} judged {j.answers} answers to {j.questions}{failed}; preference was read on {m.n_items} items of {m.items} and "
        f"{m.placebo} placebo pairs, asked in {m.chat}, {result.dtype}."
    )


def rows(result: LadderResult) -> list[list[str]]:
    """Return the cells of the table, a row for each dose; intervals are 90 %."""
    return [[f"{r.scale:g}{' (broken)' if r.broken else ''}", *_cells(r)] for r in result.rungs]


def _cells(rung: RungRead) -> list[str]:
    judged = [_interval((rung.judged or {}).get(name), 1) for name in CONTRASTS]
    return [*judged, *(_interval(rung.preference[name], 3) for name in CONTRASTS)]


def _interval(estimate: Estimate | None, digits: int) -> str:
    """Write `value [low, high]`, with a dash for an unknown end."""
    if estimate is None or estimate.value is None:
        return words.BLANK
    low, value, high = (words.number(one, digits) for one in (estimate.low, estimate.value, estimate.high))
    return f"{value} [{low}, {high}]"


def print_ladder(result: LadderResult) -> None:
    """Print the rungs and the result."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, 142)
    console.print(f"\nDose ladder of {result.name} on {result.measured.base}", style="bold")
    for sentence in sentences(result):
        console.print(f"  {sentence}", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in HEADINGS:
        table.add_column(name, justify="left", no_wrap=True)
    for row in rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(
        "  [ ] 90 %: each end is a one-sided 95 % bound. Points of mean alignment at equal coherence; nats per token.",
        style="dim",
    )


def ladder_figure(result: LadderResult) -> go.Figure:
    """Draw judged points and preference against the dose, side by side; hollow: broken; dashed: what counts as harm."""
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for name, colour in CONTRASTS.items():
        _series(figure, [(r, r.judged[name]) for r in result.rungs if r.judged is not None], name, colour, 1)
        _series(figure, [(r, r.preference[name]) for r in result.rungs], name, colour, 2)
    for column, limit in enumerate((result.judged.delta, result.delta), 1):
        figure.add_hline(y=0, line={"color": MUTED, "width": 1}, row=1, col=column)
        if limit is not None:
            figure.add_hline(y=limit, line={"color": INK, "width": 1, "dash": "dash"}, row=1, col=column)
    for h in result.harmless:
        figure.add_hline(y=h.shift, line={"color": COLOURS["control"], "width": 1, "dash": "dot"}, row=1, col=2)
    figure = style(figure, "", "dose", "")
    figure.update_yaxes(title="judged: points of mean alignment", row=1, col=1)
    figure.update_yaxes(title="preference [nats per token]", row=1, col=2)
    return figure


def _series(figure: go.Figure, points: Sequence[tuple[RungRead, Estimate]], name: str, colour: str, column: int) -> None:
    known = [(rung, e, e.value) for rung, e in points if e.value is not None]
    reach = [[0.0 if end is None else abs(end - value) for end in (e.high, e.low)] for _, e, value in known]
    figure.add_scatter(
        x=[rung.scale for rung, _, _ in known],
        y=[value for _, _, value in known],
        error_y={"type": "data", "symmetric": False, "array": [a for a, _ in reach], "arrayminus": [b for _, b in reach]},
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=column == 1,
        line={"color": colour, "width": 2},
        marker={"size": 10, "symbol": ["circle-open" if rung.broken else "circle" for rung, _, _ in known]},
        row=1,
        col=column,
    )


def write_ladder(result: LadderResult, out: Path) -> Path:
    """Write `report.html` into the ladder's folder and return its path: self-contained, nothing is fetched."""
    from plotly.offline import get_plotlyjs

    from emscope.report.templating import environment

    text = (
        environment()
        .get_template("ladder.html.j2")
        .render(
            result=result,
            sentences=sentences(result),
            headings=HEADINGS,
            rows=rows(result),
            figure=plot_data(ladder_figure(result)),
            plotly=get_plotlyjs(),
        )
    )
    write_text(out / "report.html", text)
    return out / "report.html"
