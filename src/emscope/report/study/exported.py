"""The numbers behind every figure and table of a report, as flat rows by name, and written as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from emscope.core.plain import Json, JsonObject, Result
from emscope.store.exported import write_rows
from emscope.study.decision.checked import CheckpointReading
from emscope.study.decision.opinions import Opinion
from emscope.study.factors import factors
from emscope.study.report import FolderChecked, Report, RunChecked, StudyReport
from emscope.study.tables import Tables, read_tables

OWN = (
    "checkpoints",
    "base_reading",
    "definition",
    "truthfulness",
    "why",
    "episodes",
    "unpaired_steps",
)  # of a check, not in `runs`


def write_tables(report: Report, root: Path, folder: Path) -> list[str]:
    """Write each table of the report of the study in `root` into a folder, and return their names.

    Raises:
        InputError, WorldError: a damaged table, or a folder that cannot be written.
    """
    found = tables_of(report, read_tables(root))
    for name, rows in found.items():
        write_rows(folder, name, rows)
    return list(found)


def tables_of(report: Report, tables: Tables) -> dict[str, list[JsonObject]]:
    """Return the tables of a report by name, those without a row left out; numbers are those of `report.json`."""
    found = {**_of_runs(report), **_of_judges(report.judged.judges if report.judged else ())}
    found["margins"] = _margins(report)
    found["ship"] = [{"run": s.run, "step": s.step, "status": s.status, **wide(c)} for s in report.ship for c in s.conditions]
    found["training"] = [asdict(row) for row in tables.log]
    found["geometry"] = [asdict(row) for row in tables.geometry]
    if isinstance(report, StudyReport):
        found |= _of_study(report)
    if isinstance(report, FolderChecked):
        found["amplified"] = [{"scale": a.scale, **_checkpoint(c)} for a in report.amplified for c in a.checkpoints]
    return {name: rows for name, rows in found.items() if rows}


def wide(row: Result | Mapping[str, Json], before: str = "") -> JsonObject:
    """Return a result as one flat row: an estimate is NAME, NAME_low, NAME_high and NAME_n, nested values are NAME.KEY; lists are left out."""
    values = row.to_json() if isinstance(row, Result) else row
    found: JsonObject = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            estimate = {"value", "low", "high", "method"} <= value.keys()
            parts = {name: value["value"], **{f"{name}_{k}": value[k] for k in ("low", "high", "n")}} if estimate else {}
            found |= parts or wide(value, f"{name}.")
        elif isinstance(value, str) or not isinstance(value, Sequence):
            found[name] = value
    return found


def _of_runs(report: Report) -> dict[str, list[JsonObject]]:
    runs = report.runs if isinstance(report, StudyReport) else report.targets
    of = factors(report.spec) if isinstance(report, StudyReport) else {}
    checkpoints, categories, truth, every = [], [], [], []
    for one in runs:
        named: JsonObject = {"run": one.run, "arm": one.arm, "role": one.role, "seed": one.seed, **of.get(one.method, {})}
        verdict = str(report.verdict_on(one))
        every.append(named | {"verdict": verdict, **{f"preference.{k}": v for k, v in _check(one).items()}})
        checkpoints += [named | _checkpoint(c) for c in one.check.checkpoints]
        categories += [named | row for c in one.check.checkpoints for row in _categories(c)]
        found = one.check.truthfulness
        truth += [named | wide(c) for c in found.checkpoints] if found else []
    return {"runs": every, "checkpoints": checkpoints, "categories": categories, "truthfulness": truth}


def _check(one: RunChecked) -> JsonObject:
    return wide({key: value for key, value in one.check.to_json().items() if key not in OWN})


def _checkpoint(c: CheckpointReading) -> JsonObject:
    return wide({key: value for key, value in c.to_json().items() if key != "by_category"})


def _categories(c: CheckpointReading) -> Iterator[JsonObject]:
    for name, effect in c.by_category.items():
        yield {"step": c.step, "category": name, **wide({"effect": effect.to_json()})}


def _margins(report: Report) -> list[JsonObject]:
    margins = report.distributions.margins
    return [{"item": item, **{arm: of[n] for arm, of in margins.items()}} for n, item in enumerate(report.distributions.items)]


def _of_judges(judges: Sequence[Opinion]) -> dict[str, list[JsonObject]]:
    """Return what judges say, the judge's name in the first column."""
    parts = {"rates": "rates", "said": "said", "means": "arms", "dated": "dated"}
    found: dict[str, list[JsonObject]] = {name: [] for name in (*parts, "judged_recipes")}
    for judge in judges:
        for name, field in parts.items():
            found[name] += [{"judge": judge.judge, **wide(row)} for row in getattr(judge, field)]
        found["judged_recipes"] += [
            {"judge": judge.judge, "name": r.name, "seeds": r.seeds, **wide(s)} for r in judge.recipes for s in r.steps
        ]
    return found


def _of_study(report: StudyReport) -> dict[str, list[JsonObject]]:
    return {
        "methods": [wide(row) for row in report.methods],
        "method_seeds": [{"name": row.name, **wide(seed)} for row in report.methods for seed in row.by_seed],
        "recipes": [{"name": r.name, "seeds": r.seeds, **wide(s)} for r in report.recipes for s in r.steps],
        "style": [wide(row) for row in report.style],
        "diverged": [wide(row) for row in report.diverged],
        "cases": [{"measure": by.measure, **wide(case)} for by in report.cases for case in by.cases],
        "counted": [{"measure": by.measure, **wide(one)} for by in report.cases for one in (by.together, *by.ways)],
        "counted_steps": [
            {"measure": by.measure, "name": one.name, **wide(step)}
            for by in report.cases
            for one in (by.together, *by.ways)
            for step in one.steps
        ],
        "fronts": [
            {"arm": front.arm, "measure": front.measure, **wide(cell)} for front in report.fronts for cell in front.cells
        ],
    }
