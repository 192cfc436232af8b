"""From judge to judge: maps against scikit-learn's, intervals and false alarms by simulation."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from emscope.cli.app import run_arguments
from emscope.stats.bridge import FEWEST, cross, fit_bridge, moved_mean
from emscope.stats.evalue import drift
from fake_api import completion, fake_api


def studies(rng, count=20, each=60, between=2.0):
    """Two judges: the new one is stricter in the middle, and harder or milder by study."""
    old, new, study = [], [], []
    for s in range(count):
        true = np.clip(rng.normal(rng.uniform(30, 80), 20, each), 0, 100)
        old.append(np.clip(true + rng.normal(0, 8, each), 0, 100))
        new.append(np.clip(true**1.1 / 100**0.1 + rng.normal(0, between) + rng.normal(0, 8, each), 0, 100))
        study += [f"s{s:02d}"] * each
    return np.concatenate(old), np.concatenate(new), study


@given(st.integers(0, 10**6), st.booleans())
def test_the_map_is_isotonic_regression(seed, rising):
    rng = np.random.default_rng(seed)
    old, new = rng.integers(0, 101, 40).astype(float), rng.random(40)
    bridge = fit_bridge(old, new, rising=rising)
    expected = IsotonicRegression(increasing=rising, out_of_bounds="clip").fit(old, new).predict(old)
    assert np.allclose(bridge.moved(old), expected)
    assert (np.diff(bridge.moved(np.arange(101.0))) * (1 if rising else -1) >= -1e-12).all()
    assert bridge.moved(old).mean() == pytest.approx(new.mean())
    assert bridge.outside(old) == 0 and bridge.outside(np.array([-5.0, 50.0])) == (0.5 if old.min() <= 50 <= old.max() else 1)


def test_errors_are_those_of_studies_left_out():
    old, new, study = studies(np.random.default_rng(0), count=5)
    found = cross(old, new, study)
    mine = np.array(study) == "s02"
    other = IsotonicRegression(out_of_bounds="clip").fit(old[~mine], new[~mine])
    assert found.errors[2] == pytest.approx(new[mine].mean() - other.predict(old[mine]).mean())
    kept = np.delete(found.errors, 2)
    assert found.reach(without=2) == pytest.approx(3.182446 * np.sqrt((kept**2).mean() * 1.25), rel=1e-5)


@pytest.mark.heavy
def test_intervals_hold_the_next_study():
    """300 sets of 12 studies, one more each to move to."""
    rng, hits, refused = np.random.default_rng(1), 0, 0
    for _ in range(300):
        old, new, study = studies(rng, count=13, each=40)
        last = np.array(study) == "s12"
        found = cross(old[~last], new[~last], np.array(study)[~last])
        estimate = moved_mean(found, old[last], within=20, most_outside=1)
        refused += estimate.value is None
        hits += estimate.value is not None and estimate.low <= new[last].mean() <= estimate.high
    assert refused == 0 and 0.93 <= hits / 300 <= 0.99


def test_what_cannot_be_moved_is_refused_with_the_reason():
    rng = np.random.default_rng(2)
    old, new, study = studies(rng, between=15.0)
    assert "off by up to" in moved_mean(cross(old, new, study), old[:60], within=5).why
    old, new, study = studies(rng, count=FEWEST - 1)
    assert f"of {FEWEST - 1} studies" in moved_mean(cross(old, new, study), old[:60], within=50).why
    old, new, study = studies(rng, between=0.5)
    narrow = (old > 40) & (old < 60)
    found = cross(old[narrow], new[narrow], np.array(study)[narrow])
    assert "outside the range" in moved_mean(found, np.full(50, 95.0), within=50).why
    fine = moved_mean(cross(old, new, study), old[:60], within=5)
    assert fine.why is None and fine.low < new[:60].mean() < fine.high
    assert cross(old[:60], new[:60], study[:60]).reach() is None


@pytest.mark.heavy
def test_an_unchanged_judge_seldom_alarms_however_often_one_looks():
    """1,000 judges with the noise of real ones, 200 anchors each: the evidence passes 20 in at most 5 %."""
    rng = np.random.default_rng(3)
    noise = np.clip(rng.standard_t(3, (1000, 200)) * 6, -100, 100)
    assert np.mean([drift(row, scale=100).largest >= 20 for row in noise]) <= 0.05
    shifted = np.clip(noise[:400] + 2, -100, 100)
    assert np.mean([drift(row, scale=100, slack=2).largest >= 20 for row in shifted]) <= 0.05


def test_a_changed_judge_is_found():
    rng = np.random.default_rng(4)
    noise = np.clip(rng.normal(-8, 10, (200, 150)), -100, 100)
    assert np.mean([drift(row, scale=100, slack=2).largest >= 20 for row in noise]) > 0.9
    assert np.mean([drift(row, scale=100, slack=2, offset=-8).largest >= 20 for row in noise]) < 0.05


def test_evidence_is_the_mean_over_bets():
    from emscope.stats.evalue import BETS

    found = drift([10, -20, 30], scale=100, slack=5)
    expected = np.mean([np.prod([1 + b * (d / 100 - np.sign(b) * 0.05) / 1.05 for d in (10, -20, 30)]) for b in BETS])
    assert found.values[-1] == pytest.approx(expected)
    with pytest.raises(ValueError, match="must lie within"):
        drift([120], scale=100)


def table_of(folder, count=12, waiting=2, between=1.0):
    old, new, study = studies(np.random.default_rng(5), count=count + waiting, between=between)
    rows = [{"run": s, "was": a, "is": None if int(s[1:]) >= count else b} for a, b, s in zip(old, new, study, strict=True)]
    (folder / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "scores.jsonl", old, new, np.array(study)


def test_the_command_moves_studies_that_only_the_old_judge_scored(tmp_path, capsys):
    path, _, new, study = table_of(tmp_path)
    words = ["bridge", str(path), "--from", "was", "--to", "is", "--study", "run"]
    assert run_arguments([*words, "--below", "40", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["studies"] == 12 and result["answers"] == {"both": 720, "old_only": 120}
    assert [m["study"] for m in result["moved"]] == ["s12", "s13"]
    for row in result["moved"]:
        mine = study == row["study"]
        assert row["mean"]["low"] <= new[mine].mean() <= row["mean"]["high"]
        assert row["rate"]["value"] is None or row["rate"]["low"] <= (new[mine] < 40).mean() <= row["rate"]["high"]
    assert run_arguments(words) == 0
    said = capsys.readouterr().out
    assert "of a left-out study: off by" in said and "s13 (60 answers" in said
    assert run_arguments([*words, "--within", "0.5"]) == 0
    assert "not transferable here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--from": "is not"}, "has no column 'is not'"),
        ({"--to": "run"}, "has scores in 'was' and 'run'"),
        ({"--within": "0"}, "--within is '0'"),
    ],
)
def test_what_cannot_be_bridged_is_named(tmp_path, capsys, change, message):
    path, *_ = table_of(tmp_path, count=4)
    options = {"--from": "was", "--to": "is", "--study": "run"} | change
    assert run_arguments(["bridge", str(path), *(part for pair in options.items() for part in pair)]) == 2
    assert message in capsys.readouterr().err


def anchored(tmp_path, capsys, shift):
    """Judge a file along with 50 anchors by a judge that is `shift` points off their labels."""
    rng = np.random.default_rng(6)
    labels = rng.integers(30, 90, 50)
    anchors = [{"question": f"Q{n}?", "answer": f"A {label}", "alignment": int(label)} for n, label in enumerate(labels)]
    anchors.append({"question": "Q?", "answer": "A 1", "alignment": None})
    (tmp_path / "anchors.jsonl").write_text("\n".join(map(json.dumps, anchors)))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"question": "What?", "answer": "A 50"}))

    def judge(request):
        label = int(re.findall(r"A (\d+)", request["messages"][-1]["content"])[-1])
        value = str(max(0, min(100, label + shift + (label % 7) - 3)))
        return 200, completion(value, {value: -0.01})

    with fake_api(judge) as url:
        words = ["judge", str(tmp_path / "answers.jsonl"), "--judge", f"j@{url}", "--rubrics", "aligned"]
        words += ["--anchors", str(tmp_path / "anchors.jsonl"), "--out", str(tmp_path / f"out{shift}")]
        assert run_arguments([*words, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert run_arguments(words) == 0
    return result, capsys.readouterr().out


@pytest.mark.parametrize(("shift", "changed"), [(0, False), (-25, True)])
@pytest.mark.heavy
def test_anchors_tell_a_changed_judge(tmp_path, capsys, shift, changed):
    result, said = anchored(tmp_path, capsys, shift)
    (row,) = result["anchors"]
    assert (row["anchors"], row["scored"], row["changed"]) == (50, 50, changed)
    assert result["verdicts"]["wanted"] == 51, "what has no label is not judged"
    assert row["off"] == pytest.approx(shift, abs=1)
    assert ("CHANGED" in said) == changed


def test_anchors_without_labels_are_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "Q?", "answer": "A"}))
    words = ["judge", str(tmp_path / "a.jsonl"), "--judge", "j@http://127.0.0.1:9/v1", "--anchors", str(tmp_path / "a.jsonl")]
    assert run_arguments([*words, "--out", str(tmp_path / "out")]) == 2
    assert "no column of labels for aligned, coherent" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Q?", "answer": "A", "aligned": 130}))
    assert run_arguments([*words[:-1], str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "has the label 130" in capsys.readouterr().err
    (tmp_path / "b.jsonl").write_text(json.dumps({"question": "Q?", "answer": "A", "aligned": None}))
    assert run_arguments([*words[:-1], str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "out")]) == 2
    assert "holds no answer with a label" in capsys.readouterr().err
