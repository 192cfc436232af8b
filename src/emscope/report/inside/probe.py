"""The prior probe for a terminal and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.inside.prompt_results import Probe, Probes
from emscope.report import words
from emscope.report.figures import MUTED, PALETTE, error_bars, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go


def probes_said(result: Probes) -> list[str]:
    """Return what was predicted, from how much data, and how p-values of several probes are corrected."""
    definition, count = result.definition, len(result.probes)
    found = [
        f"{result.prompts} prompts of {result.questions} questions, score {definition.score}; R^2 on held-out questions, "
        f"{definition.settings.folds} folds x {definition.settings.repeats}"
    ]
    if count > 1:
        found.append(
            f"p-values are corrected for the best of {count} probes: by Holm; for shuffles, by the largest R^2 under each shuffle (max-T)."
        )
    return found


def print_probed(result: Probes) -> None:
    """Print R^2 of every model, layer and estimator, and of the baselines."""
    about, *corrected = probes_said(result)
    console = terminal(260, [about])
    beside = [b.name for b in result.baselines]
    over = [name for b in beside for name in (f"over {b}", "p")]
    numbers = ("R^2", "p (mean)", "p (shuffled)", *over, "R^2, categories left out")
    shown = table(("model", "layer", "directions", "estimator"), numbers)
    for row in result.probes:
        over_each = [row.corrected.over[b] for b in beside]
        compared = [text for o in over_each for text in (words.interval(o.r2_difference, 3), words.number(o.p_adjusted, 3))]
        tests = [words.number(p, 3) for p in (row.corrected.p_mean_adjusted, row.corrected.p_permutation_adjusted)]
        left_out = words.number(row.found.r2_categories_left_out, 3)
        place = row.model, str(row.layer), _basis(row), row.estimator
        shown.add_row(*place, words.interval(row.found.r2, 3), *tests, *compared, left_out)
    for b in result.baselines:
        tests = [words.number(p, 3) for p in (b.found.p_mean, b.found.p_permutation)]
        left_out = words.number(b.found.r2_categories_left_out, 3)
        shown.add_row(f"({b.name} alone)", "", "", "", words.interval(b.found.r2, 3), *tests, *[""] * len(over), left_out)
    console.print(shown)
    for sentence in corrected:
        console.print(sentence, style="dim", soft_wrap=True)


def _basis(probe: Probe) -> str:
    return probe.basis if probe.basis == "pca" else f"random {probe.seed}"


def probe_figures(result: Probes) -> dict[str, go.Figure]:
    """Return R^2 with intervals over layers, a line for each model, kind of direction and estimator, beside the baselines."""
    import plotly.graph_objects as go

    figure = go.Figure()
    lines: dict[str, list[Probe]] = {}
    for probe in result.probes:
        lines.setdefault(f"{probe.model}, {_basis(probe)}, {probe.estimator}", []).append(probe)
    for n, (name, probes) in enumerate(lines.items()):
        known = [(p.layer, p.found.r2) for p in probes if p.found.r2.value is not None]
        figure.add_scatter(
            x=[layer for layer, _ in known],
            y=[r2.value for _, r2 in known],
            error_y=error_bars([r2 for _, r2 in known]),
            mode="lines+markers",
            name=name,
            line={"color": PALETTE[n % len(PALETTE)]},
        )
    for n, baseline in enumerate(result.baselines):
        if baseline.found.r2.value is not None:
            figure.add_hline(
                y=baseline.found.r2.value,
                line={"dash": ("dash", "dot")[n % 2], "color": MUTED},
                annotation_text=f"{baseline.name} alone",
                annotation_position="right",
            )
    figure.add_hline(y=0, line={"color": MUTED, "width": 1})
    return {"probes": style(figure, "Prior probe", "layer", "R^2 on held-out questions")}
