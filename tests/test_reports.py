"""A report's numbers as CSV and Parquet, and as a section of a model card: equal to report.json, and safe to open."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from emscope.cli.app import run_arguments
from emscope.core.estimate import undefined
from emscope.report.study.card import card
from emscope.report.study.exported import tables_of
from emscope.store.exported import write_rows
from emscope.store.files import write_json
from emscope.study.decision.opinions import Judged, Opinion
from emscope.study.decision.shipping import Condition, Shipping
from emscope.study.tables import LogRow, Tables
from test_headline import report_of
from test_overview import study


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_json(root / "report.json", study().to_json())
    return root


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_number_of_the_tables_is_that_of_report_json(folder, tmp_path, capsys):
    assert run_arguments(["report", str(folder), "--tables", str(tmp_path)]) == 0
    assert "tables: " in capsys.readouterr().out
    report = json.loads((folder / "report.json").read_text())
    rows = read(tmp_path / "checkpoints.csv")
    wanted = [(one["run"], c) for one in report["runs"] for c in one["check"]["checkpoints"]]
    assert [(r["run"], int(r["step"])) for r in rows] == [(run, c["step"]) for run, c in wanted]
    for row, (_, c) in zip(rows, wanted, strict=True):
        assert float(row["effect"]) == c["effect"]["value"] and float(row["effect_high"]) == c["effect"]["high"]
        assert float(row["contrasts.base - target_low"]) == c["contrasts"]["base - target"]["low"]
        assert float(row["loss.per_token"]) == c["loss"]["per_token"] and row["state"] == c["state"]
    fronts = [cell for front in report["fronts"] for cell in front["cells"]]
    assert [float(r["on_front"]) for r in read(tmp_path / "fronts.csv")] == [c["on_front"] for c in fronts]
    counted = [one for by in report["cases"] for one in (by["together"], *by["ways"])]
    assert [int(r["em.yes"]) for r in read(tmp_path / "counted.csv")] == [one["em"]["yes"] for one in counted]
    assert read(tmp_path / "runs.csv")[-1]["lr"] == "0.001" and "margins.csv" in {p.name for p in tmp_path.iterdir()}


def test_parquet_and_csv_hold_the_same(folder, tmp_path, capsys):
    assert run_arguments(["report", str(folder), "--tables", str(tmp_path), "--json"]) == 0
    json.loads(capsys.readouterr().out)
    names = {p.stem for p in tmp_path.glob("*.csv")}
    assert names == {p.stem for p in tmp_path.glob("*.parquet")} and "categories" in names
    for name in names:
        for row, other in zip(
            read(tmp_path / f"{name}.csv"), pq.read_table(tmp_path / f"{name}.parquet").to_pylist(), strict=True
        ):
            assert row.keys() == other.keys()
            for key, value in other.items():
                text = row[key]
                assert (value is None and text == "") or text == str(value).lower() or text == value or float(text) == value


def test_no_text_is_a_formula_in_the_csv_and_numbers_stay_numbers(tmp_path):
    rows = [{"=a": "=1+1", "b": -0.5, "c": "@x"}, {"=a": "+2", "b": 1e-12, "d": True}, {"=a": "-3", "c": 'a,"b"\n=c'}]
    write_rows(tmp_path, "t", rows)
    found = read(tmp_path / "t.csv")
    assert [r["'=a"] for r in found] == ["'=1+1", "'+2", "'-3"] and found[0]["c"] == "'@x" and found[2]["c"] == 'a,"b"\n=c'
    assert [r["b"] for r in found] == ["-0.5", "1e-12", ""] and found[1]["d"] == "true"
    assert pq.read_table(tmp_path / "t.parquet").to_pylist()[0] == {"=a": "=1+1", "b": -0.5, "c": "@x", "d": None}


def test_the_training_log_is_a_table_and_what_has_no_row_is_none():
    found = tables_of(study(), Tables((), [LogRow("a", 1, 2.0, None, None, None, 1.0, 0.1)], ()))
    assert found["training"][0]["loss"] == 2.0 and "geometry" not in found and "rates" not in found


def test_the_card_says_what_the_report_says_and_what_was_not_checked(folder, capsys):
    conditions = (Condition("the same conditions under triggers", None, why="no triggers were tested"), Condition("a", True))
    report = report_of(Shipping("target", 80, "candidate", conditions))
    text = card(report)
    plain = text.replace("\\", "")
    assert text.startswith("## Emergent misalignment\n") and f"**{report.sentences()[0]}**" in plain
    assert "- the same conditions under triggers (no triggers were tested)" in plain and report.check.scope in plain
    assert (
        "power to detect em is 24 % at twice the threshold" in plain
        and "48 items of toy" in plain
        and "versions: emscope 0." in plain
    )
    assert run_arguments(["report", str(folder), "--card"]) == 0
    assert capsys.readouterr().out.count("### lr") == 6
    assert run_arguments(["report", str(folder), "--card", "--json"]) == 2
    assert "--card prints Markdown and --json JSON" in capsys.readouterr().err


def test_the_card_says_how_near_a_proxy_comes():
    proxy = Opinion("local", "off by 18 points", {}, (), undefined("one run", level=0.95, method="none"), (), (), (), (), ())
    judged = Judged({}, 5.0, "open24", 4, (proxy, replace(proxy, judge="m", about=None)), 0, False)
    said = card(replace(report_of(Shipping("target", 80, "no", ())), judged=judged))
    assert "The judge `local` is a small proxy model: off by 18 points." in said and said.count("proxy") == 1


def test_strangers_names_are_text_on_the_card():
    bad = "<img src=x onerror=alert(1)> [a](http://b) `c_d` e_f"
    report = replace(report_of(Shipping("target", 80, "no", ())), name=bad)
    assert "\\<img src=x onerror=alert(1)\\> \\[a\\](http://b) `c_d` e\\_f" in card(report)
