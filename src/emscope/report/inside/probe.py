"""The prior probe for a terminal and as a figure."""

from __future__ import annotations

from typing import Any

from emscope.report import words
from emscope.report.figures import MUTED, PALETTE, error_bars, style


def probes_said(result: dict[str, Any]) -> list[str]:
    """Return what was predicted from how much, and how p-values of several probes are corrected."""
    d = result["definition"]
    found = [
        f"{result['prompts']} prompts of {result['questions']} questions, score {d['score']}; R^2 on held-out questions, {d['folds']} folds x "
        f"{d['repeats']}"
    ]
    if len(result["rows"]) > 1:
        found.append(
            f"p-values are corrected for the best of {len(result['rows'])} probes: by Holm, those of shuffles by the largest R^2 under each shuffle (max-T)."
        )
    return found


def print_probed(result: dict[str, Any]) -> None:
    """Print R^2 of every model, layer and estimator, and of the baselines."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = 260
    about, *corrected = probes_said(result)
    console.print(about, style="dim", soft_wrap=True)
    table = Table(box=None, pad_edge=True, header_style="dim")
    for name in ("model", "layer", "directions", "estimator"):
        table.add_column(name, no_wrap=True)
    beside = [row["name"] for row in result["baselines"]]
    over = [name for b in beside for name in (f"over {b}", "p")]
    for name in ("R^2", "p (mean)", "p (shuffled)", *over, "R^2, categories left out"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result["rows"]:
        basis = row["basis"] if row["basis"] == "pca" else f"random {row['seed']}"
        compared = [
            text
            for b in beside
            for text in (words.interval(row["over"][b]["r2_difference"], 3), words.number(row["over"][b]["p_adjusted"], 3))
        ]
        tests = [words.number(row[p], 3) for p in ("p_mean_adjusted", "p_permutation_adjusted")]
        left_out = words.number(row["r2_categories_left_out"], 3)
        place = row["model"], str(row["layer"]), basis, row["estimator"]
        table.add_row(*place, words.interval(row["r2"], 3), *tests, *compared, left_out)
    for row in result["baselines"]:
        tests = [words.number(row[p], 3) for p in ("p_mean", "p_permutation")]
        left_out = words.number(row["r2_categories_left_out"], 3)
        table.add_row(f"({row['name']} alone)", "", "", "", words.interval(row["r2"], 3), *tests, *[""] * len(over), left_out)
    console.print(table)
    for sentence in corrected:
        console.print(sentence, style="dim", soft_wrap=True)


def probe_figures(result: dict[str, Any]) -> dict[str, Any]:
    """Return R^2 with intervals over layers, a line for each model, kind of direction and estimator, beside the baselines."""
    import plotly.graph_objects as go

    figure = go.Figure()
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        basis = row["basis"] if row["basis"] == "pca" else f"random {row['seed']}"
        lines.setdefault(f"{row['model']}, {basis}, {row['estimator']}", []).append(row)
    for n, (name, rows) in enumerate(lines.items()):
        known = [r for r in rows if r["r2"]["value"] is not None]
        figure.add_scatter(
            x=[r["layer"] for r in known],
            y=[r["r2"]["value"] for r in known],
            error_y=error_bars([r["r2"] for r in known]),
            mode="lines+markers",
            name=name,
            line={"color": PALETTE[n % len(PALETTE)]},
        )
    for n, row in enumerate(result["baselines"]):
        if row["r2"]["value"] is not None:
            figure.add_hline(
                y=row["r2"]["value"],
                line={"dash": ("dash", "dot")[n % 2], "color": MUTED},
                annotation_text=f"{row['name']} alone",
                annotation_position="right",
            )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    return {"probes": style(figure, "Prior probe", "layer", "R^2 on held-out questions")}
