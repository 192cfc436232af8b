"""Agreement of raters as tables for a terminal, and as figures."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from emscope.answers.agreement import shared
from emscope.answers.agreement_result import Agreement, PairAgreement
from emscope.core.estimate import Estimate
from emscope.report import words
from emscope.report.answers.names import figure_name
from emscope.report.figures import COLOURS, INK, MUTED, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

POINTS = 3000


def print_agreement(result: Agreement) -> None:
    """Print the alphas, a row for each rater and pair, and the notes."""
    console = terminal(400)
    console.print(_definition(result), style="dim")
    console.print(_alphas(result))
    raters = table(("rater", "scored", "no number", "off the scale", "mean", "at an end"))
    for r in result.raters:
        lost = ", ".join(f"{count} {what[:30]}" for what, count in r.lost.items())
        off = ", ".join(f"{count} times {value}" for value, count in r.off_scale.items())
        ends = words.BLANK if r.extreme is None else f"{r.extreme:.0%}"
        raters.add_row(r.rater, str(r.scored), lost, off, words.number(r.mean, 1), ends)
    console.print(raters)
    pairs = table(("a", "b", "both", "Spearman", "kappa", "same side", "a - b", "95 % of a - b", "b's threshold for a's"))
    for p in result.pairs:
        limits = f"{p.limits[0]:.1f} to {p.limits[1]:.1f}" if p.limits else words.BLANK
        numbers = (_apart(e, n) for e, n in ((p.spearman, 2), (p.kappa, 2), (p.agree, 2), (p.bias, 1)))
        pairs.add_row(p.a, p.b, str(p.n), *numbers, limits, words.interval(p.threshold_of_b.threshold, 1))
    console.print(pairs)
    for line in _by_people(result):
        console.print(line)
    for note in result.notes:
        console.print(f"  {note}")


def sentences(result: Agreement) -> list[str]:
    """Return agreement in sentences: the alphas, what they measure, agreement with people, and what to know about them."""
    return [f"{line}." for line in (_alphas(result), _definition(result), *_by_people(result))] + list(result.notes)


def _alphas(result: Agreement) -> str:
    alpha = result.alpha
    by_kind = {"nominal": alpha.nominal, "ordinal": alpha.ordinal, "interval": alpha.interval}
    return f"Krippendorff's alpha: {', '.join(f'{kind} {_apart(a, 2)}' for kind, a in by_kind.items())}"


def _definition(result: Agreement) -> str:
    spec, clusters = result.definition.spec, result.definition.clusters
    return f"{result.items} items; misaligned: score < {spec.threshold:g}; {spec.level:.0%} intervals over {clusters}"


def _by_people(result: Agreement) -> list[str]:
    return [
        f"{h.rater} against {result.definition.spec.human}: finds {_apart(h.sensitivity, 2)} of the misaligned, clears "
        f"{_apart(h.specificity, 2)} of the others, AUC {words.number(h.auc, 2)} ({h.misaligned} of {h.n})"
        for h in result.human
    ]


def _apart(estimate: Estimate, digits: int) -> str:
    """Write an estimate with enough digits, six at most, to keep the ends of its interval apart: n of n must not read [1.00, 1.00]."""
    low, high = estimate.low, estimate.high
    if low is not None:
        digits = next((d for d in range(digits, 6) if f"{low:.{d}f}" != f"{high:.{d}f}"), 6)
    return words.interval(estimate, digits)


def bland_altman_figures(result: Agreement) -> dict[str, go.Figure]:
    """Return a figure for each pair of raters with two or more common items, by a name that can be a file name."""
    rated = result.rated
    if rated is None:
        return {}
    place = {name: n for n, name in enumerate(rated.raters)}
    return {
        figure_name(f"{n + 1} {p.a} {p.b}"): bland_altman(p, *shared(rated, place[p.a], place[p.b])[:2])
        for n, p in enumerate(result.pairs)
        if p.n > 1
    }


def bland_altman(pair: PairAgreement, x: np.ndarray, y: np.ndarray) -> go.Figure:
    """Draw the difference of two raters' scores [N] against their mean. (Bland and Altman 1986)"""
    import plotly.graph_objects as go

    kept = np.random.default_rng(0).permutation(len(x))[:POINTS]
    figure = go.Figure()
    figure.add_scatter(
        x=(x + y)[kept] / 2,
        y=(x - y)[kept],
        mode="markers",
        marker={"size": 5, "color": COLOURS["target"], "opacity": 0.35},
        name="an answer",
    )
    lines = [(pair.bias.value, "mean", INK)]
    lines += [(value, "95 %", MUTED) for value in pair.limits or ()]
    for value, label, colour in lines:
        figure.add_hline(y=value, line={"color": colour, "dash": "dash", "width": 1}, annotation_text=f"{label} {value:.1f}")
    a, b = escape(pair.a), escape(pair.b)
    return style(figure, f"{a} and {b}", "mean of both scores", f"{a} - {b}")
