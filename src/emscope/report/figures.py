"""Plotly figures from check objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emscope.store.files import write_text

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = {"target": "#c2410c", "control": "#0f766e", "base": "#6b7280", "style": "#7c3aed"}
STATES = {
    "safe": "#0f766e",
    "em": "#c2410c",
    "moved": "#c2410c",
    "style_drift": "#7c3aed",
    "control_moved": "#0891b2",
    "undetermined": "#b6900a",
}
PALETTE = ("#c2410c", "#2563eb", "#0f766e", "#7c3aed", "#b6900a", "#be185d", "#475569", "#65a30d", "#0891b2", "#92400e")
LINES = {
    "control - target": COLOURS["target"],
    "base - target": "#2563eb",
    "base - control": COLOURS["control"],
    "target - control": COLOURS["target"],
    "target - base": "#2563eb",
}


def effect_figure(check: dict[str, Any], title: str = "", y: str = "difference in margin [nats per token]") -> Any:
    """Draw the contrasts along training, the threshold, the onset bracket and the checkpoint to ship."""
    import plotly.graph_objects as go

    figure = go.Figure()
    points = check["checkpoints"]
    for name, colour in LINES.items():
        rows = [(c["step"], c["contrasts"][name]) for c in points if name in c["contrasts"]]
        if rows:
            _band(figure, [s for s, _ in rows], [e for _, e in rows], name, colour)
    figure.add_scatter(
        x=[c["step"] for c in points],
        y=[c["effect"]["value"] for c in points],
        mode="markers",
        name="state of the checkpoint",
        marker={"size": 12, "color": [STATES[c["state"]] for c in points], "line": {"width": 2, "color": "white"}},
        customdata=[c["state"] for c in points],
        hovertemplate="step %{x}: %{customdata}, %{y:.3f}<extra></extra>",
    )
    figure.add_hline(
        y=check["delta"],
        line={"dash": "dash", "color": INK, "width": 1},
        annotation_text="delta",
        annotation_position="right",  # beside the plot, clear of the points
    )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    if check["onset"]:
        figure.add_vrect(
            x0=check["onset"]["after"],
            x1=check["onset"]["by"],
            fillcolor="#fde68a",
            opacity=0.35,
            line_width=0,
            annotation_text="onset",
            annotation_position="top left",
        )
    if check["stop"]:
        figure.add_vline(
            x=check["stop"]["step"],
            line={"color": STATES["safe"], "width": 2, "dash": "dot"},
            annotation_text="ship this",
            annotation_position="bottom right",
        )
    return style(figure, title, "optimiser step", y)


def task_figure(check: dict[str, Any], title: str = "") -> Any | None:
    """Draw the task gain along training on loss and on margin; None where the task was not measured."""
    import plotly.graph_objects as go

    points = check["checkpoints"]
    figure = go.Figure()
    for key, name, colour in (
        ("gain", "gain on held-out loss", "#2563eb"),
        ("gain_margin", "gain on held-out margin", "#7c3aed"),
    ):
        rows = [(c["step"], c[key]) for c in points if c[key] and c[key]["value"] is not None]
        if rows:
            _band(figure, [s for s, _ in rows], [e for _, e in rows], name, colour)
    if not figure.data:
        return None
    figure.add_hline(
        y=0.9,
        line={"dash": "dash", "color": INK, "width": 1},
        annotation_text="converged: .90",
        annotation_position="bottom right",
    )
    if check["convergence"] is not None:
        figure.add_vline(
            x=check["convergence"],
            line={"color": MUTED, "dash": "dot"},
            annotation_text="converged",
            annotation_position="top left",
        )
    if check["stop"]:
        figure.add_vline(
            x=check["stop"]["step"],
            line={"color": STATES["safe"], "width": 2, "dash": "dot"},
            annotation_text="ship this",
            annotation_position="bottom right",
        )
    return style(figure, title, "optimiser step", "share of the best checkpoint's gain")


def training_figure(log: list[dict[str, Any]], geometry: list[dict[str, Any]], title: str = "") -> Any | None:
    """Draw loss, what holds the model, gradient, update and the vectors' turns by step; None without a training log."""
    from plotly.subplots import make_subplots

    if not log:
        return None
    rows = sorted(log, key=lambda r: r["step"])
    turns = sorted(
        {r["what"] for r in geometry if r["what"].startswith("rotation") and r["what"].removeprefix("rotation").isdigit()}
    )
    panels = {
        "loss [nats per token]": [
            ("training loss", "loss"),
            ("held-out loss", "heldout_loss"),
            ("KL", "kl"),
            ("LDIFS", "ldifs"),
        ],
        "gradient norm": [("gradient norm", "grad_norm")],
        "norm of the update": [("norm of the update", "update_norm")],
    }
    count = len(panels) + bool(turns)
    figure = make_subplots(1, count, horizontal_spacing=0.07)
    colours = iter(PALETTE)
    for column, series in enumerate(panels.values(), 1):
        for name, key in series:
            points = [(r["step"], r[key]) for r in rows if r[key] is not None]
            if points:
                _line(figure, points, name, next(colours), column)
    for what in turns:
        points = sorted((r["step"], r["value"]) for r in geometry if r["what"] == what)
        _line(figure, points, f"turn over {what.removeprefix('rotation')} steps", next(colours), count)
    figure = style(figure, title, "optimiser step", "")
    for column, label in enumerate([*panels, *(["local rotation"] if turns else [])], 1):
        figure.update_yaxes(title=label, row=1, col=column)
    return figure


