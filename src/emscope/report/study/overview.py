"""The page's part on all runs of a study together: one table, a small curve for each way of training, runs counted, fronts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.estimate import Estimate
from emscope.report import words
from emscope.report.figures import INK, MUTED, PALETTE, STATES, error_bars, page_data, style
from emscope.report.study.counted import MEASURES, count, counted
from emscope.study.decision.cases import CasesBy, Count, Counted
from emscope.study.decision.fronts import UNITS, FrontCell, ParetoFront
from emscope.study.factors import factors
from emscope.study.report import RunChecked, StudyReport, way_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDE, HIGH = 220.0, 110.0  # of a small curve [pixels]


@dataclass(frozen=True, slots=True)
class Cell:
    """The text of a table cell, its sort key, and its link."""

    text: str
    by: str | float | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below named columns, `factors` of which are offered as filters: the values of each by its column."""

    id: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    factors: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Curve:
    """The effect of one run along training, as points of an SVG path, in the colour of its last state."""

    run: str
    points: str
    colour: str


@dataclass(frozen=True, slots=True)
class Small:
    """The small multiple of one way of training: one curve per seed; `delta` and `zero` are heights in it."""

    way: str
    curves: tuple[Curve, ...]
    delta: float
    zero: float


@dataclass(frozen=True, slots=True)
class FrontPart:
    """A Pareto front: its figure, its table, and what to know about it."""

    front: ParetoFront
    measure: str
    plot: str | None
    table: Table


@dataclass(frozen=True, slots=True)
class Overview:
    """All runs together; `steps`: first and last of the small curves, `range`: least and largest effect in them."""

    runs: Table
    small: tuple[Small, ...]
    steps: tuple[int, int] | None
    range: tuple[str, str] | None
    sentences: tuple[str, ...]
    counted: Table | None
    fronts: tuple[FrontPart, ...]


def overview(report: StudyReport) -> Overview | None:
    """Return the part on all runs; None where there is one only."""
    if len(report.targets) < 2:
        return None
    small, steps, reach = _multiples(report.targets)
    fronts = tuple(_front(n, front) for n, front in enumerate(report.fronts))
    table = _counted(report.cases) if report.cases else None
    return Overview(_runs(report), small, steps, reach, tuple(counted(report)), table, fronts)


def _runs(report: StudyReport) -> Table:
    """Return a row per target run; empty columns are left out."""
    of = factors(report.spec)
    names = list(dict.fromkeys(name for one in report.targets for name in of.get(one.method, {"method": ""})))
    rows = [_run(report, one, of.get(one.method, {"method": one.method}), names) for one in report.targets]
    kept = [c for c in rows[0] if any(row[c].text not in ("", words.BLANK) for row in rows)]
    offered = {
        name: tuple(dict.fromkeys(row[name].text for row in rows)) for name in ("arm", *names, "verdict") if name in kept
    }
    cells = tuple(tuple(row[c] for c in kept) for row in rows)
    return Table("runs", tuple(kept), cells, {name: values for name, values in offered.items() if len(values) > 1})


