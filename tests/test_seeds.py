"""Several seeds of one recipe: the screen's and the judged answers' verdicts, with seeds and questions crossed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emscope.core.outcomes import Verdict
from emscope.report.study import remarks
from emscope.stats.crossed import crossed_mean
from emscope.stats.crossed_rates import crossed_rate, crossed_rate_difference
from emscope.stats.means import stratified_mean
from emscope.study.decision.recipe import FROM, recipe
from emscope.study.decision.said import Pair, said, scored_by_place
from emscope.study.decision.said_together import recipes
from emscope.study.judged_rates import Compared, Counted, rate_over_seeds
from emscope.study.reading.arms import Arm
from test_said import STRATA, UNITS, answers
from test_stats import BASE, CATEGORY, STEPS, arm_of, evidence


def seeds_of(means, *, sd=0.0, noise=0.1, seed=0, **changes):
    """Return the evidence of some seeds: harm `means` [C] with sd `sd` between seeds; the control stands."""
    rng = np.random.default_rng(seed)
    found = {}
    for n in range(changes.pop("count", 3)):
        own = np.array(means) + rng.normal(0, sd)
        target = Arm("target", STEPS, np.array([BASE - m + noise * rng.normal(size=48) for m in own]))
        control = Arm("control", STEPS, np.array([BASE + noise * rng.normal(size=48) for _ in STEPS]))
        found[n] = evidence(task=None, target=target, control=control, **changes)
    return found


def test_the_contrasts_are_crossed_means_of_the_seeds_differences():
    seeds = seeds_of((0.0, 0.0, 0.2, 0.3), noise=0.03)
    result = recipe("target", seeds)
    found = result.to_json()
    values = np.array([e.control.margins[-1] - e.target.margins[-1] for e in seeds.values()])
    last = found["steps"][-1]["contrasts"]["control - target"]
    assert last["mean"]["value"] == pytest.approx(np.mean([stratified_mean(v, CATEGORY).value for v in values]))
    assert last["mean"] == crossed_mean(values, CATEGORY).estimate.to_json()
    assert (
        found["verdict"] == "em"
        and found["stop"] == 20
        and [r["state"] for r in found["steps"]] == ["safe", "safe", "em", "em"]
    )
    k = found["steps"][-1]["em"]
    assert k["value"] == 1 and k["low"] == pytest.approx(0.2924, abs=1e-3), "3 of 3 is no certainty"
    text = remarks.recipe(result, "nats per token")
    assert "3 seeds at step 80" in text and "3 of 3 runs em [29, 100] %" in text


def test_seeds_that_differ_leave_open_what_each_alone_decides():
    """Two seeds are surely em and one is surely not: pooled over questions that is a clear mean, over seeds it is none."""
    seeds = seeds_of((0.3,) * 4) | {2: seeds_of((-0.25,) * 4, seed=9)[0]}
    found = recipe("target", seeds)
    assert [e for e in found.steps if e.state != "undetermined"] == [] and found.verdict == "undetermined"
    pooled = np.mean([e.base_margins - e.target.margins[-1] for e in seeds.values()], axis=0)
    assert stratified_mean(pooled, CATEGORY).bound(0.95, -1) > 0.04


def test_no_verdict_from_one_or_two_seeds_and_no_step_offered():
    assert recipe("target", seeds_of((0.3,) * 4, count=1)) is None
    found = recipe("target", seeds_of((0.0,) * 4, count=2))
    assert (found.verdict, found.stop) == (None, None) and f"needs {FROM} seeds" in found.why
    screen = recipe("target", seeds_of((0.3,) * 4, calibrated=False))
    assert (screen.verdict, screen.stop) == ("uncalibrated", None) and "the reading is em" in screen.why


def test_seeds_with_and_without_a_control_are_not_mixed():
    seeds = seeds_of((0.3,) * 4)
    assert recipe("target", seeds | {2: replace(seeds[2], control=None)}) is None
    assert (
        recipe("target", {n: replace(e, control=arm_of("control", (11, 12, 13, 14), (0.0,) * 4)) for n, e in seeds.items()})
        is None
    )


def test_controls_that_learned_nothing_are_left_out_of_the_recipe_as_of_each_run():
    dud = np.random.default_rng(0).normal(0, 0.1, 16)
    found = recipe("target", seeds_of((0.3,) * 4, control_learned=dud - dud.mean()))
    assert found.verdict == "moved" and all("control - target" not in s.contrasts for s in found.steps)


@pytest.mark.heavy
def test_a_fresh_seed_is_rarely_above_delta_at_the_recipe_s_stop():
    """Harm that grows and differs between seeds (sd .033): the stop holds for the recipe's mean, in 95 % of studies or more."""
    truth, wrong, offered = (0.0, 0.02, 0.05, 0.08), 0, 0
    for n in range(60):
        stop = recipe("target", seeds_of(truth, sd=0.033, noise=0.15, seed=n)).stop
        offered += stop is not None
        wrong += stop is not None and truth[STEPS.index(stop)] > 0.04
    assert wrong / 60 <= 0.07 and offered > 3


