"""A study's or a check's report as figures by name and as sentences, for notebooks and for the page."""

from __future__ import annotations

from typing import Any

from emscope.report import figures, words
from emscope.report.study import said


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of each target, by run and subject where there are several targets, by subject alone else."""
    targets = [run for run in report["runs"] if "check" in run]
    found: dict[str, Any] = {}
    for run in targets:
        check, name = run["check"], f"{run['run']} " if len(targets) > 1 else ""
        drawn = {"said": said.said_figure(report, run["run"])}
        if check["checkpoints"]:
            drawn |= {
                "drift": figures.effect_figure(check),
                "task": figures.task_figure(check),
                "categories": figures.category_figure(check),
            }
        found |= {f"{name}{subject}": figure for subject, figure in drawn.items() if figure is not None}
    if targets and report.get("distributions"):
        found["margins"] = figures.margin_figure(report["distributions"])
    for judge in (report.get("judged") or {}).get("judges", []):
        found[f"rates by {judge['judge']}"] = figures.judged_figure(judge)
    return {name: figure for name, figure in found.items() if figure is not None}


def sentences_of(report: dict[str, Any]) -> list[str]:
    """Return the answer on each target in sentences: what it says, whether to ship it, what preference says, what was read."""
    targets = [run for run in report["runs"] if "check" in run]
    found = []
    for run in targets:
        verdict, *rest = words.headline(run["check"])
        own = [*said.sentences(report, run["run"]), verdict, words.ship(report, run["run"]), *rest]
        found += [f"{run['run']}: {s}" if len(targets) > 1 else s for s in own if s]
    return [*found, *words.recipes(report), *([read] if (read := words.read(report)) else [])]
