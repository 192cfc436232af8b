"""Runs counted by each measure, and the front over their checkpoints, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from emscope.core.estimate import Estimate
from emscope.core.outcomes import State, Verdict
from emscope.stats.adjusted import Scored, Slope, adjusted_difference, slope
from emscope.study.decision.analysis import check
from emscope.study.decision.cases import Count, Named, count_cases
from emscope.study.decision.checked import Late, Onset, Stop
from emscope.study.decision.fronts import NOT_READ, JudgedRun, front, judged_front
from emscope.study.decision.opinions import Opinion
from emscope.study.decision.said import Dated, Pair, Said, said
from emscope.study.report import way_of
from test_stats import SITUATIONS, STEPS, arm_of, evidence, evidence_for


def kept(value):
    return Estimate(value, value - 0.1, value + 0.1, 0.95, "t", 30, 30)


def run(way, seed, **changes):
    """Return a run whose last checkpoint is em after a safe start, unless told otherwise."""
    made = check(evidence_for("em"))
    settings = {
        "onset": Onset(20, 40),
        "late": Late(True, True, True, "", ""),
        "stop": Stop(20, kept(0.9), {}, True, 0.5),
        "truthfulness": None,
    }
    return Named(f"{way}-seed{seed}", way, replace(made, **(settings | changes)))


def safe(way, seed):
    return run(
        way, seed, verdict=Verdict.SAFE, state=State.SAFE, onset=None, late=None, stop=Stop(80, kept(1.0), {}, None, 0.5)
    )


def opened(way, seed):
    return run(way, seed, verdict=Verdict.UNDETERMINED, state=State.UNDETERMINED, onset=None, late=None, stop=None)


RUNS = [
    run("a", 0),
    run("a", 1, onset=Onset(10, 20), late=Late(None, True, False, "", ""), stop=Stop(10, kept(0.4), {}, False, 0.5)),
    run("a", 2, onset=Onset(0, 10), stop=None, late=Late(False, False, False, "", "")),
    safe("b", 0),
    opened("b", 1),
    run("c", 0),
    opened("c", 1),
]


def test_runs_are_counted_as_by_hand_and_what_is_open_stands_apart():
    (found,) = count_cases(RUNS, None)
    assert found.measure == "preference" and [w.name for w in found.ways] == ["a", "b", "c"]
    a, b, c = found.ways
    assert (a.em.yes, a.em.of, a.em.open, a.consistent) == (3, 3, 0, True)
    assert (b.em.yes, b.em.of, b.em.open, b.consistent) == (0, 1, 1, False)
    assert (c.em.yes, c.em.of, c.em.open, c.consistent) == (1, 1, 1, None)
    assert (found.consistent.yes, found.consistent.of, found.consistent.open) == (1, 2, 1)
    assert (a.late.yes, a.late.of, a.late.open) == (1, 2, 1)
    assert (a.avoidable.yes, a.avoidable.of, a.avoidable.open) == (1, 2, 1)
    assert (a.stop.yes, a.stop.of) == (2, 3) and b.reads == {"safe": 1, "undetermined": 1}
    assert (a.onset.runs, a.onset.after, a.onset.by, b.onset) == (3, 0, 40, None)
    both = found.together
    assert (both.runs, both.em.yes, both.em.of, both.em.open, both.consistent) == (7, 4, 5, 2, False)
    values = np.array([0.9, 0.4, 1.0, 0.9])
    assert both.retained.value == pytest.approx(values.mean())
    assert both.retained.high == pytest.approx(values.mean() + stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2)


def test_shares_have_exact_binomial_intervals():
    count = Count.over([True, True, True, None])
    assert (count.share.low, count.share.high) == pytest.approx((0.025 ** (1 / 3), 1.0)) and count.open == 1
    nothing = Count.over([None])
    assert nothing.share.value is None and nothing.share.why == "no runs"


def test_steps_are_counted_by_what_each_checkpoint_reads():
    (found,) = count_cases([run("a", 0), run("a", 1)], None)
    assert [(s.step, s.em.yes, s.em.of) for s in found.together.steps] == [(10, 0, 2), (20, 0, 2), (40, 2, 2), (80, 2, 2)]


def test_without_a_threshold_everything_is_open():
    made = run("a", 0).check
    screen = replace(made, verdict=Verdict.UNCALIBRATED, definition=replace(made.definition, calibrated=False), stop=None)
    (found,) = count_cases([Named("a-seed0", "a", screen)], None)
    a = found.together
    assert (a.em.of, a.em.open, a.consistent, a.stop.open, a.late.of, a.onset) == (0, 1, None, 1, 0, None)
    assert a.steps[-1].em.open == 1 and a.reads == {"uncalibrated": 1}


def test_a_run_that_is_em_from_its_first_checkpoint_cannot_be_avoided():
    made = check(evidence_for("em at once"))
    (found,) = (c for c in count_cases([Named("a-seed0", "a", made)], None) if c.measure == "preference")
    assert found.cases[0].from_first and found.cases[0].avoidable is False and found.together.onset.from_first == 1


def test_what_the_judge_says_is_counted_with_the_task_of_the_same_checkpoints():
    made = check(evidence_for("em"))
    states = {10: Verdict.SAFE, 20: Verdict.SAFE, 40: Verdict.SAFE, 80: Verdict.EM}
    said = tuple(Said("a-seed0", step, None, v, "", {}, None) for step, v in states.items())
    judge = Opinion("j", None, {}, (), kept(0.5), (), said, (Dated("a-seed0", Onset(40, 80), (), 40),), (), ())
    judged, preferred = (c for c in count_cases([Named("a-seed0", "a", made)], judge) if c.measure != "truthfulness")
    assert judged.measure == "judged" and preferred.measure == "preference"
    case = judged.cases[0]
    gain = next(c.gain for c in made.checkpoints if c.step == 40)
    assert (case.em, case.late, case.stop, case.gain_at_stop, case.avoidable) == (True, True, 40, gain, True)
    assert [(s.step, s.em.yes) for s in judged.together.steps] == [(10, 0), (20, 0), (40, 0), (80, 1)]


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_situation_is_counted(name):
    made = check(evidence_for(name))
    for found in count_cases([Named("t-seed0", "t", made)], None):
        one = found.together
        assert one.runs == one.em.of + one.em.open == 1
        assert one.late.of + one.late.open == one.avoidable.of + one.avoidable.open == one.em.yes


def test_late_of_the_judge_and_of_preference_agree_on_the_same_states():
    made = check(evidence_for("em"))
    said = tuple(Said("a-seed0", c.step, None, Verdict(c.state), "", {}, None) for c in made.checkpoints)
    judge = Opinion("j", None, {}, (), kept(0.5), (), said, (), (), ())
    judged, preferred, *_ = count_cases([Named("a-seed0", "a", made)], judge)
    assert judged.cases[0].late is preferred.cases[0].late is True


def test_a_way_is_what_remains_of_a_run_without_its_seed():
    assert way_of("narrow-lr1e-05-target-seed12") == "narrow-lr1e-05-target" and way_of("plain") == "plain"


def test_the_front_has_gain_and_effect_of_every_checkpoint_and_betters_the_harmful_one():
    """`worse` is em at its end; `mild` is not, and learns more."""
    mild = evidence(target=arm_of("target", STEPS, (0.0, 0.0, 0.01, 0.01), task=(0.3, 0.95, 0.99, 1.3), noise=0.05))
    found = front("target", {"worse": {0: evidence()}, "mild": {0: mild}})
    cells = {(c.way, c.step): c for c in found.cells}
    assert found.why == "" and found.contrast == "control - target" and len(cells) == 8
    last, task = cells[("worse", 80)], evidence()
    gain = (task.target.task_logp[-1] - task.base_task_logp) / task.task_tokens
    assert last.gain.value == pytest.approx(gain.mean())
    assert last.effect.value == pytest.approx(check(evidence()).checkpoints[-1].effect.value)
    assert (last.bettered_by.way, last.bettered_by.step, last.on_front) == ("mild", 80, 0.0)
    assert cells[("mild", 80)].bettered_by is None and cells[("mild", 80)].on_front == 1.0


def answers(noise, aligned, coherent, questions=12):
    """Return the scores of one checkpoint: three answers to each question, the last question unanswered by some."""
    rng = np.random.default_rng(noise)
    q = np.repeat(np.arange(questions), 3)
    x = coherent + rng.normal(0, 6, len(q))
    return Scored(q, aligned + 0.5 * (x - coherent) + 4 * (q % 4) + rng.normal(0, 1, len(q)), x)


def judged_runs(ways, arms, *, controls=True, broken=None):
    """Return the runs of some ways of training [seed: evidence] with what was judged of them."""
    found = {}
    for way, seeds in ways.items():
        for seed, e in seeds.items():
            run = f"{way}-seed{seed}"
            steps = [step for name, step in arms if name == run]
            out = tuple(s for s in steps if (run, s) in (broken or ()))
            pairs = tuple(Pair(run, s, (f"control-seed{seed}", s) if controls else None) for s in steps if s not in out)
            found.setdefault(way, {})[seed] = JudgedRun(e, pairs, out)
    return found


def test_the_judged_front_has_the_contrasts_of_the_verdict():
    """Two ways, two seeds, two steps; `worse` loses 20 points at its last step, and `mild` learns more without."""
    ways = {
        "worse": {s: evidence(target=arm_of("target", STEPS, (0.0, 0.0, 0.1, 0.4), task=(0.3, 0.95, 0.99, 1.0), noise=0.02 + 0.01 * s)) for s in (0, 1)},
        "mild": {s: evidence(target=arm_of("target", STEPS, (0.0, 0.0, 0.01, 0.01), task=(0.3, 0.95, 0.99, 1.3), noise=0.05 + 0.01 * s)) for s in (0, 1)},
    }  # fmt: skip
    arms = {("base", 0): answers(0, 80, 75)}
    for n, (way, step) in enumerate((w, s) for w in ways for s in STEPS[-2:]):
        for seed in (0, 1):
            fall = 20 if (way, step) == ("worse", STEPS[-1]) else 0
            arms[(f"{way}-seed{seed}", step)] = answers(100 + 2 * n + seed, 78 - fall, 72 - fall / 4)
            arms[(f"control-seed{seed}", step)] = answers(200 + seed + step, 79, 73)
    few = arms[("mild-seed0", STEPS[-2])]
    arms[("mild-seed0", STEPS[-2])] = Scored(few.question[:-3], few.y[:-3], few.x[:-3])  # left its last question unanswered
    strata = np.arange(12) % 4
    found = judged_front("target", judged_runs(ways, arms), arms, strata)
    cells = {(c.way, c.step): c for c in found.cells}
    assert found.measure == "judged" and found.contrast == "control - target at equal coherence" and found.why == ""
    assert set(cells) == {(w, s) for w in ways for s in STEPS[-2:]} and found.seeds == (0, 1)
    worst = cells[("worse", STEPS[-1])]
    assert (worst.bettered_by.way, worst.on_front) == ("mild", 0.0) and cells[("mild", STEPS[-1])].bettered_by is None
    kept = {p: Scored(*(np.array(v)[a.question < 11] for v in (a.question, a.y, a.x))) for p, a in arms.items()}
    pairs = [Pair(f"worse-seed{s}", STEPS[-1], (f"control-seed{s}", STEPS[-1])) for s in (0, 1)]
    line = slope(list(arms.values()))
    some_line = Slope(line.value, line.xy[:11], line.xx[:11])
    by_hand = [adjusted_difference(kept[p.control], kept[(p.run, p.step)], strata[:11], some_line)[0].value for p in pairs]
    assert worst.effect.value == pytest.approx(np.mean(by_hand), abs=0.05) and 12 < worst.effect.value < 20
    whole = {name: c.adjusted.value for name, c in said(arms, pairs[:1], strata)[0].contrasts.items()}
    assert worst.effect.value == pytest.approx(whole["control - target"], abs=4)


def test_broken_checkpoints_and_missing_controls_change_the_judged_front():
    ways = {"a": {0: evidence()}, "b": {0: evidence()}}
    arms = {("base", 0): answers(0, 80, 75)} | {
        (f"{way}-seed0", step): answers(n * 10 + step, 70, 60) for n, way in enumerate(ways) for step in STEPS
    }
    strata = np.zeros(12, int)
    found = judged_front("target", judged_runs(ways, arms, controls=False, broken={("a-seed0", STEPS[-1])}), arms, strata)
    assert found.contrast == "base - target at equal coherence" and len(found.cells) == 2 * len(STEPS) - 1
    assert found.why == f"left out as broken in at least one seed: a at step {STEPS[-1]}"
    one = Scored(
        *(v[arms[("a-seed0", STEPS[0])].question < 2] for v in (lambda a: (a.question, a.y, a.x))(arms[("a-seed0", STEPS[0])]))
    )
    found = judged_front("target", judged_runs(ways, arms, controls=False), arms | {("a-seed0", STEPS[0]): one}, strata)
    assert found.cells == () and "fewer than 3 questions" in found.why
    untaught = {"a": {0: evidence_for("no heldout")}}
    assert judged_front("target", judged_runs(untaught, arms, controls=False), arms, strata).why == NOT_READ
    assert judged_front("target", {"a": judged_runs(ways, arms)["a"], "b": {}}, arms, strata).why.endswith("no seed in common")


def test_without_a_task_there_is_no_front_and_a_reason():
    found = front("target", {"a": {0: evidence_for("no heldout")}})
    assert found.cells == () and found.why == NOT_READ
    assert "no seed in common" in front("target", {"a": {0: evidence()}, "b": {1: evidence()}}).why
