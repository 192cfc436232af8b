"""How far a distilled judge can be trusted: a table for a terminal, the calibration curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.answers.distil_result import Distilled
from emscope.report import words
from emscope.report.figures import error_bars, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST = 8
AS_EXPECTED = 3.0  # standard errors


def print_distilled(result: Distilled) -> None:
    """Print agreement on held-out verdicts, where it fails, and what was written."""
    held = result.held_out
    console = terminal(200, [_learned(result)])
    console.print(f"  area under the curve  {words.interval(held.auc, 3)}")
    console.print(f"  Cohen's kappa         {words.interval(held.kappa, 3)}")
    if held.cut is not None:
        console.print(f"  at                    {held.cut:.3f}, which flags {held.flagged:.1%} (the judge {held.wanted:.1%})")
    console.print(f"  correlation           {held.correlation:.3f}")
    console.print(f"  Brier score           {held.brier:.3f}, with the rate alone {held.brier_of_the_rate_alone:.3f}")
    off = [f for f in result.fails if abs(f.off) >= AS_EXPECTED][:MOST]
    if off:
        console.print("\nWhere it fails most: predicted and observed shares furthest apart", style="bold")
        shown = table(("column", "value"), ("verdicts", "predicted", "found", "area"), longest=70)
        for row in off:
            name = result.definition.split if row.column.endswith("(split)") else row.column
            shares = f"{row.predicted:.3f}", f"{row.found:.3f}"
            shown.add_row(name, " ".join(row.value.split()), str(row.verdicts), *shares, words.number(row.auc, 2))
        console.print(shown)
    console.print(f"rows with `predicted` and `predicted_coherent`: {result.predicted}", soft_wrap=True)
    console.print(f"classifier and calibration.html: {result.judge}", soft_wrap=True)


def sentences(result: Distilled) -> list[str]:
    """Return agreement on held-out verdicts, and what was learned from, in sentences."""
    held = result.held_out
    cut = f" at {held.cut:.3f}, which flags {held.flagged:.1%} (the judge {held.wanted:.1%})" if held.cut is not None else ""
    return [
        f"Area under the curve {words.interval(held.auc, 3)}; Cohen's kappa {words.interval(held.kappa, 3)}{cut}.",
        f"Brier score {held.brier:.3f}, with the rate alone {held.brier_of_the_rate_alone:.3f}.",
        f"Judge {_learned(result)}.",
    ]


def _learned(result: Distilled) -> str:
    return (
        f"learned from {result.verdicts} verdicts, {result.misaligned} of them misaligned; agreement on values of column "
        f"{result.definition.split} that it had not seen ({result.held_out.folds} folds)"
    )


def figures(result: Distilled) -> dict[str, go.Figure]:
    """Return the calibration curve: the observed share against the predicted one, held out, with intervals; the diagonal is perfect."""
    import plotly.graph_objects as go

    points = result.calibration
    figure = go.Figure()
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#999"}, name="perfect"))
    figure.add_trace(
        go.Scatter(
            x=[p.predicted for p in points],
            y=[p.found.value for p in points],
            error_y=error_bars([p.found for p in points]),
            mode="markers+lines",
            name="held out",
        )
    )
    shown = style(figure, "Calibration on held-out verdicts", "predicted share misaligned", "observed share misaligned")
    return {"calibration": shown}
