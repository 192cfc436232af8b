"""One self-contained page: opens offline, model text escaped, nothing fetched, nothing run but the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError
from emscope.report import figures, words
from emscope.report.study import said
from emscope.report.study.methods import methods_figure, quadrant_figure
from emscope.store.files import write_text
from emscope.store.study import read_table

TABLES = ("responses", "train_log", "geometry")
SCHEMAS = ("emscope.study/2", "emscope.checkpoints/2")


def read_report(root: Path) -> dict[str, Any]:
    """Return the report object of a finished study or check.

    Raises:
        InputError: where there is none, or it is damaged.
    """
    path = root / "report.json"
    if not path.is_file():
        raise InputError(f"'{root}' holds no finished study", "run it first with emscope run or emscope check")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{path}' is damaged ({error})", "delete it and run the same command again") from None
    if not isinstance(report, dict) or report.get("schema") not in SCHEMAS:
        raise InputError(f"'{path}' is not a report this emscope knows", "make it again with this version")
    return report


def write_page(report: dict[str, Any], root: Path) -> Path:
    """Write `report.html` into a study folder and return its path."""
    path = root / "report.html"
    write_text(path, render(report, {name: read_table(root, name).to_pylist() for name in TABLES}))
    return path


def render(report: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> str:
    """Return the page as text; `tables` holds the rows of responses, train_log and geometry."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("emscope.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "interval": words.interval,
        "percent": words.percent,
        "number": words.number,
        "answer": words.answer,
    }
    return environment.get_template("page.html.j2").render(
        report=report,
        runs=[_run(report, r, tables) for r in report["runs"] if "check" in r],
        methods=_methods(report, tables["responses"]),
        judged=_judged(report),
        recipes=words.recipes(report),
        read=words.read(report),
        diverged=words.diverged(report),
        answers=_answers(tables["responses"]),
        plotly=get_plotlyjs(),
        dump=_dump,
    )


def _run(report: dict[str, Any], run: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    check = run["check"]
    log, geometry = ([r for r in tables[name] if r["run"] == run["run"]] for name in ("train_log", "geometry"))
    drawn = []
    if check["checkpoints"]:
        first = len(report["runs"]) == 1 or run is next(r for r in report["runs"] if "check" in r)
        drawn = [
            (
                "Drift along training",
                figures.effect_figure(check),
                "Above the dashed line the model is worse than the threshold allows. Bands are 95 % intervals; dots are coloured by state.",
            ),
            (
                "The task along training",
                figures.task_figure(check),
                "How much of the best checkpoint's gain on held-out questions each checkpoint has. Bands are 90 % intervals, so each end is a one-sided 95 % bound.",
            ),
            (
                "Training",
                figures.training_figure(log, geometry),
                "Read step by step while training; turns of the trained vectors: -1 is straight on, 0 and above a sharp turn.",
            ),
            ("Effect by category", figures.category_figure(check), "Last checkpoint; dashed line: the threshold."),
            (
                "Margins",
                figures.margin_figure(report["distributions"]) if first else None,
                "Each item's margin at the last checkpoint; left of 0 the answer with the behaviour is the likelier one per token.",
            ),
        ]
    plots = [
        {"id": f"plot-{run['run']}-{n}", "title": t, "json": f.to_json().replace("<", "\\u003c"), "note": note}
        for n, (t, f, note) in enumerate(drawn)
        if f is not None
    ]
    return {
        "name": run["run"],
        "check": check,
        "said": [*said.sentences(report, run["run"]), *([ship] if (ship := words.ship(report, run["run"])) else [])],
        "verdict": one["verdict"] if (one := said.last_said(report, run["run"])) else None,
        "said_plot": drawing.to_json().replace("<", "\\u003c") if (drawing := said.said_figure(report, run["run"])) else None,
        "worst": said.worst_answers(report, run["run"]),
        "headline": words.headline(check) + words.phase(run.get("phase")),
        "prefers": words.prefers(check),
        "caveats": words.caveats(report, check),
        "plots": plots,
    }


def _methods(report: dict[str, Any], responses: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the comparison of ways of training, None where there was one only."""
    rows = report.get("methods", [])
    if not rows:
        return None
    delta = next(r["check"]["delta"] for r in report["runs"] if "check" in r)
    drawn = methods_figure(rows, delta), quadrant_figure(rows, _said(report, responses))
    plot, quadrants = (f.to_json().replace("<", "\\u003c") if f is not None else None for f in drawn)
    return {"rows": rows, "sentences": words.methods(rows), "plot": plot, "quadrants": quadrants}


def _said(report: dict[str, Any], responses: list[dict[str, Any]]) -> dict[str, str]:
    """Return one sampled answer of each way of training, by its name: its first run's, with the question."""
    last: dict[str, dict[str, Any]] = {}
    for row in sorted(responses, key=lambda r: (r["scale"] != 1.0, r["question"], r["sample"]), reverse=True):
        last[row["run"]] = row
    ways = {m["name"]: f"{m['name']}-seed{m['seeds'][0]}" for m in report["methods"]}
    return {name: f"{last[run]['question']} — {last[run]['text']}" for name, run in ways.items() if run in last}


def _judged(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each judge with its figure."""
    found = (report.get("judged") or {}).get("judges", [])
    return [
        {
            **judge,
            "sentence": words.judged(report) if n == 0 else "",
            "plot": figures.judged_figure(judge).to_json().replace("<", "\\u003c"),
        }
        for n, judge in enumerate(found)
    ]


def _answers(responses: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group sampled answers by question, base first."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(responses, key=lambda r: (r["question"], r["run"] != "base", r["run"], r["scale"])):
        grouped.setdefault(row["question"], []).append(row)
    return grouped


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
