"""Efficiency, stability and significance for a terminal and as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.inside.results import Solutions
from emscope.report import words
from emscope.report.figures import MUTED, error_bars, style
from emscope.report.tables import table, terminal
from emscope.represent.compared import BothSidesAndRandom

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {"general": "#c2410c", "narrow": "#2563eb", "random general": "#9ca3af", "random narrow": "#cbd5e1"}


def solutions_said(result: Solutions) -> list[str]:
    """Return the norms of both sides, and those at which half is learned."""
    norms = ", ".join(f"{s.side} {s.norm:.3g}" for s in result.solutions)
    half = result.norm_for_half
    by_run = "; ".join(
        f"{side} " + ", ".join(words.number(v, 2) for v in runs.values())
        for side, runs in (("general", half.by_run.general), ("narrow", half.by_run.narrow))
    )
    return [
        f"effective norms: {norms}; loss of the base {words.interval(result.base_loss, 3)}",
        f"norm at which half is learned (loss {half.loss:.3f}): {by_run}; narrow - general {words.interval(half.over_runs, 2)}",
    ]


def print_solutions(result: Solutions) -> None:
    """Print the three tables."""
    norms, half = solutions_said(result)
    console = terminal(200, [norms])

    def show(title: str, names: tuple[str, ...], rows: list[list[str]]) -> None:
        console.print(f"\n{title}", style="bold")
        shown = table(numbers=names)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    show(
        "Efficiency: loss at equal norm [nats per token]",
        ("norm", "general", "narrow", "narrow - general", "over runs"),
        [
            [
                f"{r.norm:.3g}",
                *(words.interval(e, 3) for e in (r.loss.general, r.loss.narrow, r.narrow_less_general, r.over_runs)),
            ]
            for r in result.efficiency
        ],
    )
    console.print(half, style="dim", soft_wrap=True)
    show(
        "Stability: rise of the loss when the weights are moved [% of what was learned]",
        ("moved by", "general", "narrow", "narrow - general over runs"),
        [[f"{r.amount:g}", *(words.interval(e, 1) for e in (r.general, r.narrow, r.over_runs))] for r in result.stability],
    )
    show(
        "Significance: divergence from the base on plain text at equal norm [nats per token]",
        ("norm", *_kinds(result.significance[0].kl), "general - narrow", "over runs"),
        [
            [f"{r.norm:.3g}", *(words.interval(e, 3) for e in (*_kinds(r.kl).values(), r.general_less_narrow, r.over_runs))]
            for r in result.significance
        ],
    )
    console.print("[ ] 95 % over items at these runs; 'over runs': over runs like these (Welch)", style="dim")


def _kinds(kl: BothSidesAndRandom) -> dict[str, Estimate]:
    random = {"random general": kl.random_general, "random narrow": kl.random_narrow}
    return {"general": kl.general, "narrow": kl.narrow} | random


def solution_figures(result: Solutions) -> dict[str, go.Figure]:
    """Return loss over norm, rise of the loss over how far the weights are moved, and divergence over norm."""
    kl = [(r.norm, _kinds(r.kl)) for r in result.significance]
    return {
        "efficiency": _lines(
            {
                "general": [(r.norm, r.loss.general) for r in result.efficiency],
                "narrow": [(r.norm, r.loss.narrow) for r in result.efficiency],
            },
            "Efficiency",
            "effective norm of the update",
            "held-out loss [nats per token]",
        ),
        "stability": _lines(
            {
                "general": [(r.amount, r.general) for r in result.stability],
                "narrow": [(r.amount, r.narrow) for r in result.stability],
            },
            "Stability",
            "weights moved by",
            "rise of the loss [% of what was learned]",
        ),
        "significance": _lines(
            {kind: [(norm, by_kind[kind]) for norm, by_kind in kl] for kind in kl[0][1]},
            "Significance",
            "effective norm of the update",
            "KL(base || model) on plain text [nats per token]",
        ),
    }


def _lines(series: dict[str, list[tuple[float, Estimate]]], title: str, x: str, y: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, points in series.items():
        known = [(place, e) for place, e in points if e.value is not None]
        figure.add_scatter(
            x=[place for place, _ in known],
            y=[e.value for _, e in known],
            error_y=error_bars([e for _, e in known]),
            mode="lines+markers",
            name=name,
            line={"color": COLOURS[name], "dash": "dot" if name.startswith("random") else "solid"},
        )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    return style(figure, title, x, y)
