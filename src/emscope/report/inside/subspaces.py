"""Subspaces of shifts for a terminal and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.inside.prompt_results import SubspaceAtK, SubspaceRow, Subspaces
from emscope.report import words
from emscope.report.figures import MUTED, PALETTE, error_bars, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go


def subspaces_said(result: Subspaces) -> list[str]:
    """Return what the subspaces are made of, and what is correlated."""
    n, k = result.prompts, max(result.definition.settings.ks)
    return [
        f"subspaces of {k} directions from {n.train} training prompts; {n.held} training prompts held out, {n.other} others. "
        "r: correlation, over the other prompts, with their shift's similarity to the mean training shift"
    ]


def print_subspaces(result: Subspaces) -> None:
    """Print each run at each layer at the largest k, and how much of their subspaces runs share."""
    console = terminal(220, subspaces_said(result))
    k, named = max(result.definition.settings.ks), words.tails(r.run for r in result.shifts)
    numbers = ("layer", "overlap", "held out", "random", "similarity", "r (overlap)", "r (prompt overlap)", "r (cosine)")
    shown = table(("run",), numbers)
    for row in result.shifts:
        at = next((p for p in row.ks if p.k == k), row.ks[-1] if row.ks else None)
        if at is None:
            shown.add_row(named[row.run], str(row.layer), "unchanged")
            continue
        shown.add_row(
            named[row.run],
            str(row.layer),
            words.interval(at.overlap, 2),
            words.interval(at.overlap_held, 2),
            f"{_random(at):.2f}",
            words.interval(row.similarity, 2),
            words.interval(at.r.overlap, 2),
            words.interval(at.r.prompt_overlap, 2),
            words.interval(row.r_cosine, 2),
        )
    console.print(shown)
    shared = [a for a in result.angles if a.k == k]
    if shared:
        console.print("\nShared by two runs: mean squared cosine of principal angles", style="bold")
        pairs = table(("runs",), ("layer", "shared", "random", "largest cosine"))
        for a in shared:
            names = " and ".join(named[r] for r in a.runs)
            pairs.add_row(names, str(a.layer), f"{a.shared:.2f}", f"{a.random:.2f}", f"{a.largest:.2f}")
        console.print(pairs)


def _random(at: SubspaceAtK) -> float:
    """Return the mean overlap with random subspaces."""
    drawn = at.overlap_random.draws
    return sum(drawn) / len(drawn)


def subspace_figures(result: Subspaces) -> dict[str, go.Figure]:
    """Return overlap over k, overlap and similarity over layers, and both by prompt, at the middle of the layers where one has to be chosen."""
    rows = [r for r in result.shifts if r.ks]
    if not rows:
        return {}
    layers = sorted({r.layer for r in rows})
    middle = layers[len(layers) // 2]
    at = [r for r in rows if r.layer == middle]
    found = {"ks": _sweep(at, middle)}
    if len(layers) > 1:
        found["layers"] = _over_layers(rows)
    return found | {"prompts": _by_prompt(at, middle, result.questions)}


def _sweep(rows: Sequence[SubspaceRow], layer: int) -> go.Figure:
    import plotly.graph_objects as go

    figure, named = go.Figure(), words.tails(r.run for r in rows)
    for n, row in enumerate(rows):
        colour = PALETTE[n % len(PALETTE)]
        ks = [p.k for p in row.ks]
        figure.add_scatter(
            x=ks, y=[p.overlap.value for p in row.ks], error_y=error_bars([p.overlap for p in row.ks]), name=named[row.run],
            mode="lines+markers", line={"color": colour},
        )  # fmt: skip
        figure.add_scatter(
            x=ks, y=[p.overlap_held.value for p in row.ks], name=f"{named[row.run]}, training prompts held out",
            mode="lines", line={"color": colour, "dash": "dot"},
        )  # fmt: skip
    first = rows[0].ks
    figure.add_scatter(
        x=[p.k for p in first],
        y=[_random(p) for p in first],
        name="random subspaces",
        mode="lines",
        line={"color": MUTED, "dash": "dash"},
    )
    return style(
        figure,
        f"Overlap with the space of training shifts, layer {layer}",
        "directions k",
        "share of the shift's length inside",
    )


def _over_layers(rows: Sequence[SubspaceRow]) -> go.Figure:
    import plotly.graph_objects as go

    figure, named = go.Figure(), words.tails(r.run for r in rows)
    for n, run in enumerate(dict.fromkeys(r.run for r in rows)):
        mine = [r for r in rows if r.run == run]
        overlap, similarity = [r.ks[-1].overlap for r in mine], [r.similarity for r in mine if r.similarity]
        for name, values, dash in (("overlap", overlap, "solid"), ("similarity", similarity, "dot")):
            figure.add_scatter(
                x=[r.layer for r in mine],
                y=[v.value for v in values],
                error_y=error_bars(values),
                mode="lines+markers",
                name=f"{named[run]}, {name}",
                line={"color": PALETTE[n % len(PALETTE)], "dash": dash},
            )
    return style(figure, "Overlap and shift similarity over layers", "layer", "0 to 1")


def _by_prompt(rows: Sequence[SubspaceRow], layer: int, questions: tuple[str, ...]) -> go.Figure:
    import plotly.graph_objects as go

    figure, named = go.Figure(), words.tails(r.run for r in rows)
    for n, row in enumerate(rows):
        inside = row.ks[-1].by_question
        if inside is not None:
            figure.add_scatter(
                x=inside,
                y=row.by_question,
                mode="markers",
                name=named[row.run],
                text=questions,
                hovertemplate="%{text}: overlap %{x:.2f}, similarity %{y:.2f}<extra></extra>",
                marker={"color": PALETTE[n % len(PALETTE)], "size": 6, "opacity": 0.6},
            )
    return style(
        figure, f"By prompt, layer {layer}", "overlap with the space of training shifts", "cosine with the mean training shift"
    )
