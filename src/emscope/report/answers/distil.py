"""How far a distilled judge can be trusted: a table for a terminal, the calibration curve."""

from __future__ import annotations

from typing import Any

from emscope.answers.distil_result import Distilled
from emscope.report import words
from emscope.report.answers.estimates import interval
from emscope.report.figures import style

MOST = 8
AS_EXPECTED = 3.0  # standard errors


def print_distilled(result: Distilled) -> None:
    """Print agreement on held-out verdicts, where it fails, and what was written."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 200
    held = result.held_out
    console.print(_learned(result.to_json()), style="dim", soft_wrap=True)
    console.print(f"  area under the curve  {interval(held.auc, 3)}")
    console.print(f"  Cohen's kappa         {interval(held.kappa, 3)}")
    if held.cut is not None:
        console.print(f"  at                    {held.cut:.3f}, which flags {held.flagged:.1%} (the judge {held.wanted:.1%})")
    console.print(f"  correlation           {held.correlation:.3f}")
    console.print(f"  Brier score           {held.brier:.3f}, of the rate alone {held.brier_of_the_rate_alone:.3f}")
    off = [f for f in result.fails if abs(f.off) >= AS_EXPECTED][:MOST]
    if off:
        console.print("\nWhere it fails: predicted and found shares furthest apart", style="bold")
        table = Table(box=None, pad_edge=True, header_style="dim")
        for name in ("column", "value"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=70)
        for name in ("verdicts", "predicted", "found", "area"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in off:
            name = result.definition.split if row.column.endswith("(split)") else row.column
            shares = f"{row.predicted:.3f}", f"{row.found:.3f}"
            table.add_row(name, " ".join(row.value.split()), str(row.verdicts), *shares, words.number(row.auc, 2))
        console.print(table)
    console.print(f"rows with `predicted` and `predicted_coherent`: {result.predicted}", soft_wrap=True)
    console.print(f"classifier and calibration.html: {result.judge}", soft_wrap=True)


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the documented JSON of `distil` in sentences: agreement on held-out verdicts, and what it was learned from."""
    held = found["held_out"]
    cut = (
        f" at {held['cut']:.3f}, which flags {held['flagged']:.1%} (the judge {held['wanted']:.1%})"
        if held["cut"] is not None
        else ""
    )
    return [
        f"Area under the curve {words.interval(held['auc'], 3)}; Cohen's kappa {words.interval(held['kappa'], 3)}{cut}.",
        f"Brier score {held['brier']:.3f}, of the rate alone {held['brier_of_the_rate_alone']:.3f}.",
        f"Judge {_learned(found)}.",
    ]


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Return the calibration curve, of the documented JSON."""
    return {"calibration": calibration_figure(found)}


def _learned(found: dict[str, Any]) -> str:
    return (
        f"learned from {found['verdicts']} verdicts, {found['misaligned']} of them misaligned; agreement on values of column "
        f"{found['definition']['split']} that it has not seen ({found['held_out']['folds']} folds)"
    )


def calibration_figure(result: dict[str, Any]) -> Any:
    """Return the found share against the predicted one, held out, with intervals; the diagonal is perfect."""
    import plotly.graph_objects as go

    points = result["calibration"]
    x = [p["predicted"] for p in points]
    y = [p["found"]["value"] for p in points]
    reach = {
        "type": "data",
        "symmetric": False,
        "array": [p["found"]["high"] - p["found"]["value"] for p in points],
        "arrayminus": [p["found"]["value"] - p["found"]["low"] for p in points],
    }
    figure = go.Figure()
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line={"dash": "dot", "color": "#999"}, name="perfect"))
    figure.add_trace(go.Scatter(x=x, y=y, error_y=reach, mode="markers+lines", name="held out"))
    return style(figure, "Calibration on held-out verdicts", "predicted share misaligned", "found share misaligned")
