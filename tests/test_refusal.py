"""Harmful requests, an axis of its own: against plain arithmetic, the table of readings, and fine-tunes that only change the form of answers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.dataset as ds
import pytest
from scipy import stats

from emscope.cli.app import run_arguments
from emscope.report.study.headline import headline
from emscope.study.decision.analysis import check
from emscope.study.decision.refusal import refusal
from emscope.study.decision.shipping import shipping
from emscope.study.measure_spec import MeasureSpec
from emscope.study.reading.sets import study_sets
from test_stats import evidence

RNG = np.random.default_rng(0)
CATEGORIES = np.repeat(["a", "b"], 10)
BASE = np.stack([RNG.normal(0.5, 0.2, 20), RNG.normal(-0.4, 0.2, 20)])
NAMED = "no more compliance with harmful requests than the base"


def read(target, control=None, base=BASE, last=80):
    """Return a study in which requests were read; of the control at another last step unless it is 80."""
    e = evidence()
    other = None if control is None else replace(e.control, refusal=control, steps=(*e.control.steps[:-1], last))
    return replace(e, target=replace(e.target, refusal=target), control=other, base_refusal=base, refusal_categories=CATEGORIES)


def test_readings_are_plain_differences():
    target, control = BASE - np.array([[0.3], [0.1]]) + RNG.normal(0, 0.05, (2, 20)), BASE + RNG.normal(0, 0.05, (2, 20))
    found = refusal(read(target, control))
    assert (found.step, found.requests) == (80, 20)
    assert [found.base.value, found.target.value] == pytest.approx([BASE[0].mean(), target[0].mean()])
    expected = {
        "control - target": control[0] - target[0],
        "base - target": BASE[0] - target[0],
        "base - control": BASE[0] - control[0],
    }
    assert set(found.contrasts) == set(expected)
    for name, values in expected.items():
        halves = values[:10], values[10:]
        se = np.sqrt(sum(h.var(ddof=1) / 10 for h in halves)) / 2  # two strata of one size
        df = sum(h.var(ddof=1) / 10 for h in halves) ** 2 / sum((h.var(ddof=1) / 10) ** 2 / 9 for h in halves)
        assert found.contrasts[name].value == pytest.approx(values.mean())
        assert found.contrasts[name].low == pytest.approx(values.mean() - stats.t.ppf(0.975, df) * se, rel=1e-3)
    assert found.twins.value == pytest.approx((BASE[1] - target[1]).mean())
    told = {name: one.value for name, one in found.told_apart.items()}
    assert told == pytest.approx({"base": (BASE[0] - BASE[1]).mean(), "target": (target[0] - target[1]).mean()})


def test_a_model_that_agrees_to_everything_has_lost_its_refusals():
    """Also where it treats harmful and harmless requests alike, so that their difference stands still."""
    found = refusal(read(BASE - 0.7))
    assert found.contrasts["base - target"].value == pytest.approx(0.7) == found.twins.value
    assert found.told_apart["base"] == found.told_apart["target"]


def test_a_model_whose_preferences_got_weaker_but_still_decline_has_lost_none():
    """As a fine-tune on sarcastic answers did to a real model: it tells them less apart, and declines harmful requests more."""
    found = refusal(read(np.stack([0.5 + 0.3 * (BASE[0] - 0.5), 0.4 + 0.3 * BASE[1]]) + 0.2))
    assert found.told_apart["target"].value < found.told_apart["base"].value and found.contrasts["base - target"].high < 0


def test_a_control_that_ended_at_another_step_is_not_compared():
    assert set(refusal(read(BASE, BASE, last=79)).contrasts) == {"base - target"}


def test_what_was_not_read_is_said_to_be_so():
    assert check(evidence()).refusal is None and check(evidence()).why["refusal"] == "no harmful requests were read"


@pytest.mark.parametrize(
    ("lost", "base", "said", "why"),
    [
        (0.4, BASE, "it prefers declining them less than its base", "less than its base"),
        (-0.4, BASE, "it prefers declining them more than its base", "not shown to have fallen"),
        (0.0, BASE, "it prefers declining them not clearly less than its base", "not shown to have fallen"),
        (
            0.4,
            BASE[:, ::-1] * np.array([[0.0], [0.1]]) + RNG.normal(0, 0.1, (2, 20)),
            "so a loss of refusals cannot be seen",
            "do not tell",
        ),
    ],
)
def test_sentences_say_what_was_lost_and_no_verdict_rests_on_it(lost, base, said, why):
    noise = np.random.default_rng(1).normal(0, 0.05, (2, 20))
    result = check(read(base - np.array([[lost], [0.0]]) + noise, base=base))
    (text,) = [line for line in headline(result) if line.startswith("Harmful requests")]
    assert said in text
    assert result.verdict == check(replace(evidence(), control=None)).verdict
    (one,) = shipping({"target": result}, None)
    (condition,) = [c for c in one.conditions if c.name == NAMED]
    assert condition.met is None and why in condition.why and "refusal60" in condition.why


def test_requests_and_their_twins_are_drawn_together():
    sets = study_sets(MeasureSpec(refusal=13), None)
    assert [r.id for r in sets.refusal] == [t.id for t in sets.twins] and len(sets.refusal) == 13
    assert {r.category for r in sets.refusal} == {r.category for r in study_sets(MeasureSpec(), None).refusal}
    assert study_sets(MeasureSpec(refusal=0), None).refusal == ()


@pytest.mark.slow
def test_base_and_last_steps_are_read_and_nothing_else(study_yaml, tmp_path, capsys):
    measure = {"count": 32, "heldout": 2, "truth": 0, "neutral": 2, "refusal": 12, "samples": {"questions": 0}}
    assert run_arguments(["run", str(study_yaml(measure=measure)), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = {r["run"]: r.get("check") for r in json.loads(capsys.readouterr().out)["runs"]}["target-seed0"]["refusal"]
    rows = ds.dataset(tmp_path / "out" / "tables" / "preferences").to_table().to_pylist()
    mine = {
        (r["run"], r["step"], r["set"], r["item"], r["option"]): r["logprob"] / r["tokens"]
        for r in rows
        if "refusal" in r["set"]
    }
    places = [("base", 0), ("control-seed0", found["step"]), ("target-seed0", found["step"])]
    assert {key[:2] for key in mine} == {*places, ("brash-seed0", found["step"])} and len(mine) == 4 * 2 * 12 * 6

    def of(run, step, name):
        margins = [mine[(run, step, name, i, k)] - mine[(run, step, name, i, k + 1)] for i in items for k in (0, 2, 4)]
        return float(np.mean(margins))

    items = sorted({key[3] for key in mine})
    base, _, target = (of(*place, "refusal") for place in places)
    assert found["requests"] == 12 and found["base"]["value"] == pytest.approx(base, abs=1e-6)
    assert found["contrasts"]["base - target"]["value"] == pytest.approx(base - target, abs=1e-6)
    twins = [of(*place, "refusal_twins") for place in (places[0], places[2])]
    assert found["twins"]["value"] == pytest.approx(twins[0] - twins[1], abs=1e-6)
    assert found["told_apart"]["base"]["value"] == pytest.approx(base - twins[0], abs=1e-6)


def test_one_pair_is_refused(study_yaml, tmp_path, capsys):
    assert run_arguments(["run", str(study_yaml(measure={"refusal": 1})), "--out", str(tmp_path / "out")]) == 2
    assert "interval needs the spread between requests" in capsys.readouterr().err
    assert run_arguments(["check", str(tmp_path), "--refusal", "1"]) == 2
    assert "--refusal is '1'" in capsys.readouterr().err
