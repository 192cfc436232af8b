"""How numbers and names are written."""

from __future__ import annotations

from emscope.core.estimate import Estimate, undefined
from emscope.report import words


def test_an_estimate_is_written_with_what_is_known_of_it():
    known = Estimate(0.12345, 0.1, 0.2, 0.95, "t", 9, 9)
    assert words.interval(known) == "0.123 [0.100, 0.200]" and words.percent(known) == "12 % [10, 20]"
    alone = Estimate(0.5, None, None, 0.95, "t", 1, 1, "one item")
    assert words.interval(alone, 1) == "0.5" and words.percent(alone) == "50 %"
    for missing in (None, undefined("nothing was read", level=0.95, method="t")):
        assert words.interval(missing) == words.percent(missing) == words.BLANK


def test_a_clause_becomes_a_sentence():
    assert words.sentence("the model's em is so") == "The model's em is so." and words.sentence("Done.") == "Done."


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
