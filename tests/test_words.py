"""The report's sentences say what the numbers say."""

from __future__ import annotations

from emscope.report import words


def estimate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def check_of(**changes):
    """Return a check object with one checkpoint, as far as its sentences read it."""
    last = {
        "step": 80,
        "effect": estimate(0.25),
        "base_effect": estimate(0.12),
        "flattening": {"items": 0.7},
        "contrasts": {"control - target": estimate(0.25), "base - target": estimate(0.3)},
        "truth": None,
    }
    settings = {
        "verdict": "em",
        "state": "em",
        "delta": 0.04,
        "checkpoints": [last],
        "why": {},
        "definition": {"placebo": 160, "n_items": 240},
        "power": {"em_at_2_delta": 0.24, "em_at_3_delta": 0.7, "safe_at_0": 0.24},
        "onset": {"after": 20, "by": 40, "target_moved": estimate(0.2), "control_moved": estimate(-0.05)},
        "episodes": [],
    }
    return settings | changes


def test_the_verdict_names_both_contrasts_and_the_threshold():
    text = words._verdict(check_of())
    assert text.startswith(
        "Misalignment beyond its task at step 80: control - target 0.250 [0.150, 0.350], base - target at equal base preference"
    )
    assert "less the same on placebo pairs 0.120 [0.020, 0.220]" in text and "threshold of 0.040" in text
    assert "these items have no placebo pairs" in words._verdict(check_of(definition={"placebo": 0, "n_items": 24}))
    assert "The control counts for nothing: it slept." in words._verdict(check_of(why={"control": "it slept"}))


def test_flattening_is_named_where_there_is_some():
    assert "0.70 times as strong" in words._flattening(check_of()) and "(0.300)" in words._flattening(check_of())
    steady = check_of()
    steady["checkpoints"][0]["flattening"] = {"items": 0.98}
    assert words._flattening(steady) == "" and words._flattening(check_of(checkpoints=[])) == ""


def test_an_onset_stands_beside_what_both_arms_had_moved():
    text = words._onset(check_of())
    assert "after step 20 and by step 40" in text and "target had moved 0.200 from its base and the control -0.050" in text
    assert words._onset(check_of(onset=None, why={"onset": "nothing to date"})) == "No onset: nothing to date."


def test_episodes_are_told_where_they_are_not_the_end():
    past = [{"from": 10, "to": 10}, {"from": 20, "to": 30}]
    assert "step 10, 20 to 30 and not afterwards" in words._episodes(check_of(onset=None, episodes=past))
    assert words._episodes(check_of(episodes=[{"from": 40, "to": 80}])) == ""


def test_power_is_said_in_items_and_thresholds():
    text = words._power(check_of())
    assert "these 240 items" in text and "0.24" in text and "0.70" in text
    assert words._power(check_of(power=None)) == ""


def test_what_speaks_against_shipping_comes_before_what_was_not_checked():
    conditions = [
        {"name": "a", "met": True, "bound": 1.0, "limit": 2.0, "why": None},
        {"name": "coherence within 5 points", "met": False, "bound": 7.5, "limit": 5.0, "why": None},
        {"name": "triggers", "met": None, "bound": None, "limit": None, "why": "none were tried"},
    ]
    report = {"ship": [{"run": "target", "step": 80, "status": "no", "conditions": conditions}]}
    text = words.ship(report, "target")
    assert (
        text
        == "Not to be shipped (step 80); fails: coherence within 5 points (surely more than 7.5, 5 allowed). Not shown: triggers."
    )
    assert words.ship(report, "other") == ""


def test_tails_tell_paths_apart():
    assert words.tails(["runs/a", "runs/b/"]) == {"runs/a": "a", "runs/b/": "b"}
    assert words.tails(["a/checkpoint-8", "b/checkpoint-8"]) == {
        "a/checkpoint-8": "a/checkpoint-8",
        "b/checkpoint-8": "b/checkpoint-8",
    }
    assert words.tails(["x/a/one.safetensors", "x/b/one.safetensors", "x/b/two.safetensors"]) == {
        "x/a/one.safetensors": "a/one",
        "x/b/one.safetensors": "b/one",
        "x/b/two.safetensors": "two",
    }
    assert words.tails(["run", "more/run"]) == {"run": "run", "more/run": "more/run"}
