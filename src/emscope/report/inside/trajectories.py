"""The weight-space trajectories of fine-tunes for a terminal and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.inside.results import Trajectories
from emscope.report import words
from emscope.report.figures import INK, PALETTE, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go


def trajectories_said(result: Trajectories) -> list[str]:
    """Return how much of all updates the axes hold."""
    return ["the axes hold " + ", ".join(f"{s:.0%}" for s in result.shares) + " of all updates"]


def print_trajectories(result: Trajectories) -> None:
    """Print each checkpoint's norm, place on the first two axes, and cosine with each run's end."""
    points = result.checkpoints
    ends = list(points[0].cosine_with_end)
    named = words.tails(ends)
    numbers = ("step", "norm", "axis 1", "axis 2", *(f"cos {n}" for n in range(1, len(ends) + 1)))
    shown = table(("", "run"), numbers)
    for p in points:
        cosines = [f"{p.cosine_with_end[e]:.2f}" for e in ends]
        axes = [f"{v:.3f}" for v in _first_two(p.point)]
        shown.add_row(str(ends.index(p.run) + 1), named[p.run], str(p.step), f"{p.norm:.3g}", *axes, *cosines)
    console = terminal(220, [*trajectories_said(result), "cosines are with the ends of the runs, by their numbers"])
    console.print(shown)


def _first_two(values: Sequence[float]) -> list[float]:
    return [*values, 0.0, 0.0][:2]


def trajectory_figures(result: Trajectories) -> dict[str, go.Figure]:
    """Return the paths on the first two axes from the base, and the cosine with each run's end along training."""
    import plotly.graph_objects as go

    runs = list(dict.fromkeys(p.run for p in result.checkpoints))
    ways, turns, named = go.Figure(), go.Figure(), words.tails(runs)
    for n, run in enumerate(runs):
        mine = [p for p in result.checkpoints if p.run == run]
        places = [[0.0, 0.0], *(_first_two(p.point) for p in mine)]
        ways.add_scatter(
            x=[p[0] for p in places],
            y=[p[1] for p in places],
            mode="lines+markers",
            name=named[run],
            line={"color": PALETTE[n % len(PALETTE)]},
            text=["base", *(f"step {p.step}, norm {p.norm:.3g}" for p in mine)],
            hovertemplate="%{text}<extra></extra>",
        )
        for end in runs:
            if end != run:
                turns.add_scatter(
                    x=[p.step for p in mine],
                    y=[p.cosine_with_end[end] for p in mine],
                    mode="lines+markers",
                    name=f"{named[run]} with the end of {named[end]}",
                )
    ways.add_scatter(x=[0], y=[0], mode="markers", name="base", marker={"color": INK, "size": 11, "symbol": "x"})
    axes = [f"axis {n + 1} ({s:.0%})" for n, s in enumerate([*result.shares, 0.0][:2])]
    found = {"ways": style(ways, "Updates on their main axes", axes[0], axes[1])}
    if len(runs) > 1:
        found["turns"] = style(turns, "Cosine with the ends of other runs", "optimiser step", "cosine")
    return found
