"""The look that all figures share, and the figure of contrasts along training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from emscope.core.estimate import Estimate
from emscope.core.outcomes import State
from emscope.core.pages import POLICY, drawn, plot_data
from emscope.store.files import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEMPLATE: ContextVar[str | None] = ContextVar("TEMPLATE", default="plotly_white")
INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = {"target": "#c2410c", "control": "#0f766e", "base": "#6b7280", "style": "#7c3aed"}
STATES = {
    State.SAFE: "#0f766e",
    State.EM: "#c2410c",
    State.MOVED: "#c2410c",
    State.STYLE_DRIFT: "#7c3aed",
    State.CONTROL_MOVED: "#0891b2",
    State.UNDETERMINED: "#b6900a",
}
PALETTE = ("#c2410c", "#2563eb", "#0f766e", "#7c3aed", "#b6900a", "#be185d", "#475569", "#65a30d", "#0891b2", "#92400e")
LINES = {
    "control - target": COLOURS["target"],
    "base - target": "#2563eb",
    "base - control": COLOURS["control"],
    "target - control": COLOURS["target"],
    "target - base": "#2563eb",
}


class Bracket(Protocol):
    """An onset lies after one step and at the latest at another."""

    @property
    def after(self) -> int: ...
    @property
    def by(self) -> int: ...


class Stop(Protocol):
    """The last step that is shown safe."""

    @property
    def step(self) -> int: ...


class Point(Protocol):
    """One step, and its reading."""

    @property
    def step(self) -> int: ...
    @property
    def state(self) -> State | None: ...
    @property
    def effect(self) -> Estimate: ...
    @property
    def contrasts(self) -> Mapping[str, Estimate]: ...


class AlongTraining(Protocol):
    """A run's readings along training, from a check or from a file of values."""

    @property
    def delta(self) -> float: ...
    @property
    def checkpoints(self) -> Sequence[Point]: ...
    @property
    def onset(self) -> Bracket | None: ...
    @property
    def stop(self) -> Stop | None: ...


def effect_figure(run: AlongTraining, title: str = "", y: str = "difference in margin [nats per token]") -> go.Figure:
    """Draw the contrasts along training, the threshold, the onset bracket and the checkpoint to ship."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, colour in LINES.items():
        rows = [(c.step, c.contrasts[name]) for c in run.checkpoints if name in c.contrasts]
        if rows:
            band(figure, [s for s, _ in rows], [e for _, e in rows], name, colour)
    figure.add_scatter(
        x=[c.step for c in run.checkpoints],
        y=[c.effect.value for c in run.checkpoints],
        mode="markers",
        name="state of the checkpoint",
        marker={
            "size": 12,
            "color": [STATES[c.state] if c.state else MUTED for c in run.checkpoints],
            "line": {"width": 2, "color": "white"},
        },
        customdata=[c.state for c in run.checkpoints],
        hovertemplate="step %{x}: %{customdata}, %{y:.3f}<extra></extra>",
    )
    figure.add_hline(
        y=run.delta,
        line={"dash": "dash", "color": INK, "width": 1},
        annotation_text="delta",
        annotation_position="right",  # beside the plot, clear of the points
    )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    if run.onset:
        figure.add_vrect(
            x0=run.onset.after,
            x1=run.onset.by,
            fillcolor="#fde68a",
            opacity=0.35,
            line_width=0,
            annotation_text="onset",
            annotation_position="top left",
        )
    mark_stop(figure, run.stop)
    return style(figure, title, "optimiser step", y)


def mark_stop(figure: go.Figure, stop: Stop | None) -> None:
    """Draw a line at the checkpoint to ship, where there is one."""
    if stop:
        figure.add_vline(
            x=stop.step,
            line={"color": STATES[State.SAFE], "width": 2, "dash": "dot"},
            annotation_text="ship this",
            annotation_position="bottom right",
        )


def band(figure: go.Figure, steps: Sequence[int], estimates: Sequence[Estimate], name: str, colour: str) -> None:
    """Draw estimates along training as a line, their intervals as a band."""
    low = [e.value if e.low is None else e.low for e in estimates]
    high = [e.value if e.high is None else e.high for e in estimates]
    figure.add_scatter(
        x=[*steps, *steps[::-1]],
        y=high + low[::-1],
        fill="toself",
        fillcolor=colour,
        opacity=0.14,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    figure.add_scatter(
        x=list(steps),
        y=[e.value for e in estimates],
        name=f"{name} ({estimates[0].level:.0%} interval)",
        legendgroup=name,
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="step %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra>" + name + "</extra>",
    )


def error_bars(estimates: Sequence[Estimate]) -> dict[str, object]:
    """Return estimates' intervals as plotly's error bars; none where a value or an end is unknown."""
    reach = [
        (0.0, 0.0) if e.value is None or e.low is None or e.high is None else (e.high - e.value, e.value - e.low)
        for e in estimates
    ]
    return {"type": "data", "symmetric": False, "array": [a for a, _ in reach], "arrayminus": [b for _, b in reach]}


def style(figure: go.Figure, title: str, x: str, y: str, *, legend: bool = True) -> go.Figure:
    """Give a figure the house look, its title and the names of its axes; return it."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template=TEMPLATE.get(),
        font={"family": "system-ui, sans-serif", "color": INK, "size": 13},
        margin={"l": 70, "r": 50, "t": 50 if title else 20, "b": 60},
        height=420,
        showlegend=legend,
        legend={"orientation": "h", "y": -0.22},
        hoverlabel={"bgcolor": "white"},
    )
    figure.update_xaxes(title=x, gridcolor=GRID, zeroline=False)
    figure.update_yaxes(title=y, gridcolor=GRID, zeroline=False)
    return figure


@contextmanager
def without_template() -> Iterator[None]:
    """Make figures without the template that they share, for a page that has it once: the template is a third of their time."""
    from plotly.io import templates

    before, token = templates.default, TEMPLATE.set(None)
    templates.default = None
    try:
        yield
    finally:
        templates.default = before
        TEMPLATE.reset(token)


def page_data(figure: go.Figure | None) -> str | None:
    """Return a figure's data for a page that has the shared look once (`look`): without the look, numbers with six digits; None without a figure."""
    if figure is None:
        return None
    whole = json.loads(plot_data(figure) or "{}", parse_float=lambda text: float(f"{float(text):.6g}"))
    whole["layout"].pop("template", None)
    return json.dumps(whole, separators=(",", ":")).replace("<", "\\u003c")


@cache
def look() -> str:
    """Return the template that all figures share, as JSON for a script of a page."""
    import plotly.graph_objects as go

    found = json.loads(plot_data(style(go.Figure(), "", "", "")) or "{}")["layout"]["template"]
    return json.dumps(found, separators=(",", ":")).replace("<", "\\u003c")


def write_figures(figures: list[go.Figure], path: Path, title: str, before: str = "") -> None:
    """Write figures into one page that needs no network, below the HTML `before`."""
    parts = [drawn(f, whole_page=False, with_plotly=not n) for n, f in enumerate(figures)]
    head = f"<head>{POLICY}<meta charset='utf-8'><title>{escape(title)}</title></head>"
    page = f"<!doctype html><html lang='en'>{head}<body>{before}"
    write_text(path, page + "\n".join(parts) + "</body></html>\n")
