"""Score shifts: tables for a terminal, sentences and figures."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from emscope.answers.runs.shifts_result import RunShift, Shifts, ShiftTest, StatisticShift
from emscope.report import words
from emscope.report.answers.names import figure_name
from emscope.report.figures import COLOURS, INK, MUTED, style
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

VALID = (
    "Wilcoxon's test is paired by question. Kolmogorov-Smirnov (KS) compares the two distributions over questions as if they were "
    "independent samples, which paired questions are not; its second p swaps before and after within questions, and is valid.",
    "Each question's mean comes from few answers, and this sampling noise flattens the slope (regression to the mean): a "
    "slope below 1 is not a finding by itself. The corrected slope removes the sampling noise; a reliability near 1 means little of it.",
)


def print_shifts(result: Shifts) -> None:
    """Print the shift of means and of standard deviations, a row per comparison, and what the tests are valid for."""
    console = terminal(400, [_definition(result)])
    for what in ("mean", "sd"):
        runs = [(run, one) for run in result.runs if (one := getattr(run, what)) is not None]
        if runs:
            console.print(f"\n{'means of a question' if what == 'mean' else 'standard deviations of a question'}", style="bold")
            console.print(_moved(runs))
            console.print(_lines(runs))
    for note in (*VALID, *result.notes):
        console.print(f"  {note}", style="dim", soft_wrap=True)


def sentences(result: Shifts) -> list[str]:
    """Return each comparison in sentences, what the tests are valid for, and what was measured."""
    said = [s for run in result.runs for s in _run(run)]
    return [*said, *VALID, f"{_definition(result)}.", *result.notes]


def shift_figures(result: Shifts) -> dict[str, go.Figure]:
    """Return a figure for each comparison, by a name that can be a file name: every question's mean after against before."""
    found = {}
    for n, run in enumerate(result.runs, 1):
        name = _name(run)
        found[figure_name(f"{n} {name}")] = _figure(run, name, result.definition.columns.aligned)
    return found


def _figure(run: RunShift, name: str, score: str) -> go.Figure:
    import plotly.graph_objects as go

    x, y = [q.mean_before for q in run.questions], [q.mean_after for q in run.questions]
    ends = [min(x), max(x)]
    figure = go.Figure()
    figure.add_scatter(x=ends, y=ends, mode="lines", name="unchanged", line={"color": MUTED, "dash": "dot"})
    for slope, label, colour in (
        (run.mean.slope, "slope", INK),
        (run.mean.slope_corrected, "without sampling", COLOURS["target"]),
    ):
        if slope.value is not None:
            line = [run.mean.after + slope.value * (end - run.mean.before) for end in ends]
            figure.add_scatter(x=ends, y=line, mode="lines", name=f"{label} {slope.value:.2f}", line={"color": colour})
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        name="a question",
        marker={"size": 7, "color": COLOURS["control"], "opacity": 0.6},
        text=[escape(q.question[:80]) for q in run.questions],
        hovertemplate="%{text}: %{x:.1f}, then %{y:.1f}<extra></extra>",
    )
    return style(figure, escape(name), f"mean {escape(score)} before", f"mean {escape(score)} after")


def _definition(result: Shifts) -> str:
    d = result.definition
    return f"{d.columns.aligned} of each question in {d.spec.group} against '{d.spec.before}'; {d.spec.level:.0%} intervals"


def _moved(runs: list[tuple[RunShift, StatisticShift]]) -> object:
    shown = table(
        ("after",),
        ("questions", "answers", "before", "after ", "shift", "Wilcoxon", "KS", "KS, swapped", "coherence"),
        longest=60,
    )
    for run, one in runs:
        coherence = (words.number(v, 0) for v in (run.coherence_before, run.coherence_after))
        shown.add_row(
            _name(run),
            str(one.questions),
            f"{run.answers_before}, {run.answers_after}",
            words.number(one.before, 1),
            words.number(one.after, 1),
            words.interval(one.shift, 1),
            _p(one.wilcoxon),
            f"{one.ks.statistic:.2f}, {_p(one.ks)}",
            _p(one.ks_swapped),
            ", ".join(coherence),
        )
    return shown


def _lines(runs: list[tuple[RunShift, StatisticShift]]) -> object:
    shown = table(("after",), ("Pearson", "slope", "R²", "reliability", "slope corrected", "Pearson corrected"), longest=60)
    for run, one in runs:
        shown.add_row(
            _name(run),
            *(words.interval(e, 2) for e in (one.pearson, one.slope, one.explained)),
            f"{words.number(one.reliability_before.value, 2)}, {words.number(one.reliability_after.value, 2)}",
            *(words.interval(e, 2) for e in (one.slope_corrected, one.pearson_corrected)),
        )
    return shown


def _run(run: RunShift) -> list[str]:
    """Say how means moved and how well the first predict the second, then briefly the same for standard deviations."""
    one, name = run.mean, _name(run)
    fallen = words.interval(one.shift, 1)
    said = [
        f"{name}: over {one.questions} questions the mean goes from {one.before:.1f} to {one.after:.1f}, by {fallen} (Wilcoxon "
        f"{_p(one.wilcoxon)}; KS {one.ks.statistic:.2f}, {_p(one.ks)}, swapped {_p(one.ks_swapped)})."
    ]
    if run.coherence_before is not None and run.coherence_after is not None:
        said.append(f"Mean coherence goes from {run.coherence_before:.1f} to {run.coherence_after:.1f}.")
    if one.slope.value is not None:
        corrected = f"without sampling {words.interval(one.slope_corrected, 2)}"
        if one.slope_corrected.value is None:
            corrected = f"not corrected, since {one.slope_corrected.why}"
        said.append(
            f"Scores after on before: r {words.interval(one.pearson, 2)}, slope {words.interval(one.slope, 2)} ({corrected}), R² "
            f"{words.interval(one.explained, 2)}; reliability {words.number(one.reliability_before.value, 2)} before and "
            f"{words.number(one.reliability_after.value, 2)} after."
        )
    if run.sd is not None:
        said.append(
            f"A question's standard deviation goes from {run.sd.before:.1f} to {run.sd.after:.1f}, by {words.interval(run.sd.shift, 1)} "
            f"(Wilcoxon {_p(run.sd.wilcoxon)}; KS {run.sd.ks.statistic:.2f}, {_p(run.sd.ks)})."
        )
    return said


def _p(test: ShiftTest | None) -> str:
    return words.BLANK if test is None else words.p_value(test.p_adjusted)


def _name(run: RunShift) -> str:
    return ", ".join([*(v or "(none)" for v in run.within.values()), run.after])
