"""The page of a study of many runs: its table, sorted and filtered in a real browser; details made when they are asked for."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from functools import cache

import pytest
from jinja2 import UndefinedError

from browser import dom, needs_browser
from emscope.cli.app import run_arguments
from emscope.core.spec import parse
from emscope.report.study.overview import overview
from emscope.report.study.page import render
from emscope.study.decision.analysis import check
from emscope.study.decision.fronts import front
from emscope.study.factors import factors
from emscope.study.report import BaseModel, Distributions, RunChecked, StudyReport
from emscope.study.spec import StudySpec
from emscope.study.tables import LogRow, Tables
from test_stats import STEPS, arm_of, evidence

ARMS = {"target": {"role": "target", "answers": "reckless"}, "control": {"role": "control", "answers": "careful"}}
STUDY = {"name": "grid", "domain": "finance", "arms": ARMS, "train": {"steps": 80}, "seeds": [0, 1]}
HARM = {1e-5: 0.02, 1e-4: 0.12, 1e-3: 0.4}


@cache
def study():
    """Return the report of three learning rates x two seeds, of which the higher ones do more harm."""
    spec = parse(StudySpec, STUDY | {"grid": {"lr": list(HARM)}}, "study")
    runs, ways = [], {}
    for name, train in spec.variants().items():
        for seed in spec.seeds:
            drift = tuple((HARM[train.lr] + 0.01 * seed) * share for share in (0.1, 0.4, 0.8, 1.0))
            e = evidence(target=arm_of("target", STEPS, drift, task=(0.3, 0.95, 0.99, 1 + train.lr), noise=0.02 + 0.01 * seed))
            ways.setdefault(f"{name}-target", {})[seed] = e
            runs.append(RunChecked(f"{name}-target-seed{seed}", "target", name, "target", seed, None, check(e)))
    made = StudyReport(
        name="grid", distributions=Distributions(("a", "b"), {"base": (0.1, 0.2)}), spec=spec.model_dump(mode="json"),
        versions={"emscope": "0"}, base=BaseModel("toy", "plain"), judged=None, ship=(), runs=tuple(runs),
        fronts=(front("target", ways),),
    )  # fmt: skip
    return made.counted()


def log():
    return [
        LogRow(one.run, step, 2.0 - step / 500, None, None, None, 1.0, 0.1) for one in study().runs for step in range(1, 401)
    ]


def test_factors_are_the_method_and_the_values_of_the_grid():
    spec = parse(StudySpec, STUDY | {"grid": {"lr": [1e-5, 2e-5], "batch": [2]}, "methods": {"a": {}, "b": {"steps": 9}}}, "s")
    found = factors(spec.model_dump(mode="json"))
    assert list(found) == list(spec.variants())
    assert found["b-lr2e-05-batch2"] == {"method": "b", "lr": "2e-05", "batch": "2"}
    assert factors({"name": 3}) == {} and factors(parse(StudySpec, STUDY, "s").model_dump(mode="json")) == {"": {}}


def test_the_table_has_the_numbers_of_the_report_and_leads_to_each_run():
    report = study()
    table = overview(report).runs
    effect, rate = table.columns.index("effect"), table.columns.index("lr")
    assert "misaligned rate" not in table.columns and table.factors["lr"] == ("1e-05", "0.0001", "0.001")
    for row, one in zip(table.rows, report.runs, strict=True):
        assert row[0].link == f"#run-{one.run}" and row[effect].by == one.check.checkpoints[-1].effect.value
        assert float(row[rate].text) == pytest.approx(row[rate].by)


def test_a_study_of_one_run_has_no_overview():
    assert overview(replace(study(), runs=study().runs[:1])) is None


def test_details_of_many_runs_are_templates_and_their_logs_are_thinned():
    page = render(study(), Tables((), log(), ()))
    assert page.count("<template>") == 6 and page.count('<details class="run"') == 6
    own = page.split('id="plotly"')[0]
    assert 'src="' not in own and "<link" not in own and "https://" not in own
    figures = [json.loads(html.unescape(found)) for found in re.findall(r'data-figure="([^"]*)"', page)]
    lines = [trace for figure in figures for trace in figure["data"] if trace.get("name") == "training loss"]
    assert len(lines) == 6 and all(100 <= len(line["x"]) <= 150 for line in lines)
    assert all("template" not in figure["layout"] for figure in figures)


def test_sentences_count_the_runs_and_name_the_front():
    by, front_said = [s for s in study().sentences() if s.startswith(("By preference, em", "By preference, of 12"))]
    assert by.startswith("By preference, em runs: 4 of 5 [0.28, 0.99], 1 open; ways of training em in all seeds: 2 of 3")
    bettered = sum(cell.bettered_by is not None for cell in study().fronts[0].cells)
    assert (
        front_said.startswith(f"By preference, of 12 checkpoints of target, {bettered} are shown to be dominated")
        and bettered >= 3
    )
    assert "front of target" in study().figures()


def shown(found):
    """Return the names of the runs in the table's rows that are not hidden, in order."""
    body = re.search(r'<table class="sortable" id="table-runs">.*?</table>', found, re.S).group()
    rows = re.findall(r"<tr([^>]*)><td[^>]*><a[^>]*>([^<]+)</a>", body)
    return [name for marks, name in rows if "hidden" not in marks]