def _line(figure: Any, points: list[tuple[int, float]], name: str, colour: str, column: int) -> None:
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


def category_figure(check: dict[str, Any], title: str = "") -> Any:
    """Draw the effect by item category at the last checkpoint."""
    import plotly.graph_objects as go

    rows = sorted(check["checkpoints"][-1]["by_category"].items(), key=lambda kv: kv[1]["value"] or 0)
    values = [e["value"] for _, e in rows]
    reach = {
        "type": "data",
        "symmetric": False,
        "array": [e["high"] - e["value"] for _, e in rows],
        "arrayminus": [e["value"] - e["low"] for _, e in rows],
        "color": INK,
    }
    figure = go.Figure(
        go.Bar(
            x=values,
            y=[c for c, _ in rows],
            orientation="h",
            marker_color=COLOURS["target"],
            error_x=reach,
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    figure.add_vline(x=check["delta"], line={"dash": "dash", "color": INK, "width": 1})
    return style(figure, title, "effect at the last checkpoint [nats per token]", "", legend=False)


def judged_figure(judge: dict[str, Any], title: str = "") -> Any:
    """Return judged rates against preference contrasts, a point a checkpoint, a colour an arm."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in dict.fromkeys(r["arm"] for r in judge["rates"]):
        mine = [r for r in judge["rates"] if r["arm"] == arm and r["preference"] is not None and r["rate"]["value"] is not None]
        ends = [(r["rate"]["low"], r["rate"]["value"], r["rate"]["high"]) for r in mine]
        reach = {
            "type": "data",
            "symmetric": False,
            "array": [0 if high is None else high - value for _, value, high in ends],
            "arrayminus": [0 if low is None else value - low for low, value, _ in ends],
            "thickness": 1,
        }
        figure.add_trace(
            go.Scatter(
                x=[r["preference"] for r in mine],
                y=[r["rate"]["value"] for r in mine],
                error_y=reach,
                mode="markers",
                name=arm,
                text=[f"{r['run']} step {r['step']}" for r in mine],
            )
        )
    return style(
        figure, title, "preference: base - checkpoint [nats per token]", f"rate of misaligned answers ({judge['judge']})"
    )


def margin_figure(distributions: dict[str, Any], title: str = "") -> Any:
    """Draw each arm's margins over the items at its last checkpoint."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, values in distributions["margins"].items():
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


def _band(figure: Any, steps: list[int], estimates: list[dict[str, Any]], name: str, colour: str) -> None:
    low = [e["value"] if e["low"] is None else e["low"] for e in estimates]
    high = [e["value"] if e["high"] is None else e["high"] for e in estimates]
    figure.add_scatter(
        x=steps + steps[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=colour,
        opacity=0.14,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    level = estimates[0]["level"]
    figure.add_scatter(
        x=steps,
        y=[e["value"] for e in estimates],
        name=f"{name} ({level:.0%} interval)",
        legendgroup=name,
        mode="lines+markers",
        line={"color": colour, "width": 2.5},
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="step %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra>" + name + "</extra>",
    )


def error_bars(estimates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return estimates' intervals as plotly's error bars; none where a value is unknown."""
    known = [(0.0, 0.0) if e["value"] is None else (e["high"] - e["value"], e["value"] - e["low"]) for e in estimates]
    return {"type": "data", "symmetric": False, "array": [a for a, _ in known], "arrayminus": [b for _, b in known]}


def style(figure: Any, title: str, x: str, y: str, *, legend: bool = True) -> Any:
    """Give a figure the house look, its title and the names of its axes; return it."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}},
        template="plotly_white",
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


def write_figures(figures: list[Any], path: Path, title: str) -> None:
    """Write figures into one page that needs no network."""
    parts = [f.to_html(full_html=False, include_plotlyjs=not n) for n, f in enumerate(figures)]
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title><body>"
    write_text(path, page + "\n".join(parts) + "</body></html>\n")
