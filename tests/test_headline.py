"""A check's sentences say what its numbers say, the answer first."""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from types import SimpleNamespace

import pytest

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.core.outcomes import State, Verdict
from emscope.core.plain import from_json
from emscope.report.study import headline as told
from emscope.report.study import remarks
from emscope.report.study.advice import ADVICE, advice
from emscope.report.study.headline import headline
from emscope.report.study.page import render
from emscope.report.study.terminal import print_report
from emscope.study.decision.analysis import check
from emscope.study.decision.checked import CheckResult, Episode, Flattening, Onset, Power, Stop
from emscope.study.decision.shipping import Condition, Shipping
from emscope.study.report import BaseModel, Distributions, FolderChecked, FolderRead, StudyReport, read_report
from emscope.study.tables import Tables
from test_stats import SITUATIONS, evidence_for


def estimate(value):
    return Estimate(value, value - 0.1, value + 0.1, 0.9, "t", 48, 48)


def check_of(**changes):
    """Return a check whose last checkpoint, the only one, reads em against control and base."""
    made = check(evidence_for(next(iter(SITUATIONS))))
    last = replace(
        made.checkpoints[-1],
        effect=estimate(0.25),
        base_effect=estimate(0.12),
        flattening=Flattening(items=0.7),
        contrasts={"control - target": estimate(0.25), "base - target": estimate(0.3)},
    )
    settings = {
        "verdict": Verdict.EM,
        "state": State.EM,
        "delta": 0.04,
        "checkpoints": (last,),
        "why": {},
        "definition": replace(made.definition, placebo=160, delta_source="given"),
        "power": Power(0.24, 0.7, 0.24, 0.5),
        "onset": Onset(20, 40, estimate(0.2), estimate(-0.05)),
        "episodes": (),
    }
    return replace(made, **(settings | changes))


def report_of(shipping):
    """Return the report of a folder of checkpoints that no judge has read."""
    return FolderChecked(
        name="run", distributions=Distributions((), {}), spec={}, versions={"emscope": "0"},
        base=BaseModel("toy", "plain"), judged=None,
        ship=(shipping,), check=check_of(), read=None, amplified=(), unpaired={},
    )  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_first_sentence_is_the_answer_in_thirty_words(name):
    found = check(evidence_for(name))
    first, *rest = headline(found)
    assert len(first.split()) <= 30 and first[0].isupper() and first.count(". ") == 0
    at = f" at step {found.checkpoints[-1].step}" if found.checkpoints and found.verdict is not Verdict.UNCALIBRATED else ""
    assert first.lower().startswith(told.verdict_words(found.verdict, at=at).lower())
    text = " ".join(rest)
    for why in (found.why.get("verdict"), found.why.get("unseen"), found.why.get("control")):
        assert why is None or why[1:] in text
    if found.checkpoints:
        assert f"{found.checkpoints[-1].base_effect.value:.3f}" in text and f"threshold is {found.delta:.3f}" in text


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_answer_is_read_back_as_it_was(name):
    found = check(evidence_for(name))
    text = json.dumps(found.to_json())
    again = from_json(CheckResult, json.loads(text), "report.json", "run it again")
    assert json.dumps(again.to_json()) == text and headline(again) == headline(found)


def test_both_contrasts_and_the_threshold_follow_the_answer():
    first, numbers, taken, *_ = headline(check_of())
    assert first == f"Shows misalignment beyond its task at step {check_of().checkpoints[-1].step}."
    assert numbers == (
        "Control - target is 0.250 [0.150, 0.350] and base - target is 0.120 [0.020, 0.220] nats per token (90 % intervals); "
        "the threshold is 0.040."
    )
    assert taken == "Base - target is measured at equal base preference, minus the same on placebo pairs."
    bare = check_of(definition=replace(check_of().definition, placebo=0, delta_source="dose ladder of x: 0.04 at dose 1"))
    assert "threshold is 0.040 (dose ladder of x: 0.04 at dose 1)." in headline(bare)[1]
    assert "these items have no placebo pairs" in headline(bare)[2]


