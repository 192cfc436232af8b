"""Figures of a check: the task, training itself, categories, margins, and judged rates beside preference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.report.figures import COLOURS, INK, MUTED, PALETTE, band, error_bars, mark_stop, style
from emscope.study.decision.checked import CheckResult
from emscope.study.decision.opinions import Opinion
from emscope.study.report import Distributions
from emscope.study.tables import GeometryRow, LogRow

if TYPE_CHECKING:
    import plotly.graph_objects as go


def task_figure(check: CheckResult, title: str = "") -> go.Figure | None:
    """Draw the task gain along training on loss and on margin; None where the task was not measured."""
    import plotly.graph_objects as go

    figure = go.Figure()
    _gains(figure, [(c.step, c.gain) for c in check.checkpoints], "gain on held-out loss", "#2563eb")
    _gains(figure, [(c.step, c.gain_margin) for c in check.checkpoints], "gain on held-out margin", "#7c3aed")
    if not figure.data:
        return None
    figure.add_hline(
        y=0.9,
        line={"dash": "dash", "color": INK, "width": 1},
        annotation_text="converged: .90",
        annotation_position="bottom right",
    )
    if check.convergence is not None:
        figure.add_vline(
            x=check.convergence,
            line={"color": MUTED, "dash": "dot"},
            annotation_text="converged",
            annotation_position="top left",
        )
    mark_stop(figure, check.stop)
    return style(figure, title, "optimiser step", "share of the best checkpoint's gain")


def _gains(figure: go.Figure, gains: Sequence[tuple[int, Estimate | None]], name: str, colour: str) -> None:
    known = [(step, gain) for step, gain in gains if gain is not None and gain.value is not None]
    if known:
        band(figure, [step for step, _ in known], [gain for _, gain in known], name, colour)


def training_figure(log: Sequence[LogRow], geometry: Sequence[GeometryRow], title: str = "") -> go.Figure | None:
    """Draw loss, restraint, gradient, update and the vectors' turns by step; None without a training log."""
    from plotly.subplots import make_subplots

    if not log:
        return None
    rows = sorted(log, key=lambda r: r.step)
    turns = sorted({g.what for g in geometry if g.what.startswith("rotation") and g.what.removeprefix("rotation").isdigit()})
    panels: dict[str, dict[str, list[tuple[int, float | None]]]] = {
        "loss [nats per token]": {
            "training loss": [(r.step, r.loss) for r in rows],
            "held-out loss": [(r.step, r.heldout_loss) for r in rows],
            "KL": [(r.step, r.kl) for r in rows],
            "LDIFS": [(r.step, r.ldifs) for r in rows],
        },
        "gradient norm": {"gradient norm": [(r.step, r.grad_norm) for r in rows]},
        "norm of the update": {"norm of the update": [(r.step, r.update_norm) for r in rows]},
    }
    if turns:
        panels["local rotation"] = {
            f"turn over {what.removeprefix('rotation')} steps": sorted((g.step, g.value) for g in geometry if g.what == what)
            for what in turns
        }
    figure = make_subplots(1, len(panels), horizontal_spacing=0.07)
    colours = iter(PALETTE)
    for column, series in enumerate(panels.values(), 1):
        for name, points in series.items():
            known = [(step, value) for step, value in points if value is not None]
            if known:
                _line(figure, known, name, next(colours), column)
    figure = style(figure, title, "optimiser step", "")
    for column, label in enumerate(panels, 1):
        figure.update_yaxes(title=label, row=1, col=column)
    return figure


def _line(figure: go.Figure, points: Sequence[tuple[int, float]], name: str, colour: str, column: int) -> None:
    figure.add_scatter(
        x=[x for x, _ in points],
        y=[y for _, y in points],
        name=name,
        mode="lines",
        line={"color": colour, "width": 2},
        hovertemplate="step %{x}: %{y:.4g}<extra>" + name + "</extra>",
        row=1,
        col=column,
    )


def category_figure(check: CheckResult, title: str = "") -> go.Figure:
    """Draw the effect by item category at the last checkpoint."""
    import plotly.graph_objects as go

    rows = sorted(check.checkpoints[-1].by_category.items(), key=lambda kv: kv[1].value or 0)
    figure = go.Figure(
        go.Bar(
            x=[e.value for _, e in rows],
            y=[c for c, _ in rows],
            orientation="h",
            marker_color=COLOURS["target"],
            error_x={**error_bars([e for _, e in rows]), "color": INK},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.add_vline(x=check.delta, line={"dash": "dash", "color": INK, "width": 1})
    return style(figure, title, "effect at the last checkpoint [nats per token]", "", legend=False)


def judged_figure(judge: Opinion, title: str = "") -> go.Figure:
    """Return judged rates against preference contrasts, or against steps where preference was not read; one point per checkpoint, one colour per arm."""
    import plotly.graph_objects as go

    unread = all(r.preference is None for r in judge.rates)
    figure = go.Figure()
    for arm in dict.fromkeys(r.arm for r in judge.rates):
        mine = [r for r in judge.rates if r.arm == arm and (unread or r.preference is not None) and r.rate.value is not None]
        figure.add_trace(
            go.Scatter(
                x=[r.step if unread else r.preference for r in mine],
                y=[r.rate.value for r in mine],
                error_y={**error_bars([r.rate for r in mine]), "thickness": 1},
                mode="markers",
                name=arm,
                text=[f"{r.run} step {r.step}" for r in mine],
            )
        )
    across = "step" if unread else "preference: base - checkpoint [nats per token]"
    return style(figure, title, across, f"rate of misaligned answers ({judge.judge})")


def margin_figure(distributions: Distributions, title: str = "") -> go.Figure:
    """Draw each arm's margins over the items at its last checkpoint."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, values in distributions.margins.items():
        colour = COLOURS.get(name, COLOURS["style"])
        figure.add_violin(
            x=values,
            name=name,
            line_color=colour,
            meanline_visible=True,
            orientation="h",
            points=False,
            side="positive",
            width=1.6,
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    return style(figure, title, "margin: > 0 prefers the answer without the behaviour [nats per token]", "", legend=False)
