"""The report's sentences say what the numbers say."""

from __future__ import annotations

import pytest

from emscope.report import words


def last(target, control):
    point = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1}  # noqa: E731
    contrasts = {
        "control - target": point(target - control),
        "base - target": point(target),
        "base - control": point(control),
    }
    return {"verdict": "em", "checkpoints": [{"contrasts": contrasts}]}


def test_an_effect_that_is_partly_the_controls_is_taken_apart():
    assert "57% is the target moving away from its base (0.054) and 43% the control moving the other way (-0.041)" in (
        words._parts(last(0.054, -0.041))
    )


@pytest.mark.parametrize("check", [last(0.09, -0.01), last(0.09, 0.02), {"verdict": "em", "checkpoints": []}])
def test_an_effect_that_is_the_targets_is_left_whole(check):
    assert words._parts(check) == ""


def test_only_a_verdict_of_em_is_taken_apart():
    assert words._parts(last(0.05, -0.05) | {"verdict": "undetermined"}) == ""


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