def test_what_takes_the_control_away_stands_before_the_numbers():
    found = headline(check_of(why={"control": "it slept", "verdict": "its loss rose"}))
    assert found[1:3] == ["Its loss rose.", "The control is not used: it slept."]


def test_flattening_is_named_where_there_is_some():
    assert "0.70 times as strong" in told._flattening(check_of()) and "(0.300)" in told._flattening(check_of())
    last = replace(check_of().checkpoints[-1], flattening=Flattening(items=0.98))
    assert told._flattening(check_of(checkpoints=(last,))) == "" and told._flattening(check_of(checkpoints=())) == ""


def test_an_onset_stands_beside_what_both_arms_had_moved():
    text = told._onset(check_of())
    assert "after step 20 and by step 40" in text and "target had moved 0.200 from its base and the control -0.050" in text
    assert told._onset(check_of(onset=None, why={"onset": "nothing to date"})) == "No onset: nothing to date."


def test_episodes_are_told_where_they_are_not_the_end():
    past = (Episode(10, 10), Episode(20, 30))
    assert "at steps 10, 20 to 30, but not afterwards" in told._episodes(check_of(onset=None, episodes=past))
    assert told._episodes(check_of(episodes=(Episode(40, 80),))) == ""


def test_power_is_said_in_items_and_thresholds():
    text = told._power(check_of())
    assert (
        f"these {check_of().definition.measure.n_items} items" in text
        and "24 % at twice" in text
        and "70 % at three times" in text
    )
    assert told._power(check_of(power=None)) == ""


def test_what_speaks_against_shipping_comes_before_what_was_not_checked():
    conditions = (
        Condition("a", True, 1.0, 2.0),
        Condition("coherence within 5 points", False, 7.5, 5.0),
        Condition("triggers", None, why="none were tried"),
    )
    report = report_of(Shipping("target", 80, "no", conditions))
    text = remarks.ship(report, "target")
    assert text == "Do not ship step 80. Failed: coherence within 5 points (lower bound 7.5, limit 5). Not shown: triggers."
    assert remarks.ship(report, "other") == ""


def test_terminal_page_and_sentences_begin_with_the_verdict(capsys):
    report = report_of(Shipping("target", 80, "candidate", (Condition("triggers", None, why="none were tried"),)))
    verdict, ship, then = headline(report.check)[0], remarks.ship(report, "target"), advice(report, report.targets[0])
    print_report(report)
    printed = " ".join(capsys.readouterr().out.split())
    page = render(report, Tables())
    assert printed.startswith(f"target {verdict} {ship} {then} Control - target")
    places = [page.index(f"<p>{escape(sentence)}") for sentence in (verdict, ship, then, "Control - target")]
    assert places[0] > 0 and places == sorted(places)
    assert report.sentences()[:3] == [verdict, ship, then]


def read_as(verdict: Verdict, **changes: object) -> FolderChecked:
    """Return a report whose screen says `verdict`."""
    return replace(report_of(Shipping("target", 80, "no", ())), check=check_of(verdict=verdict, **changes))


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_says_what_to_do_next(verdict):
    report = read_as(verdict)
    text = advice(report, report.targets[0])
    assert text.startswith("Next: ") and text.endswith(".") and len(text.split()) < 45
    assert set(ADVICE) == set(Verdict)


def test_after_misalignment_the_step_to_go_back_to_is_named_where_one_is_shown_safe():
    last = check_of().checkpoints[-1]
    stop = Stop(40, estimate(0.9), {}, None, 0.95)
    for changes, said in (
        ({"stop": stop}, "step 40 is the last checkpoint shown safe"),
        ({"stop": None, "checkpoints": (last, last)}, "check earlier checkpoints one at a time"),
        ({"stop": None}, "no earlier checkpoint is shown safe: retrain"),
    ):
        report = read_as(Verdict.EM, **changes)
        assert said in advice(report, report.targets[0])


