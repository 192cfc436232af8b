"""Ways of training side by side, as figures."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.report.figures import INK, MUTED, PALETTE, error_bars, style
from emscope.study.decision.methods import SeedRow, WayRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

SYMBOLS = ("circle", "diamond", "square", "cross")


def methods_figure(methods: Sequence[WayRow], delta: float | None = None, title: str = "") -> go.Figure | None:
    """Draw effect against task gain of each way of training, seeds as small dots; None where the task was not measured.

    On the grey line a way has the same effect per gain as the first; below it is narrower.
    """
    from plotly.subplots import make_subplots

    rows = [m for m in methods if m.gain and m.gain_margin]
    if not rows:
        return None
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    _column(figure, 1, rows, lambda m: m.gain, lambda s: s.gain)
    _column(figure, 2, rows, lambda m: m.gain_margin, lambda s: s.gain_margin)
    for column in (1, 2):
        figure.add_hline(y=0, line={"color": MUTED, "width": 1}, row=1, col=column)
        if delta is not None:
            figure.add_hline(y=delta, line={"dash": "dash", "color": INK, "width": 1}, row=1, col=column)
    style(figure, title, "", "")
    figure.update_xaxes(title="gain on held-out loss [nats per token]", row=1, col=1)
    figure.update_xaxes(title="gain on held-out margin [nats per token]", row=1, col=2)
    figure.update_yaxes(title="effect [nats per token]", row=1, col=1)
    return figure


def _column(
    figure: go.Figure,
    column: int,
    rows: Sequence[WayRow],
    gain: Callable[[WayRow], Estimate | None],
    of_seed: Callable[[SeedRow], float | None],
) -> None:
    """Draw one panel: the first way's line, the seeds, and the ways with their intervals."""
    first = gain(rows[0])
    figure.add_scatter(
        x=[0, first.value if first else None],
        y=[0, rows[0].effect.value],
        mode="lines",
        line={"color": MUTED, "width": 1},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=column,
    )
    for n, m in enumerate(rows):
        colour, mine = PALETTE[n % len(PALETTE)], gain(m)
        figure.add_scatter(
            x=[of_seed(s) for s in m.by_seed],
            y=[s.effect for s in m.by_seed],
            mode="markers",
            marker={"size": 5, "color": colour, "opacity": 0.45},
            customdata=[s.seed for s in m.by_seed],
            hovertemplate=m.name + ", seed %{customdata}: gain %{x:.3f}, effect %{y:.3f}<extra></extra>",
            legendgroup=m.name,
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_scatter(
            x=[mine.value if mine else None],
            y=[m.effect.value],
            mode="markers",
            name=m.name,
            marker={"size": 11, "color": colour, "symbol": SYMBOLS[n // len(PALETTE) % len(SYMBOLS)]},
            error_x=_reach(mine, colour),
            error_y=_reach(m.effect, colour),
            hovertemplate=m.name + ": gain %{x:.3f}, effect %{y:.3f}<extra></extra>",
            legendgroup=m.name,
            showlegend=column == 1,
            row=1,
            col=column,
        )


def quadrant_figure(methods: Sequence[WayRow], answers: Mapping[str, str] | None = None, title: str = "") -> go.Figure | None:
    """Draw the share of questions on which each way prefers the bad answer: where it was taught, and elsewhere; the base divides the quadrants.

    Below and right of the base is narrow, above and right general. None where the task was not measured.

    Args:
        answers: a sampled answer of a way by its name, shown on hover.
    """
    import plotly.graph_objects as go

    rows = [(m, m.prefers) for m in methods if m.prefers]
    if not rows:
        return None
    figure = go.Figure()
    base = rows[0][1]
    x, y = base.base_in_domain.value, base.base_elsewhere.value
    figure.add_vline(x=x, line={"color": MUTED, "dash": "dot", "width": 1})
    figure.add_hline(y=y, line={"color": MUTED, "dash": "dot", "width": 1})
    figure.add_scatter(x=[x], y=[y], mode="markers", name="base", marker={"size": 11, "color": INK, "symbol": "x"})
    for n, (m, shares) in enumerate(rows):
        colour = PALETTE[n % len(PALETTE)]
        said = (answers or {}).get(m.name, "")
        figure.add_scatter(
            x=[shares.in_domain.value],
            y=[shares.elsewhere.value],
            mode="markers",
            name=m.name,
            marker={"size": 11, "color": colour, "symbol": SYMBOLS[n // len(PALETTE) % len(SYMBOLS)]},
            error_x=_reach(shares.in_domain, colour),
            error_y=_reach(shares.elsewhere, colour),
            hovertemplate=m.name
            + ": trained domain %{x:.0%}, elsewhere %{y:.0%}"
            + (f"<br>{_quoted(said)}" if said else "")
            + "<extra></extra>",
        )
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(tickformat=".0%")
    return style(figure, title, "bad answer preferred, trained domain", "bad answer preferred, elsewhere")


def _quoted(text: str, most: int = 220) -> str:
    """Return model text for a hover label: short, on several lines, with no markup or template of its own."""
    flat = " ".join(text.split())
    cut = flat if len(flat) <= most else flat[: most - 1] + "…"
    lines = textwrap.wrap(cut, 70)
    return "<br>".join(html.escape(line).replace("%{", "% {") for line in lines)


def _reach(estimate: Estimate | None, colour: str) -> dict[str, object]:
    return {**error_bars([estimate] if estimate else []), "color": colour, "thickness": 1.2, "width": 0}