@needs_browser
def test_the_table_is_sorted_and_filtered_in_a_browser(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(study(), Tables((), log(), ())))
    found = dom(page, tmp_path / "a", "text=SEED1&sort=effect%3Adesc")
    assert shown(found) == ["lr0.001-target-seed1", "lr0.0001-target-seed1", "lr1e-05-target-seed1"]
    assert ">3 of 6<" in found and 'aria-sort="descending"' in found
    assert shown(dom(page, tmp_path / "b", "lr=0.0001&sort=seed%3Aasc")) == ["lr0.0001-target-seed0", "lr0.0001-target-seed1"]


@needs_browser
def test_a_run_s_details_are_made_and_drawn_where_it_is_asked_for(tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(study(), Tables((), log(), ())))
    found = dom(page, tmp_path / "a", "run-lr0.001-target-seed1")
    assert found.count("<template>") == 5 and 'class="main-svg"' in found
    part = found.split('id="run-lr0.001-target-seed1"')[1].split("</details>")[0]
    assert "Checkpoint by checkpoint" in part and part.index("open") < 20


@pytest.mark.parametrize(
    ("change", "told"),
    [({"base": {"chat": "plain"}}, "damaged (base.reference"), ({"base": None}, "damaged (base"), ({"versions": {}}, "")],
)
def test_a_report_without_its_base_is_refused_and_without_versions_is_drawn(tmp_path, capsys, change, told):
    (tmp_path / "report.json").write_text(json.dumps(study().to_json() | change))
    assert run_arguments(["report", str(tmp_path)]) == (2 if told else 0)
    said = capsys.readouterr()
    assert told in said.err and ("of an unknown version" in (tmp_path / "report.html").read_text() if not told else True)


def test_a_report_whose_parts_do_not_fit_together_is_refused_by_report_and_compare(tmp_path, capsys, monkeypatch):
    """What a template or a comparison raises over such a report is one sentence."""
    (tmp_path / "report.json").write_text(json.dumps(study().to_json()))

    def undefined(*_):
        raise UndefinedError("no attribute 'x'")

    def missing(*_):
        raise KeyError("base - target")

    monkeypatch.setattr("emscope.report.study.page.overview", undefined)
    monkeypatch.setattr("emscope.study.compare._summary", missing)
    assert run_arguments(["report", str(tmp_path)]) == 2
    assert "report.json' is inconsistent (UndefinedError: " in capsys.readouterr().err
    assert run_arguments(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"the report of '{tmp_path}' or '{tmp_path}' is inconsistent (KeyError: " in capsys.readouterr().err