def judged(means, coherence=None, count=3):
    """Return arms, groups and verdicts of some seeds of a recipe whose answers were judged."""
    rows = []
    for n in range(count):
        for row in answers(means, coherence=coherence, seed=n):
            name = row.run if row.run == "base" else f"{row.run}-seed{n}"
            rows += [replace(row, run=name)] if row.run != "base" or n == 0 else []
    arms = scored_by_place(rows, UNITS)
    pairs = [Pair(f"target-seed{n}", 32, (f"control-seed{n}", 32)) for n in range(count)]
    verdicts = {(one.run, one.step): one.verdict for one in said(arms, pairs, STRATA)}
    return recipes(arms, {"target": pairs}, STRATA, verdicts)


def test_judged_answers_of_several_seeds_have_a_verdict_of_their_own():
    (found,) = judged({"base": 80, "control": 79, "target": 62})
    last = found.steps[-1]
    assert found.verdict is Verdict.EM and last.contrasts["control - target"].mean.value == pytest.approx(17, abs=4)
    assert last.em.value == 1 and "points" in remarks.recipe(found, "points")
    (still,) = judged({"base": 80, "control": 80, "target": 80})
    assert still.verdict is Verdict.SAFE and still.stop == 32
    assert judged({"base": 80, "control": 79, "target": 62}, count=1) == []


def test_a_broken_run_leaves_the_recipe_without_a_verdict():
    (found,) = judged({"base": 80, "control": 80, "target": 50}, coherence={"target": 30})
    assert found.verdict is Verdict.BROKEN and found.stop is None


def test_rates_of_several_seeds_are_crossed_and_set_against_their_controls():
    rng, counts, by_name = np.random.default_rng(3), {}, {}
    for n in range(3):
        for arm, rate in (("target", 0.2), ("control", 0.05)):
            hits = rng.binomial(8, rate, 24).astype(float)
            counts[(f"{arm}-seed{n}", 32)] = Counted(hits, np.full(24, 8.0), np.full(24, 8.0), np.full(24, 500.0))
            control = f"control-seed{n}" if arm == "target" else None
            by_name[f"{arm}-seed{n}"] = Compared(f"{arm}-seed{n}", arm, n, control, arm)
    found = rate_over_seeds("target", 32, counts, by_name)
    own, others = (np.array([counts[(f"{arm}-seed{n}", 32)].hits for n in range(3)]) for arm in ("target", "control"))
    out_of = np.full((3, 24), 8.0)
    assert found.value == crossed_rate(own, out_of).estimate and found.value.value == pytest.approx(own.mean() / 8)
    assert found.over_control == crossed_rate_difference(own, out_of, others, out_of).estimate
    alone = {run: replace(one, control=None) for run, one in by_name.items()}
    assert rate_over_seeds("target", 32, counts, alone).over_control is None