def test_of_a_folder_of_which_one_checkpoint_was_read_the_others_are_not_said_to_be_unsafe():
    read = FolderRead(24, (80,), None, (), False)
    report = replace(read_as(Verdict.EM, stop=None), read=read)
    assert "no earlier checkpoint" not in advice(report, report.targets[0]) and "check earlier" in advice(
        report, report.targets[0]
    )


def test_a_terminal_names_options_where_sentences_name_settings(capsys):
    report = read_as(Verdict.MOVED)
    print_report(report, {"control": "--control", "make_control": "--make-control"})
    printed = " ".join(capsys.readouterr().out.split())
    assert "on harmless data (--control, or --make-control to train one)" in printed and "`" not in printed
    assert "(`control`, or `make_control` to train one)" in " ".join(report.sentences())


def test_a_report_of_an_earlier_version_is_drawn_without_what_it_does_not_say():
    report = report_of(Shipping("target", 80, "no", ()))
    old = report.to_json()
    for key in ("judged", "ship", "read", "amplified", "unpaired"):
        del old[key]
    said = old["runs"][0]["check"]
    for key in ("standing", "truthfulness"):
        del said[key]
    for key in ("behaviour", "options", "looks"):
        del said["definition"][key]
    again = from_json(FolderChecked, json.loads(json.dumps(old)), "report.json", "run it again")
    ship = remarks.ship(report, "target")
    kept = [s for s in report.sentences() if s != ship]
    assert [s for s in again.sentences() if not s.startswith("Truth")] == [s for s in kept if not s.startswith("Truth")]
    assert told.options(again.check) == ("aligned", "misaligned") and render(again, Tables())


def test_a_folder_without_a_report_that_is_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no finished study; run it first"):
        read_report(tmp_path)
    for text, message in (
        ("{", "is damaged"),
        ('{"schema": "emscope.study/1"}', "is not a report that this emscope knows"),
        ("[1]", "is not a report"),
    ):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report_of(Shipping("target", 80, "no", ())).to_json() | {"name": 7}))
    with pytest.raises(InputError, match=r"is damaged \(name: input should be a valid string\); delete it and run"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(report_of(Shipping("target", 80, "no", ())).to_json()))
    with pytest.raises(InputError, match="holds a check, not a study"):
        StudyReport.in_folder(tmp_path)


def test_fields_are_code_on_the_page_and_strangers_texts_are_text():
    from emscope.report.templating import _marked

    assert _marked("give `ladder` or `delta`.") == "give <code>ladder</code> or <code>delta</code>."
    assert _marked("`<img src=x>` <b>`a`</b>") == "<code>&lt;img src=x&gt;</code> &lt;b&gt;<code>a</code>&lt;/b&gt;"


@pytest.mark.parametrize(
    ("value", "said"), [(0.05, "about "), (0.0401, "more than 10,000 items"), (0.04, "no number of items")]
)
def test_numbers_of_items_beyond_reason_are_not_told(value, said):
    from emscope.stats.means import Mean
    from emscope.study.decision.verdict import _settle

    assert _settle("it", Mean(value, 0.02, 79.0, 80), 0.04).startswith(said)


@pytest.mark.parametrize(("questions", "named"), [("open24", True), ("my.jsonl", False)])
def test_where_too_few_questions_were_asked_the_larger_set_is_named(questions, named):
    arms = (SimpleNamespace(aligned=SimpleNamespace(clusters=24)),)
    report = SimpleNamespace(
        said_of=lambda _: SimpleNamespace(enough=70),
        judged=SimpleNamespace(questions=questions, first=SimpleNamespace(arms=arms)),
        verdict_on=lambda _: Verdict.UNDETERMINED,
    )
    text = advice(report, SimpleNamespace(run="target"))
    assert "about 70 would detect" in text and "24 were asked" in text and ("(open72 has 72)" in text) is named
