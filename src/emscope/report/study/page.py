"""One self-contained page: it opens offline, escapes model text, fetches nothing and runs only the plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.core.outcomes import Verdict
from emscope.core.plain import Json
from emscope.report.figures import effect_figure, look, page_data, without_template
from emscope.report.study import figures, remarks, said
from emscope.report.study.advice import advice
from emscope.report.study.atlas import placed
from emscope.report.study.headline import headline, prefers
from emscope.report.study.methods import methods_figure, quadrant_figure
from emscope.report.study.overview import overview
from emscope.report.study.said import WorstAnswer
from emscope.store.files import write_text
from emscope.study.decision.checked import CheckResult
from emscope.study.decision.methods import WayRow
from emscope.study.decision.opinions import Opinion
from emscope.study.report import FolderChecked, Report, RunChecked, StudyReport
from emscope.study.tables import GeometryRow, LogRow, ResponseRow, Tables, read_tables

FEW = 4  # targets whose details are open, and drawn at once
MOST_STEPS = 150  # of the training log of each of many targets


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure on the page: its place, its title, its data in plotly's form, and a caption."""

    id: str
    title: str
    json: str
    note: str


@dataclass(frozen=True, slots=True)
class RunPart:
    """The part of the page on one target; `said` and `verdict` are of judged answers, `headline` and `caveats` of preference."""

    name: str
    check: CheckResult
    said: list[str]
    verdict: Verdict | None
    said_plot: str | None
    worst: list[WorstAnswer]
    headline: list[str]
    prefers: str
    caveats: list[str]
    plots: list[Plot]


@dataclass(frozen=True, slots=True)
class MethodsPart:
    """The part on ways of training compared."""

    rows: Sequence[WayRow]
    sentences: list[str]
    plot: str | None
    quadrants: str | None


@dataclass(frozen=True, slots=True)
class JudgePart:
    """The part on one judge."""

    opinion: Opinion
    sentence: str
    plot: str | None


def write_page(report: Report, root: Path) -> Path:
    """Write `report.html` into a study folder and return its path."""
    path = root / "report.html"
    write_text(path, render(report, read_tables(root)))
    return path


def render(report: Report, tables: Tables) -> str:
    """Return the page as text."""
    from plotly.offline import get_plotlyjs

    from emscope.report.templating import environment

    shared_look, many = look(), len(report.targets) > FEW
    own = _by_run(report, tables, MOST_STEPS if many else None)
    with without_template():
        return (
            environment()
            .get_template("page.html.j2")
            .render(
                report=report,
                many=many,
                overview=overview(report) if isinstance(report, StudyReport) else None,
                runs=[_run(report, one, own[one.run], first=not n) for n, one in enumerate(report.targets)],
                methods=_methods(report, tables.responses),
                judged=_judged(report),
                style=report.style if isinstance(report, StudyReport) else (),
                amplified=report.amplified if isinstance(report, FolderChecked) else (),
                recipes=remarks.recipes(report),
                read=remarks.read(report),
                precision=remarks.precision(report),
                diverged=remarks.diverged(report),
                answers=_answers(tables.responses),
                plotly=get_plotlyjs(),
                look=shared_look,
                dump=_dump,
            )
        )


