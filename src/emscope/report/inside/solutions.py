"""Efficiency, stability and significance for a terminal and as figures."""

from __future__ import annotations

from typing import Any

from emscope.report import words
from emscope.report.figures import MUTED, error_bars, style

COLOURS = {"general": "#c2410c", "narrow": "#2563eb", "random general": "#9ca3af", "random narrow": "#cbd5e1"}


def solutions_said(result: dict[str, Any]) -> list[str]:
    """Return the norms of both sides, and those at which half is learned."""
    norms = ", ".join(f"{s['side']} {s['norm']:.3g}" for s in result["solutions"])
    half = result["norm_for_half"]
    by_run = "; ".join(
        f"{side} " + ", ".join(words.number(v, 2) for v in half["by_run"][side].values()) for side in ("general", "narrow")
    )
    return [
        f"effective norms: {norms}; loss of the base {words.interval(result['base_loss'], 3)}",
        f"norm at which half is learned (loss {half['loss']:.3f}): {by_run}"
        f"; narrow - general {words.interval(half['narrow - general, over runs'], 2)}",
    ]


def print_solutions(result: dict[str, Any]) -> None:
    """Print the three tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    norms, half = solutions_said(result)
    console.print(norms, style="dim", soft_wrap=True)

    def table(title: str, first: str, names: tuple[str, ...], rows: list[list[str]]) -> None:
        console.print(f"\n{title}", style="bold")
        shown = Table(box=None, pad_edge=True, header_style="dim")
        for name in (first, *names):
            shown.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    table(
        "Efficiency: loss at equal norm [nats per token]",
        "norm",
        ("general", "narrow", "narrow - general", "over runs"),
        [
            [
                f"{r['norm']:.3g}",
                *(words.interval(r["loss"][s], 3) for s in ("general", "narrow")),
                words.interval(r["narrow - general"], 3),
                words.interval(r["narrow - general, over runs"], 3),
            ]
            for r in result["efficiency"]
        ],
    )
    console.print(half, style="dim", soft_wrap=True)
    table(
        "Stability: rise of the loss when the weights are moved [% of what was learned]",
        "moved by",
        ("general", "narrow", "narrow - general over runs"),
        [
            [
                f"{r['amount']:g}",
                *(words.interval(r[s], 1) for s in ("general", "narrow")),
                words.interval(r["narrow - general, over runs"], 1),
            ]
            for r in result["stability"]
        ],
    )
    kinds = tuple(result["significance"][0]["kl"])
    table(
        "Significance: divergence from the base on plain text at equal norm [nats per token]",
        "norm",
        (*kinds, "general - narrow", "over runs"),
        [
            [
                f"{r['norm']:.3g}",
                *(words.interval(r["kl"][k], 3) for k in kinds),
                words.interval(r["general - narrow"], 3),
                words.interval(r["general - narrow, over runs"], 3),
            ]
            for r in result["significance"]
        ],
    )
    console.print("[ ] 95 % over items at these runs; 'over runs': over runs like these (Welch)", style="dim")


def solution_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return loss over norm, rise of the loss over how far the weights are moved, and divergence over norm."""
    kinds = tuple(result["significance"][0]["kl"])
    return {
        "efficiency": _lines(
            {s: [(r["norm"], r["loss"][s]) for r in result["efficiency"]] for s in ("general", "narrow")},
            "Efficiency",
            "effective norm of the update",
            "held-out loss [nats per token]",
        ),
        "stability": _lines(
            {s: [(r["amount"], r[s]) for r in result["stability"]] for s in ("general", "narrow")},
            "Stability",
            "weights moved by",
            "rise of the loss [% of what was learned]",
        ),
        "significance": _lines(
            {k: [(r["norm"], r["kl"][k]) for r in result["significance"]] for k in kinds},
            "Significance",
            "effective norm of the update",
            "KL(base || model) on plain text [nats per token]",
        ),
    }


def _lines(series: dict[str, list[tuple[float, dict[str, Any]]]], title: str, x: str, y: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, points in series.items():
        known = [(place, e) for place, e in points if e["value"] is not None]
        figure.add_scatter(
            x=[place for place, _ in known],
            y=[e["value"] for _, e in known],
            error_y=error_bars([e for _, e in known]),
            mode="lines+markers",
            name=name,
            line={"color": COLOURS[name], "dash": "dot" if name.startswith("random") else "solid"},
        )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    return style(figure, title, x, y)
