"""The benchmarks' ratios are held against those written down for the same kind of machine."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
import baseline


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline, "FILE", tmp_path / "baselines.json")
    monkeypatch.setattr(baseline, "fallen", [])
    monkeypatch.delenv("EMSCOPE_BASELINES", raising=False)
    return tmp_path / "baselines.json"


def test_a_ratio_that_fell_ends_the_run_with_1_and_its_name(here, monkeypatch, capsys):
    baseline.held("ours", 2.0)
    assert "none is known" in capsys.readouterr().out and not here.exists()
    monkeypatch.setenv("EMSCOPE_BASELINES", "write")
    baseline.held("ours", 2.0)
    baseline.held("other", 3.0, tolerance=0.3)
    assert json.loads(here.read_text())[baseline.machine()]["other"] == {"ratio": 3.0, "tolerance": 0.3}
    monkeypatch.delenv("EMSCOPE_BASELINES")
    baseline.held("ours", 1.71)
    baseline.held("other", 2.11)
    assert capsys.readouterr().out.count("holds") == 2
    baseline.close()
    baseline.held("ours", 1.69)
    assert "BELOW 1.70" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="below the baseline: ours"):
        baseline.close()


def test_what_is_written_down_names_machines_and_ratios():
    kept = json.loads((Path(__file__).parents[1] / "bench" / "baselines.json").read_text())
    assert kept and all(one["ratio"] > 0 and 0 < one["tolerance"] < 1 for rows in kept.values() for one in rows.values())
