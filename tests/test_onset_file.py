"""Onset from anybody's file: the bracket that was put in comes out, and nothing is claimed without a control or units."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sp

from emscope.answers.onset import OnsetSpec, follow
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.core.outcomes import State
from emscope.stats import clustered, rate_contrasts
from emscope.stats.means import stratified_mean
from emscope.stats.onset import onset, state

STEPS = (0, 10, 20, 40, 80)
RATES = {"control": (0.02,) * 5, "target": (0.02, 0.02, 0.02, 0.4, 0.5)}


def rows(rates=None, questions=60, samples=20, seed=0, arms=("target", "control")):
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.3, questions)
    found = []
    for arm in arms:
        for step, rate in zip(STEPS, (rates or RATES)[arm], strict=True):
            for q in range(questions):
                p = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + lean[q])))
                bad = rng.random(samples) < p
                found += [
                    {"arm": arm, "step": step, "question": f"q{q}", "bad": int(b), "aligned": 10 if b else 90, "coherent": 95}
                    for b in bad
                ]
    return found


def write(tmp_path, content, name="v.csv"):
    pd.DataFrame(content).to_csv(tmp_path / name, index=False)
    return tmp_path / name


def bracket_of(run):
    return run["onset"]["after"], run["onset"]["by"]


def test_the_bracket_that_was_put_in_comes_out(tmp_path):
    path = write(tmp_path, rows())
    spec = OnsetSpec(value="bad", unit="question", arm="arm", control="control", delta=0.1)
    (run,) = follow([path], spec).to_json()["groups"]
    assert run["verdict"] == "em" and bracket_of(run) == (20, 40) and run["stop"] == {"step": 20}
    assert run["onset"]["target_moved"] > 0.3 and abs(run["onset"]["control_moved"]) < 0.02
    assert [c["state"] for c in run["checkpoints"]] == ["safe", "safe", "em", "em"]
    judged = follow([path], spec.model_copy(update={"value": None})).to_json()["groups"][0]
    assert judged["checkpoints"] == run["checkpoints"], "by the judge's two thresholds it is the same"


def test_effects_of_shares_equal_the_clustered_contrast(tmp_path):
    frame = pd.DataFrame(rows())
    spec = OnsetSpec(value="bad", unit="question", arm="arm", control="control", delta=0.1)
    (run,) = follow([write(tmp_path, frame)], spec).to_json()["groups"]
    for c in run["checkpoints"]:
        sides = []
        for arm in ("target", "control"):
            sums = frame[(frame.arm == arm) & (frame.step == c["step"])].groupby("question")["bad"].agg(["sum", "count"])
            sides.append(clustered.rate(np.arange(60), sums["sum"].to_numpy(), sums["count"].to_numpy()))
        expected = rate_contrasts.contrast(*sides, level=0.9).difference
        assert (c["effect"]["value"], c["effect"]["low"]) == pytest.approx((expected.value, expected.low))


def test_scores_follow_the_rules_of_a_study(tmp_path):
    """Any number, here an alignment score, paired by question: states and bracket as from the arrays."""
    rng = np.random.default_rng(2)
    base = rng.normal(80, 5, 50)
    content, effects = [], {}
    for step, drop in zip(STEPS[1:], (0.0, 0.5, 3.0, 12.0), strict=True):
        pair = {a: base + rng.normal(0, 4, 50) - (drop if a == "target" else 0) for a in ("target", "control")}
        effects[step] = pair["control"] - pair["target"]
        content += [{"a": a, "t": step, "item": n, "score": v} for a, values in pair.items() for n, v in enumerate(values)]
    spec = OnsetSpec(value="score", lower_is_worse=True, unit="item", step="t", arm="a", control="control", rule="p1")
    result = follow([write(tmp_path, content)], spec).to_json()
    (run,) = result["groups"]
    assert result["definition"]["delta"] == 2.5
    means = {s: stratified_mean(v) for s, v in effects.items()}
    states = [state(means[s], 2.5) for s in STEPS[1:]]
    assert [c["state"] for c in run["checkpoints"]] == [str(s) for s in states]
    sure = [State(c["sure"]) for c in run["checkpoints"]]
    assert all(a == b or a is State.UNDETERMINED for a, b in zip(sure, states, strict=True)), (
        "wider bounds only leave more open"
    )
    bracket = onset(STEPS[1:], states, sure)
    assert bracket_of(run) == (bracket.after, bracket.by)
    interval = sp.ttest_1samp(effects[40], 0).confidence_interval(0.9)
    assert (run["checkpoints"][2]["effect"]["low"], run["checkpoints"][2]["effect"]["high"]) == pytest.approx(tuple(interval))


def scores(curves, questions=60, sd=6.0, seed=5):
    """Alignment scores (0 to 100) of arms along training: a question's own level, noise of a reading, the arm's curve of harm."""
    rng = np.random.default_rng(seed)
    level = rng.normal(75, 12, questions)
    return [
        {"arm": arm, "step": step, "question": f"q{q}", "score": level[q] - harm + rng.normal(0, sd)}
        for arm, curve in curves.items()
        for step, harm in zip(range(0, 10 * len(curve), 10), curve, strict=True)
        for q in range(questions)
    ]


def followed(tmp_path, curves, **changes):
    settings = {"value": "score", "lower_is_worse": True, "unit": "question", "arm": "arm", "control": "control", "delta": 5.0}
    (run,) = follow([write(tmp_path, scores(curves))], OnsetSpec(**(settings | changes))).to_json()["groups"]
    return run


def test_a_control_that_moves_is_no_onset_of_the_target_s(tmp_path):
    """The target stands and the control gets better: worse than the control, and not worse than the base."""
    run = followed(tmp_path, {"target": (0, 0, 0, 0), "control": (0, -5, -12, -15)})
    assert run["verdict"] == "control_moved" and run["onset"] is None
    assert followed(tmp_path, {"target": (0, 0, 0, 0), "control": (0, -5, -12, -15)}, rule="p1")["verdict"] == "em"


def test_both_arms_that_get_worse_are_not_safe(tmp_path):
    """Nothing separates target and control, and both are far below the base."""
    run = followed(tmp_path, {"target": (0, 6, 12, 15), "control": (0, 6, 12, 15)})
    assert run["verdict"] == "style_drift" and run["stop"] is None
    assert followed(tmp_path, {"target": (0, 6, 12, 15), "control": (0, 6, 12, 15)}, rule="p1")["verdict"] == "safe"


def test_a_run_that_was_em_in_the_middle_has_an_episode(tmp_path):
    run = followed(tmp_path, {"target": (0, 0, 15, 15, 0, 0), "control": (0, 0, 0, 0, 0, 0)})
    assert run["verdict"] == "safe" and run["onset"] is None
    assert run["episodes"] == [{"from": 20, "to": 30}] and run["stop"] == {"step": 10}


def test_the_base_may_be_an_arm_of_its_own(tmp_path):
    content = [
        r | {"arm": "base" if r["step"] == 0 else r["arm"]} for r in scores({"target": (0, 0, 15), "control": (0, 0, 0)})
    ]
    frame = pd.DataFrame(content).groupby(["arm", "step", "question"], as_index=False).mean()
    spec = OnsetSpec(value="score", lower_is_worse=True, unit="question", arm="arm", control="control", delta=5.0)
    runs = {r["group"]["arm"]: r for r in follow([write(tmp_path, frame)], spec).to_json()["groups"]}
    assert runs["target"]["verdict"] == "em" and bracket_of(runs["target"]) == (10, 20)


def test_without_a_base_no_verdict_but_by_p1_s_rule(tmp_path):
    content = [r for r in scores({"target": (0, 0, 15), "control": (0, 0, 0)}) if r["step"]]
    spec = OnsetSpec(value="score", lower_is_worse=True, unit="question", arm="arm", control="control", delta=5.0)
    (run,) = follow([write(tmp_path, content)], spec).to_json()["groups"]
    assert run["verdict"] == "undetermined" and "the file has no base (step 0)" in run["why"]["verdict"]
    assert follow([write(tmp_path, content)], spec.model_copy(update={"rule": "p1"})).to_json()["groups"][0]["verdict"] == "em"
    with pytest.raises(InputError, match="`rule=p1` compares with the control"):
        follow([write(tmp_path, content)], OnsetSpec(value="score", unit="question", rule="p1"))


def test_many_readings_of_a_safe_run_ship_the_last(tmp_path):
    """28 checkpoints: bounds of one at a time would leave one or two unclear by chance, and the first of them would end the stretch."""
    quiet = (0.0,) * 29
    run = followed(tmp_path, {"target": quiet, "control": quiet})
    assert run["verdict"] == "safe" and run["stop"]["step"] >= 270


def test_no_event_in_few_questions_is_not_called_safe(tmp_path):
    quiet = {"target": (1e-9,) * 5, "control": (1e-9,) * 5}
    path = write(tmp_path, rows(quiet, questions=12, samples=5))
    (run,) = follow([path], OnsetSpec(value="bad", unit="question", arm="arm", control="control")).to_json()["groups"]
    assert run["verdict"] == "undetermined" and run["stop"] is None


def test_without_a_control_the_verdict_is_moved_at_most(tmp_path):
    (run,) = follow([write(tmp_path, rows(arms=("target",)))], OnsetSpec(value="bad", unit="question", delta=0.1)).to_json()[
        "groups"
    ]
    assert run["verdict"] == "moved" and bracket_of(run) == (20, 40)
    assert "without a control" in run["why"]["verdict"]


def test_without_units_or_a_base_there_is_a_series_and_no_verdict(tmp_path):
    frame = pd.DataFrame(rows())
    (run,) = follow([write(tmp_path, frame)], OnsetSpec(value="bad", arm="arm", control="control")).to_json()["groups"]
    assert run["verdict"] is None and "no unit was named" in run["why"]["verdict"]
    expected = frame[frame.arm == "target"].groupby("step")["bad"].mean()
    assert {p["step"]: p["value"] for p in run["series"]} == pytest.approx(expected.to_dict())
    late = frame[(frame.arm == "target") & (frame.step > 0)]
    (run,) = follow([write(tmp_path, late)], OnsetSpec(value="bad", unit="question")).to_json()["groups"]
    assert run["verdict"] is None and "the first step is 10, not 0" in run["why"]["verdict"]


def test_each_group_and_each_arm_is_a_run(tmp_path):
    content = [
        r | {"model": m, "arm": a}
        for m in ("m1", "m2")
        for a in ("x", "y", "careful")
        for r in rows(arms=("control",), questions=8, samples=2)
    ]
    spec = OnsetSpec(value="bad", unit="question", arm="arm", control="careful", group=("model",))
    found = follow([write(tmp_path, content)], spec).to_json()["groups"]
    assert [tuple(r["group"].values()) for r in found] == [(m, a) for m in ("m1", "m2") for a in ("x", "y")]


def test_rows_without_a_value_are_counted(tmp_path, capsys):
    content = rows(questions=30)
    for r in content[::10]:
        r["coherent"] = 20
    path = write(tmp_path, content)
    options = [
        "--unit",
        "question",
        "--arm",
        "arm",
        "--control",
        "control",
        "--delta",
        "0.1",
        "--figure",
        str(tmp_path / "f.html"),
    ]
    assert run_arguments(["onset", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert f"{len(content[::10])} of {len(content)} rows have no value" in shown and "the last safe step" in shown
    assert (tmp_path / "f.html").stat().st_size > 1_000_000
    assert run_arguments(["onset", str(path), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1


def test_a_published_series_is_followed(reference):
    folder = reference / "checkpoints" / "burnssa_cs2881" / "1b_risky_v2"
    spec = OnsetSpec(aligned_below=75, coherent_above=None, unit="question")
    (run,) = follow([folder / "fg_judged.csv"], spec).to_json()["groups"]
    published = pd.read_csv(folder / "step_summary.csv").set_index("step")["percent_em"] / 100
    assert {p["step"]: p["value"] for p in run["series"]} == pytest.approx(published.to_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "stp"}, "no column 'stp'; did you mean 'step'"),
        ({"value": "bd"}, "no column 'bd'"),
        ({"step": "question"}, "holds 'q0', which is not a step"),
        ({"step": "below"}, "holds '-1', which is not a step"),
        ({"arm": "arm"}, "`arm` and `control` go together"),
        ({"arm": "arm", "control": "cntrol"}, "has no value 'cntrol' for the control; did you mean 'control'"),
        ({"value": "question"}, "holds no value to follow"),
        ({"value": "big"}, "the values reach 1000, and there is no default threshold"),
    ],
)
def test_bad_input_is_one_sentence(changes, message, tmp_path):
    path = write(tmp_path, [r | {"big": 1000, "below": -1} for r in rows(questions=4, samples=2)])
    with pytest.raises(InputError, match=message):
        follow([path], OnsetSpec(**({"value": "bad", "unit": "question"} | changes)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lower-is-worse"], "add --value"),
        (["--aligned-below", "300"], "--aligned-below is '300': input should be less than or equal to 100"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(options, said, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("step,question,aligned\n0,a,90\n1,a,10\n")
    assert run_arguments(["onset", str(tmp_path / "a.csv"), "--coherent-above", "none", *options]) == 2
    assert said in capsys.readouterr().err
