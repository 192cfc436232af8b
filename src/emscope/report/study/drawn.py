"""A study's or a check's report as figures by name and as sentences, for notebooks and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.report.figures import effect_figure
from emscope.report.study import figures, remarks, said
from emscope.report.study.advice import advice
from emscope.report.study.atlas import placed
from emscope.report.study.counted import counted
from emscope.report.study.headline import headline
from emscope.report.study.overview import front_figure
from emscope.study.report import Report, StudyReport

if TYPE_CHECKING:
    import plotly.graph_objects as go


def figures_of(report: Report) -> dict[str, go.Figure]:
    """Return the figures for each target, by run and subject with several targets, else by subject alone."""
    targets = report.targets
    found: dict[str, go.Figure | None] = {}
    for run in targets:
        check, name = run.check, f"{run.run} " if len(targets) > 1 else ""
        drawn = {"said": said.said_figure(report, run.run)}
        if check.checkpoints:
            drawn |= {
                "drift": effect_figure(check),
                "task": figures.task_figure(check),
                "categories": figures.category_figure(check),
            }
        found |= {f"{name}{subject}": figure for subject, figure in drawn.items()}
    if targets and report.distributions.items:
        found["margins"] = figures.margin_figure(report.distributions)
    for front in report.fronts if isinstance(report, StudyReport) else ():
        found[f"{'front' if front.measure == 'preference' else 'judged front'} of {front.arm}"] = front_figure(front)
    for judge in report.judged.judges if report.judged else ():
        found[f"rates by {judge.judge}"] = figures.judged_figure(judge)
    return {name: figure for name, figure in found.items() if figure is not None}


def sentences_of(report: Report) -> list[str]:
    """Return the answer on each target in sentences: what it says, whether to ship it, what preference says, what was read."""
    targets = report.targets
    found = []
    for run in targets:
        verdict, *rest = headline(run.check)
        spoken = said.sentences(report, run.run)
        then = [remarks.ship(report, run.run), advice(report, run), *placed(report)]
        own = [*spoken, *then, verdict, *rest] if spoken else [verdict, *then, *rest]
        found += [f"{run.run}: {s}" if len(targets) > 1 else s for s in own if s]
    return [
        *found,
        *counted(report),
        *remarks.recipes(report),
        *(s for s in (remarks.read(report), remarks.precision(report)) if s),
    ]
