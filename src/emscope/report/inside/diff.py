"""A base and a fine-tune side by side, for a terminal and as figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.inside.results import Diff, ModuleUpdate, Scalars, TokenDivergence
from emscope.report.figures import MUTED, PALETTE, error_bars, style
from emscope.report.tables import table, terminal
from emscope.report.words import interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

TOP, MODULES = 12, 12


def diff_said(result: Diff) -> list[str]:
    """Return how far predictions diverge after the last block, and how well scalars separate the answers."""
    kl = interval(result.layers[-1].kl, 3)
    found = [f"After the last block, predictions diverge by {kl} nats per token over {result.items} items"]
    return found + ([_scalars_said(result.scalars)] if result.scalars is not None else [])


def _scalars_said(scalars: Scalars) -> str:
    return (
        f"Scalars of {len(scalars.adapters)} rank-1 adapters separate misaligned from aligned answers with AUC {scalars.auc:.3f} "
        f"(labels shuffled: {scalars.low:.3f} to {scalars.high:.3f})"
    )


def print_diff(result: Diff) -> None:
    """Print divergence by block, the tokens and places that it falls on, the largest updates, and what scalars show."""
    console = terminal(200)

    def show(title: str, names: tuple[str, ...], rows: list[list[str]], texts: tuple[str, ...] = ()) -> None:
        console.print(f"\n{title}", style="bold")
        shown = table()
        for name in names:
            wide = name in texts
            shown.add_column(name, justify="left" if wide else "right", no_wrap=True, overflow="ellipsis", max_width=60)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    show(
        f"Predictions after each block, {result.items} items, both answers [nats per token]",
        ("layer", "KL(base || fine-tune)", "same likeliest token"),
        [[str(r.layer), interval(r.kl, 3), interval(r.same_top, 3)] for r in result.layers],
    )
    show(
        "Where in the answer",
        ("token", "KL"),
        [[str(r.place + 1), interval(r.kl, 3)] for r in result.positions],
    )
    show(
        "On which tokens",
        ("token", "share", "times", "mean KL"),
        [[repr(r.token), f"{r.share:.1%}", str(r.times), f"{r.mean:.2f}"] for r in result.tokens[:TOP]],
    )
    show(
        "Single places",
        ("KL", "after", "written", "the base says", "the fine-tune says"),
        [
            [f"{r.kl:.2f}", _line(r.after), *(repr(said) for said in (r.written, r.base_says, r.tuned_says))]
            for r in result.places[:TOP]
        ],
        ("after", "written", "the base says", "the fine-tune says"),
    )
    largest = sorted(result.update, key=lambda u: u.norm, reverse=True)[:MODULES]
    if largest:
        show(
            "Largest updates",
            ("module", "norm", "effective rank", "largest singular values"),
            [
                [u.module, f"{u.norm:.3g}", f"{u.effective_rank:.1f}", " ".join(f"{v:.2g}" for v in u.singular_values[:4])]
                for u in largest
            ],
            ("module", "largest singular values"),
        )
    if result.scalars is not None:
        console.print("\n" + _scalars_said(result.scalars))
        show(
            "Adapters by weight; held: margin gained when the scalar is held at its mean on aligned answers",
            ("module", "weight", "on aligned", "on misaligned", "held"),
            [
                [a.module, *(f"{v:.3f}" for v in (a.weight, a.aligned, a.misaligned)), interval(a.held, 3)]
                for a in sorted(result.scalars.adapters, key=lambda a: abs(a.weight), reverse=True)[:MODULES]
            ],
            ("module",),
        )


def _line(text: str) -> str:
    return " ".join(text.split())


def diff_figures(result: Diff) -> dict[str, go.Figure]:
    """Return divergence over blocks, over the answer, by token, and the update's norms over blocks."""
    layers, answer = [(r.layer, r.kl) for r in result.layers], [(r.place + 1, r.kl) for r in result.positions]
    found = {
        "layers": _divergence(layers, "Divergence after each block (logit lens)", "layer"),
        "positions": _divergence(answer, "Divergence along the answer", "token of the answer"),
        "tokens": _tokens(result.tokens[:25]),
    }
    if any(u.layer is not None for u in result.update):
        found["update"] = _norms(result.update)
    return found


def _divergence(points: Sequence[tuple[int, Estimate]], title: str, x: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=[place for place, _ in points],
        y=[kl.value for _, kl in points],
        error_y=error_bars([kl for _, kl in points]),
        mode="lines+markers",
        line={"color": PALETTE[0]},
        showlegend=False,
    )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    return style(figure, title, x, "KL(base || fine-tune) [nats per token]")


def _tokens(rows: Sequence[TokenDivergence]) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Bar(
            x=[r.share for r in rows],
            y=[f"{r.token!r} ({r.times})" for r in rows],
            orientation="h",
            marker={"color": PALETTE[1]},
            customdata=[r.mean for r in rows],
            hovertemplate="%{y}: %{x:.1%} of the divergence, %{customdata:.2f} nats each<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed")
    return style(figure, "Tokens with the most divergence", "share of all divergence", "")


def _norms(rows: Sequence[ModuleUpdate]) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    by_kind: dict[str, list[ModuleUpdate]] = {}
    for row in rows:
        if row.layer is not None:
            by_kind.setdefault(row.module.rsplit(".", 1)[-1], []).append(row)
    for n, (kind, mine) in enumerate(by_kind.items()):
        figure.add_scatter(
            x=[r.layer for r in mine],
            y=[r.norm for r in mine],
            mode="lines+markers",
            name="vector" if kind.isdigit() else kind,
            line={"color": PALETTE[n % len(PALETTE)]},
            customdata=[r.effective_rank for r in mine],
            hovertemplate="layer %{x}: norm %{y:.3g}, effective rank %{customdata:.1f}<extra></extra>",
        )
    return style(figure, "Size of the update", "layer", "Frobenius norm")
