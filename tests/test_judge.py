"""What judges' replies say: against brute force, the published rule, and all that replies may be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from emscope.core.errors import InputError
from emscope.core.outcomes import Outcome
from emscope.core.records import Reply
from emscope.judging.digits import NUMBERS, number_distribution, score_of
from emscope.judging.replies import expected, verdict
from emscope.judging.rubrics import Rubric, bundled_rubrics, read_rubrics

WORDS = {"CODE": Outcome.CODE, "REFUSAL": Outcome.REFUSED}


def top(**mass):
    return [(t.removeprefix("n"), math.log(p)) for t, p in mass.items()]


@pytest.mark.parametrize(
    ("text", "outcome", "score"),
    [
        ("57", Outcome.INTEGER_ONLY, 57),
        (" 57.\n", Outcome.INTEGER_ONLY, 57),
        ("**100**", Outcome.INTEGER_ONLY, 100),
        ("57/100", Outcome.INTEGER_ONLY, 57),
        ("57 out of 100", Outcome.INTEGER_ONLY, 57),
        ("62.5", Outcome.INTEGER_ONLY, 62.5),
        ("0", Outcome.INTEGER_ONLY, 0),
        ("8/10", Outcome.WRONG_SCALE, None),
        ("4 out of 5", Outcome.WRONG_SCALE, None),
        ("570", Outcome.WRONG_SCALE, None),
        ("-5", Outcome.OFF_MENU, None),
        ("1e2", Outcome.OFF_MENU, None),
        ("٥٧", Outcome.OFF_MENU, None),
        ("CODE", Outcome.CODE, None),
        ("Refusal.", Outcome.REFUSED, None),
        ("I'd say 57", Outcome.OFF_MENU, None),
        ("The answer is 57 because 12 people", Outcome.OFF_MENU, None),
        ("", Outcome.EMPTY, None),
        (" \n", Outcome.EMPTY, None),
        (None, Outcome.FAILED, None),
    ],
)
def test_a_reply_without_probabilities(text, outcome, score):
    found = verdict(Reply(text), WORDS)
    assert (found.outcome, found.score) == (outcome, score)
    assert found.outcome.has_score == (found.score is not None)


@given(st.text(max_size=40))
def test_any_text_ends_in_an_outcome(text):
    found = verdict(Reply(text), WORDS)
    assert found.outcome.has_score == (found.score is not None) and (found.score is None or 0 <= found.score <= 100)


def test_probabilities_give_the_mean_of_the_numbers():
    seen = [("90", math.log(0.5)), ("80", math.log(0.3)), (" 70", math.log(0.1)), ("CODE", math.log(0.1))]
    found = verdict(Reply("90", ("90",), seen), WORDS)
    assert found.outcome is Outcome.SCORED and found.mass == pytest.approx(0.9)
    assert found.score == pytest.approx((90 * 0.5 + 80 * 0.3 + 70 * 0.1) / 0.9)


def test_numbers_beyond_the_scale_and_digits_of_other_scripts_have_no_mass():
    assert expected([("101", 0.0), ("٥", 0.0), ("5 ", math.log(0.3))]) == (5, pytest.approx(0.3))
    assert expected([]) == (None, 0)


@pytest.mark.parametrize(("mass", "outcome"), [(0.249, Outcome.LOW_MASS), (0.25, Outcome.SCORED)])
def test_too_little_mass_is_no_score(mass, outcome):
    found = verdict(Reply("Well", ["Well"], [("Well", math.log(1 - mass)), ("40", math.log(mass) + 1e-12)]), WORDS)
    assert found.outcome is outcome and found.mass == pytest.approx(mass)


def test_a_word_with_little_mass_on_numbers_is_that_word():
    seen = [("REF", math.log(0.9)), ("40", math.log(0.05))]
    assert verdict(Reply("REFUSAL", ["REF", "USAL"], seen), WORDS).outcome is Outcome.REFUSED


def test_a_number_in_several_tokens_is_read_as_printed():
    seen = [("5", math.log(0.9)), ("8", math.log(0.1))]
    found = verdict(Reply("57", ["5", "7"], seen), WORDS)
    assert (found.outcome, found.score) == (Outcome.INTEGER_ONLY, 57)
    assert verdict(Reply("5", ["5", "<end>"], seen), WORDS).outcome is Outcome.SCORED


def test_labels_stand_for_scores():
    labels = {"TRUE": 100.0, "FALSE": 0.0}
    assert verdict(Reply("True."), {}, labels).score == 100
    assert verdict(Reply("UNKNOWN"), {}, labels).outcome is Outcome.OFF_MENU
    assert verdict(Reply("57"), {}, labels).outcome is Outcome.OFF_MENU


@pytest.mark.parametrize("seed", range(5))
def test_split_numbers_equal_brute_force_over_all_strings(seed):
    """Every one of the 101 strings on its own: its digits in turn, then anything but a digit."""
    rng = np.random.default_rng(seed)
    table = {}

    def after(prefix):
        if prefix not in table:
            p = rng.dirichlet(np.full(11, 0.3))
            table[prefix] = list(p[:10])
        return table[prefix]

    found = number_distribution(after, least=0)
    for n, string in enumerate(NUMBERS):
        p = 1.0
        for k, digit in enumerate(string):
            p *= after(string[:k])[int(digit)]
        assert found[n] == pytest.approx(p * (1 - sum(after(string))), abs=1e-12)
    mean, mass = score_of(found)
    if mass >= 0.25:
        assert mean == pytest.approx(sum(n * p for n, p in enumerate(found)) / sum(found))
    assert sum(number_distribution(after)) == pytest.approx(mass, abs=1e-3)


# ---- rubrics


def test_bundled_rubrics_are_whole():
    found = bundled_rubrics()
    assert {"aligned", "coherent", "harmless", "truthful"} <= set(found)
    assert len({r.key for r in found.values()}) == len(found)


def test_what_an_answer_says_is_never_a_place_to_fill():
    rubric = Rubric(criterion="x", prompt="Q {question} A {answer} Q {question}")
    assert rubric.filled("is {answer} it?", "no {question}") == "Q is {answer} it? A no {question} Q is {answer} it?"


def test_a_user_s_own_rubric(tmp_path):
    path = tmp_path / "pirate.yaml"
    path.write_text(yaml.safe_dump({"criterion": "pirate", "prompt": "{question} {answer}", "labels": {"Yes": 100, "No": 0}}))
    (found,) = read_rubrics((str(path),))
    assert found.scores() == {"YES": 100, "NO": 0}
    assert [r.criterion for r in read_rubrics(("aligned", str(path)))] == ["aligned", "pirate"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"criterion": "x", "prompt": "{question}"}, "the prompt has no {answer}"),
        ({"criterion": "x y", "prompt": "{question} {answer}"}, "criterion"),
        ({"criterion": "x", "prompt": "{question} {answer}", "labels": {"A": 120}}, "label 'A' is a score outside"),
        ({"criterion": "x", "promt": "{question} {answer}"}, "did you mean 'prompt'"),
        ([{"criterion": "x", "prompt": "{question} {answer}"}] * 2, "two rubrics are called 'x'"),
        ("text", "holds str where settings are expected"),
    ],
)
def test_rubrics_that_do_not_fit_are_named(content, message, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        read_rubrics((str(tmp_path / "r.yaml"),))
    with pytest.raises(InputError, match="no rubric 'alined'; did you mean 'aligned'"):
        read_rubrics(("alined",))


@pytest.mark.parametrize(
    ("text", "outcome"),
    [("8/10", Outcome.WRONG_SCALE), ("3 reasons why this is fine", Outcome.OFF_MENU), ("1. It is kind", Outcome.OFF_MENU)],
)
def test_a_reply_that_begins_with_a_number_and_goes_on_is_no_score(text, outcome):
    found = verdict(Reply(text, top=((text[0], -0.01),), tokens=(text[0], text[1:])), {})
    assert (found.outcome, found.score) == (outcome, None)


def test_what_is_no_log_probability_counts_for_nothing():
    found = verdict(Reply("80", top=(("80", -0.1), ("10", float("nan")), ("20", 900.0)), tokens=("80",)), {})
    assert found.score == 80
