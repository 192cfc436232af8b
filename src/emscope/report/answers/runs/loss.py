"""Loss against a score over runs: tables for a terminal, sentences and a figure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from emscope.answers.labels import Label
from emscope.answers.runs.loss_result import AtEqualLoss, LossBetween, Losses
from emscope.report import words
from emscope.report.figures import PALETTE, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

DOUBT = 0.05  # a smaller p puts a common straight line in doubt


def print_loss(result: Losses) -> None:
    """Print a row per stratum, the combined result, what pooling them would show, and schedules at equal loss."""
    console = terminal(400, [_definition(result)])
    shown = table(("stratum",), ("runs", "Pearson", "Spearman", "slope"))
    for s in result.strata:
        shown.add_row(_name(s.group), str(s.runs), *(words.interval(e, 2) for e in (s.pearson, s.spearman, s.slope)))
    console.print(shown)
    for line in (*_together(result), *_matched(result)):
        console.print(line)
    if result.matched:
        console.print(_pairs(result))
    for note in result.notes:
        console.print(f"  {note}", style="dim")


def sentences(result: Losses) -> list[str]:
    """Return the answer in sentences: within strata, over all rows, at equal loss, and what was measured."""
    pairs = [_pair(m) for m in result.matched]
    return [*_together(result), *_matched(result), *pairs, f"{_definition(result)}.", *result.notes]


def loss_figures(result: Losses) -> dict[str, go.Figure]:
    """Return the runs as points, a colour and a line for each stratum, or a colour for each schedule where there is one stratum."""
    import plotly.graph_objects as go

    spec = result.definition
    figure = go.Figure()
    if len(result.strata) == 1 and spec.schedule:
        points = result.strata[0].points
        names = sorted({p.schedule or "" for p in points})
        groups = [(name, [p for p in points if (p.schedule or "") == name]) for name in names]
    else:
        groups = [(_name(s.group), list(s.points)) for s in result.strata]
    for n, (name, some) in enumerate(groups):
        ordered = sorted(some, key=lambda p: p.loss)
        figure.add_scatter(
            x=[p.loss for p in ordered],
            y=[p.score for p in ordered],
            name=escape(name),
            mode="lines+markers" if len(result.strata) > 1 else "markers",
            marker={"color": PALETTE[n % len(PALETTE)], "size": 8},
            line={"width": 1},
            text=[escape(p.schedule or "") for p in ordered],
            hovertemplate="%{x:.4g}, %{y:.4g} %{text}<extra>" + escape(name) + "</extra>",
        )
    title = f"{escape(spec.score)} against {escape(spec.loss)}"
    return {"loss": style(figure, title, escape(spec.loss), escape(spec.score))}


def _definition(result: Losses) -> str:
    spec = result.definition
    strata = ", ".join(spec.within) or "one stratum"
    return f"{spec.score} by {spec.loss} over {result.runs} runs, within {strata}; {spec.level:.0%} intervals"


def _together(result: Losses) -> list[str]:
    """Say what the strata show, alone or together, and what pooling them would have shown."""
    within, spec = result.within, result.definition
    if not within.strata:
        return [f"No stratum has enough runs to say how {spec.score} varies with {spec.loss}."]
    if within.strata == 1:
        told = next(s for s in result.strata if s.combined)
        lines = [
            f"r({spec.loss}, {spec.score}) is {words.interval(within.pearson, 2)} over {told.runs} runs, Spearman "
            f"{words.interval(within.spearman, 2)}, slope {words.interval(within.slope, 3)}."
        ]
    else:
        known = [s.pearson.value for s in result.strata if s.combined and s.pearson.value is not None]
        lines = [
            f"Within {within.strata} strata r({spec.loss}, {spec.score}) lies between {min(known):.2f} and {max(known):.2f}; "
            f"together {words.interval(within.pearson, 2)}, Spearman {words.interval(within.spearman, 2)}, slope "
            f"{words.interval(within.slope, 3)}.",
        ]
        if within.differ_p is not None:
            lines.append(_alike("correlation", within.differ_p))
        if within.slopes_p is not None:
            lines.append(_alike("slope", within.slopes_p))
    return lines if result.between is None else [*lines, *_mixed(result, result.between)]


def _alike(what: str, p: float) -> str:
    if p < DOUBT:
        return f"The strata differ in their {what} ({words.p_value(p)}): the joint value is an average."
    return f"No evidence that the strata differ in their {what} ({words.p_value(p)})."


def _mixed(result: Losses, between: LossBetween) -> list[str]:
    if between.pearson is None:
        return []
    means = "" if between.means is None else f" (of the strata's means {between.means:.2f})"
    told = f"Between strata: r over all {result.runs} rows is {between.pearson:.3f}{means}; this reflects differences between strata, not an effect of the loss."
    if between.simpson:
        told += " Its sign differs from that within strata: Simpson's paradox."
    return [told]


def _matched(result: Losses) -> list[str]:
    if not result.matched:
        return []
    return [
        f"{result.definition.schedule} at equal {result.definition.loss} ({result.definition.score} of a less that of b, over losses that both "
        "have; p after Holm):"
    ]


def _pairs(result: Losses) -> object:
    shown = table(("a", "b"), ("at equal loss", "p", "all runs", "runs", "losses"), longest=40)
    shown.add_column("")
    for m in result.matched:
        losses = words.BLANK if m.low is None or m.high is None else f"{m.low:.4g} to {m.high:.4g}"
        p = words.BLANK if m.p_adjusted is None else words.p_value(m.p_adjusted)
        shown.add_row(
            m.a,
            m.b,
            words.interval(m.difference, 2),
            p,
            words.number(m.plain, 2),
            f"{m.runs_a}, {m.runs_b}",
            losses,
            m.difference.why or "; ".join(_doubts(m)),
        )
    return shown


def _pair(m: AtEqualLoss) -> str:
    if m.difference.value is None:
        return f"{m.a} - {m.b}: {m.difference.why}."
    plain = "" if m.plain is None else f" (whatever the loss: {m.plain:.2f})"
    doubts = "".join(f"; {d}" for d in _doubts(m))
    p = "" if m.p_adjusted is None else f", {words.p_value(m.p_adjusted)}"
    return f"{m.a} - {m.b}: {words.interval(m.difference, 2)}{p} at equal loss{plain}{doubts}."


def _doubts(m: AtEqualLoss) -> list[str]:
    found = []
    if m.curved_p is not None and m.curved_p < DOUBT:
        found.append("not straight in the loss")
    if m.slopes_p is not None and m.slopes_p < DOUBT:
        found.append("the two slopes differ")
    return found


def _name(label: Label) -> str:
    return ", ".join(v or "(none)" for v in label.values()) or "all runs"