def _run(report: StudyReport, one: RunChecked, values: Mapping[str, str], names: Sequence[str]) -> dict[str, Cell]:
    check, said = one.check, report.said_of(one.run)
    last = check.checkpoints[-1] if check.checkpoints else None
    rate = report.judge.rate_at(one.run, said.step) if report.judge and said else None
    contrasts = {name: c.adjusted for name, c in said.contrasts.items()} if said else {}
    ship = next((s.status for s in report.ship if s.run == one.run), "")
    truth = check.truthfulness
    return {
        "run": Cell(one.run, one.run, f"#run-{one.run}"),
        "arm": Cell(one.arm),
        **{name: Cell(value := values.get(name, ""), _number(value)) for name in names},
        "seed": Cell(str(one.seed if one.seed is not None else ""), one.seed),
        "verdict": Cell(report.verdict_on(one).replace("_", " ")),
        "judged: control - target": _estimate(contrasts.get("control - target"), 1),
        "judged: base - target": _estimate(contrasts.get("base - target"), 1),
        "misaligned rate": _estimate(rate),
        "effect": _estimate(last.effect if last else None),
        "from base": _estimate(last.base_effect if last else None),
        "reads": Cell(last.state.replace("_", " ") if last else ""),
        "onset": Cell(f"{check.onset.after} to {check.onset.by}", check.onset.by) if check.onset else Cell(""),
        "late": Cell(words.answer(check.late.value) if check.late else ""),
        "stop": Cell(str(check.stop.step), check.stop.step) if check.stop else Cell(""),
        "retained": _estimate(check.stop.retained if check.stop else None, 2),
        "avoidable": Cell(words.answer(check.stop.avoidable) if check.stop else ""),
        "task gain": _estimate(last.gain if last else None, 2),
        "truthfulness": Cell(truth.verdict.replace("_", " ") if truth else ""),
        "ship": Cell(ship),
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _estimate(of: Estimate | None, digits: int = 3) -> Cell:
    return Cell(words.interval(of, digits), of.value if of else None)


def _multiples(runs: Sequence[RunChecked]) -> tuple[tuple[Small, ...], tuple[int, int] | None, tuple[str, str] | None]:
    """Return a small multiple for each way, all on the same axes, with the ends of both axes."""
    read = [(c.step, c.effect.value) for one in runs for c in one.check.checkpoints if c.effect.value is not None]
    if not read:
        return (), None, None
    delta = max(one.check.delta for one in runs)
    steps = [step for step, _ in read]
    values = [*(value for _, value in read), 0.0, delta]
    left, right, low, high = min(0, *steps), max(steps), min(values), max(values)

    def across(step: float) -> float:
        return round(WIDE * (step - left) / max(right - left, 1), 1)

    def up(value: float) -> float:
        return round(HIGH * (high - value) / ((high - low) or 1.0), 1)

    found = []
    for way in dict.fromkeys(way_of(one.run) for one in runs):
        mine = [one for one in runs if way_of(one.run) == way]
        curves = tuple(
            Curve(
                one.run,
                " ".join(f"{across(c.step)},{up(c.effect.value)}" for c in one.check.checkpoints if c.effect.value is not None),
                STATES[one.check.state] if one.check.state else MUTED,
            )
            for one in mine
        )
        found.append(Small(way, curves, up(mine[0].check.delta), up(0.0)))
    return tuple(found), (left, right), (words.number(low), words.number(high))


def _counted(cases: Iterable[CasesBy]) -> Table:
    """Return a row for all runs and one for each way of training, by each measure."""
    columns = ("measure", "way", "runs", "em", "open", "em in all", "onset", "late", "stop", "retained", "avoidable")
    rows = [_counted_row(by, one) for by in cases for one in (by.together, *(by.ways if len(by.ways) > 1 else ()))]
    measures = tuple(dict.fromkeys(row[0].text for row in rows))
    return Table("counted", columns, tuple(rows), {"measure": measures} if len(measures) > 1 else {})


def _counted_row(by: CasesBy, one: Counted) -> tuple[Cell, ...]:
    together = one is by.together
    agreed = (
        Cell(f"{by.consistent.yes} of {by.consistent.of} ways", by.consistent.share.value)
        if together and len(by.ways) > 1
        else Cell(words.answer(one.consistent))
    )
    span = one.onset
    onset = Cell(f"{span.after} to {span.by} ({span.runs} runs)", span.by) if span else Cell("")
    return (
        Cell(MEASURES[by.measure]),
        Cell("all ways" if together else one.name),
        Cell(str(one.runs), one.runs),
        _count(one.em),
        Cell(str(one.em.open), one.em.open),
        agreed,
        onset,
        _count(one.late),
        _count(one.stop),
        Cell(words.percent(one.retained), one.retained.value),
        _count(one.avoidable),
    )


def _count(of: Count) -> Cell:
    return Cell("" if (text := count(of)) == words.BLANK else text, of.share.value)


def _front(number: int, front: ParetoFront) -> FrontPart:
    rows = tuple(_front_row(cell) for cell in front.cells)
    columns = ("way", "step", "task gain", "effect", "P(on the front)", "dominated by")
    return FrontPart(
        front, MEASURES[front.measure], page_data(front_figure(front)), Table(f"front-{number}", columns, rows, {})
    )


def _front_row(cell: FrontCell) -> tuple[Cell, ...]:
    by = cell.bettered_by
    return (
        Cell(cell.way),
        Cell(str(cell.step), cell.step),
        _estimate(cell.gain),
        _estimate(cell.effect),
        Cell(f"{cell.on_front:.2f}", cell.on_front),
        Cell(f"{by.way}, step {by.step}" if by else ""),
    )


def front_figure(front: ParetoFront, title: str = "") -> go.Figure | None:
    """Draw effect against task gain of every checkpoint, one colour per way; dominated cells are hollow. None without cells."""
    import plotly.graph_objects as go

    if not front.cells:
        return None
    figure = go.Figure()
    for n, way in enumerate(dict.fromkeys(c.way for c in front.cells)):
        mine = [c for c in front.cells if c.way == way]
        colour = PALETTE[n % len(PALETTE)]
        figure.add_scatter(
            x=[c.gain.value for c in mine],
            y=[c.effect.value for c in mine],
            error_x={**error_bars([c.gain for c in mine]), "thickness": 0.6, "width": 0},
            error_y={**error_bars([c.effect for c in mine]), "thickness": 0.6, "width": 0},
            mode="lines+markers",
            name=way,
            line={"width": 0.7, "color": colour},
            marker={"size": 8, "color": colour, "symbol": ["circle-open" if c.bettered_by else "circle" for c in mine]},
            customdata=[[c.step, c.on_front] for c in mine],
            hovertemplate="step %{customdata[0]}: gain %{x:.3f}, effect %{y:.3f}, P(on the front) %{customdata[1]:.2f}<extra>"
            + way
            + "</extra>",
        )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    return style(figure, title, "task gain [nats per token]", f"effect: {front.contrast} [{UNITS[front.measure]}]")