def _by_run(report: Report, tables: Tables, most: int | None) -> dict[str, Tables]:
    """Return the training log and the geometry of each target, of `most` steps at most, evenly spread."""
    log: dict[str, list[LogRow]] = {one.run: [] for one in report.targets}
    geometry: dict[str, list[GeometryRow]] = {one.run: [] for one in report.targets}
    for row in tables.log:
        log.get(row.run, []).append(row)
    for turn in tables.geometry:
        geometry.get(turn.run, []).append(turn)
    for run, rows in log.items() if most else ():
        kept = {row.step for row in sorted(rows, key=lambda r: r.step)[:: max(1, -(-len(rows) // (most or 1)))]}
        log[run] = [row for row in rows if row.step in kept]
        geometry[run] = [turn for turn in geometry[run] if turn.step in kept]
    return {run: Tables((), log[run], geometry[run]) for run in log}


def _run(report: Report, one: RunChecked, tables: Tables, *, first: bool) -> RunPart:
    last = report.said_of(one.run)
    spoken, (verdict, *rest) = said.sentences(report, one.run), headline(one.check)
    then = [sentence for sentence in (remarks.ship(report, one.run), advice(report, one), *placed(report)) if sentence]
    return RunPart(
        name=one.run,
        check=one.check,
        said=spoken + then if spoken else [],
        verdict=last.verdict if last else None,
        said_plot=page_data(said.said_figure(report, one.run)),
        worst=said.worst_answers(report.judge, one.run),
        headline=[verdict, *([] if spoken else then), *rest, *remarks.phase(one.phase)],
        prefers=prefers(one.check),
        caveats=remarks.caveats(report, one.check),
        plots=_plots(report, one, tables, first=first) if one.check.checkpoints else [],
    )


def _plots(report: Report, one: RunChecked, tables: Tables, *, first: bool) -> list[Plot]:
    """Return the figures of one target; those that cannot be drawn are left out, and their numbers with them."""
    drawn = [
        (
            "Drift along training",
            effect_figure(one.check),
            "Above the dashed line the model is worse than the threshold allows. Bands are 95 % intervals; dots are coloured by state.",
        ),
        (
            "The task along training",
            figures.task_figure(one.check),
            "Each checkpoint's share of the best checkpoint's gain on held-out questions. Bands are 90 % intervals, so each end is a one-sided 95 % bound.",
        ),
        (
            "Training",
            figures.training_figure(tables.log, tables.geometry),
            "Read step by step during training; turns of the trained vectors: -1 is straight on, 0 and above a sharp turn.",
        ),
        ("Effect by category", figures.category_figure(one.check), "Last checkpoint; dashed line: the threshold."),
        (
            "Margins",
            figures.margin_figure(report.distributions) if first else None,
            "Each item's margin at the last checkpoint; left of 0, the answer with the behaviour is more likely per token.",
        ),
    ]
    return [
        Plot(f"plot-{one.run}-{n}", title, text, note)
        for n, (title, figure, note) in enumerate(drawn)
        if (text := page_data(figure)) is not None
    ]


def _methods(report: Report, responses: Sequence[ResponseRow]) -> MethodsPart | None:
    """Return the comparison of ways of training, None where there was one only."""
    if not isinstance(report, StudyReport) or not report.methods:
        return None
    rows = report.methods
    drawn = methods_figure(rows, report.targets[0].check.delta), quadrant_figure(rows, _said(rows, responses))
    return MethodsPart(rows, remarks.methods(rows), *map(page_data, drawn))


def _said(rows: Sequence[WayRow], responses: Sequence[ResponseRow]) -> dict[str, str]:
    """Return one sampled answer of each way of training, by its name: its first run's, with the question."""
    last: dict[str, ResponseRow] = {}
    for row in sorted(responses, key=lambda r: (r.scale != 1.0, r.question, r.sample), reverse=True):
        last[row.run] = row
    ways = {m.name: f"{m.name}-seed{m.seeds[0]}" for m in rows}
    return {name: f"{last[run].question} — {last[run].text}" for name, run in ways.items() if run in last}


def _judged(report: Report) -> list[JudgePart]:
    """Return each judge with its figure."""
    judges = report.judged.judges if report.judged else ()
    first = remarks.judged(report) or ""
    return [JudgePart(one, "" if n else first, page_data(figures.judged_figure(one))) for n, one in enumerate(judges)]


def _answers(responses: Sequence[ResponseRow]) -> dict[str, list[ResponseRow]]:
    """Group sampled answers by question, base first."""
    grouped: dict[str, list[ResponseRow]] = {}
    for row in sorted(responses, key=lambda r: (r.question, r.run != "base", r.run, r.scale)):
        grouped.setdefault(row.question, []).append(row)
    return grouped


def _dump(value: Json) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
