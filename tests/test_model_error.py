"""A judge's error on whole models: its part in every bound, against closed forms and simulations; what it costs, and what it prevents."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emscope.answers.planning.power import plan_power
from emscope.answers.planning.power_spec import PowerSpec
from emscope.core.outcomes import State, Verdict
from emscope.judging.local import bundled_judge
from emscope.report.answers.power import sentences
from emscope.report.study.said import _power
from emscope.stats.adjusted import Scored
from emscope.stats.crossed import crossed_mean
from emscope.stats.means import Mean, stratified_mean
from emscope.stats.model_error import BetweenModels, ModelError, line_of
from emscope.stats.pareto import pareto
from emscope.stats.planning import Design, Spread, Spreads, chances, run_chances
from emscope.stats.power import chance_of_both, size_for_both
from emscope.stats.simultaneous import simultaneous_bounds
from emscope.stats.skew import moments
from emscope.study.decision.said import Pair, said
from emscope.study.decision.said_together import dated, recipes
from emscope.study.judged_rates import Counted, _p1

COUNT = 72
STRATA = np.arange(COUNT) % 6
OF = BetweenModels(2.0, 1.9, 25.0, 9.0)
ERROR = ModelError(0.35, OF, OF, OF, OF)
NONE = BetweenModels(0.0, 0.0, 25.0, 9.0)


def test_variances_add_and_degrees_of_freedom_are_welchs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 3, 40), rng.normal(0, 2, 9)
    sd = float(b.std(ddof=1) / 3)  # of the second mean, with 8 degrees of freedom
    found = stratified_mean(a).with_error([(sd, 8.0)])
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert found.df == pytest.approx(stats.ttest_ind(a, b, equal_var=False).df)
    assert found.bound(0.95, -1) - b.mean() == pytest.approx(welch.low)
    assert found.shared == pytest.approx(sd) and found.with_error([]) == found
    assert found.with_error([(1.0, 5.0)]).shared == pytest.approx(np.hypot(sd, 1.0))


def test_what_all_items_share_is_not_shrunk_by_more_of_them():
    plain, shared = Mean(2.0, 1.5, 50.0, 51), Mean(2.0, 1.5, 50.0, 51).with_error([(1.2, 40.0)])
    needed = shared.items_to_settle(6.0, 0.95)
    reach = (1.6449 + 0.8416) * np.sqrt(1.5**2 * 51 / needed + 1.2**2)
    assert needed > plain.items_to_settle(6.0, 0.95) and reach == pytest.approx(4.0, rel=0.02)
    assert shared.items_to_settle(4.5, 0.95) is None, "the error alone hides a gap of 2.5"
    assert plain.items_to_settle(4.5, 0.95) is not None


def test_questions_that_are_enough_beside_a_shared_error_are_found_by_looking():
    ses, shared = (2.6, 2.4), (1.4, 1.2)
    n = size_for_both((5.0, 5.0), ses, 0.3, 72, shared=shared)

    def chance(count):
        return chance_of_both(
            (5.0, 5.0), tuple(np.sqrt((s**2 - c**2) * 72 / count + c**2) for s, c in zip(ses, shared, strict=True)), 0.3
        )

    assert chance(n) >= 0.80 > chance(n - 1)
    assert size_for_both((5.0, 5.0), (3.5, 3.5), 0.0, 72, shared=(2.9, 2.9)) is None


def test_moments_with_errors_are_those_of_the_mean_and_lean_less():
    rng = np.random.default_rng(1)
    values = rng.exponential(3, (2, 3, 60))
    errors, df = rng.normal(0, 1, (2, 3, 4)), np.array([5.0, 9.0, 20.0, 20.0])
    plain = moments(values)
    found = plain.with_errors(errors, df)
    for a in range(2):
        for c in range(3):
            e = np.abs(errors[a, c])
            one = stratified_mean(values[a, c]).with_error([(e[0], 5.0), (e[1], 9.0), (float(np.hypot(e[2], e[3])), 20.0)])
            assert found.se[a, c] == pytest.approx(one.se) and found.df[a, c] == pytest.approx(one.df)
    assert np.allclose(found.skewness * found.se**3, plain.skewness * plain.se**3), "a normal error has no third cumulant"
    flat, before = found.parts.reshape(6, -1), plain.parts.reshape(6, -1)
    assert np.allclose(flat @ flat.T, before @ before.T + errors.reshape(6, -1) @ errors.reshape(6, -1).T)
    assert np.allclose(plain.with_errors(np.zeros((2, 3, 1)), np.ones(1)).se, plain.se)
    still = moments(np.ones((1, 60))).with_errors(np.ones((1, 1)), np.array([9.0]))
    assert still.bound(1.7, +1) == np.inf, "items that do not differ still say nothing of their spread"


def test_an_error_that_is_added_never_brings_a_bound_nearer_though_its_degrees_of_freedom_rise():
    few = Mean(9.0, 2.0, 2.0, 72)  # as three seeds have it
    more = few.with_error([(2.9, 24.0)])
    assert more.df > 4 and more.se > few.se
    assert more.reach(0.975) == pytest.approx(few.reach(0.975)), "2 x 4.30 against 3.5 x 2.6 standard errors"
    assert more.reach(0.75) > few.reach(0.75)
    for threshold in (0.0, 5.0, 9.0):
        assert 9.0 - more.reach(more.confidence_above(threshold)) == pytest.approx(threshold, abs=1e-6)
    assert 9.0 + more.reach(1 - more.confidence_above(14.0)) == pytest.approx(14.0, abs=1e-6)


def test_bounds_of_many_checkpoints_hold_with_the_judges_error():
    """Upper bounds over 8 checkpoints, whose models the judge reads with an error of sd 2 each and 1.9 of their base."""
    rng, kept, without = np.random.default_rng(2), [], []
    errors = np.concatenate([np.full((8, 1), OF.base), np.eye(8) * OF.fine_tune], 1)
    df = np.array([9.0, *[25.0] * 8])
    for _ in range(150):
        off = rng.normal(0, OF.base) + rng.normal(0, OF.fine_tune, 8)
        values = off[:, None] + rng.normal(0, 12, (1, 60)) + rng.normal(0, 5, (8, 60))
        kept.append((simultaneous_bounds(values, errors=(errors, df)).upper > 0).all())
        without.append((simultaneous_bounds(values).upper > 0).all())
    assert 0.91 <= np.mean(kept) <= 0.995 and np.mean(without) < 0.75


def arms_of(rng, harm, *, off=OF, runs=("target",), steps=(32,), level=None):
    """Scores of base, control and runs [72 questions]: the judge is off by a normal error on each model; harm is in alignment."""
    level = rng.normal(0, 11, COUNT) if level is None else level
    arms = {}
    places = [("base", 0), *(("control", s) for s in steps), *((run, s) for run in runs for s in steps)]
    for run, step in places:
        wrong = rng.normal(0, off.base if run == "base" else off.fine_tune)
        x = np.clip(60 + rng.normal(0, 15, COUNT), 0, 100)
        hurt = harm if run in runs else 0.0
        y = 60 - hurt + wrong + level + rng.normal(0, 11, COUNT) + 0.35 * (x - 60)
        arms[(run, step)] = Scored(np.arange(COUNT), y, x)
    return arms


@pytest.mark.parametrize(("harm", "wrong"), [(5.0, {Verdict.EM, Verdict.SAFE}), (0.0, {Verdict.EM, Verdict.STYLE_DRIFT})])
def test_a_judge_that_is_off_on_whole_models_calls_no_verdict_too_often(harm, wrong):
    """At the threshold either verdict is wrong in at most one run of 20; without its error they are many more."""
    rng, with_error, without = np.random.default_rng(3), [], []
    for _ in range(300):
        arms = arms_of(rng, harm)
        pair = [Pair("target", 32, ("control", 32))]
        with_error.append(said(arms, pair, STRATA, error=ERROR)[0].verdict)
        without.append(said(arms, pair, STRATA)[0].verdict)
    share = [np.mean([v in wrong for v in verdicts]) for verdicts in (with_error, without)]
    assert share[0] <= 0.075
    if harm:
        assert share[1] > share[0]


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held, bare = np.random.default_rng(4), [], []
    for _ in range(300):
        one = arms_of(rng, 8.0)
        pair = [Pair("target", 32, ("control", 32))]
        for error, kept in ((ERROR, held), (None, bare)):
            found = said(one, pair, STRATA, names=[*"abcdef"], error=error)[0].contrasts
            kept.append([c.adjusted.low <= 8 <= c.adjusted.high for n, c in found.items() if n.endswith("- target")])
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=0.03)
    assert (np.mean(bare, axis=0) < 0.87).all(), "what a judge's error is not told costs coverage"


def test_the_known_slope_takes_the_place_of_the_scores_own():
    rng = np.random.default_rng(5)
    arms = arms_of(rng, 8.0, off=NONE)
    steep = {place: Scored(a.question, a.y + 0.4 * (a.x - 60), a.x) for place, a in arms.items()}
    own, known = (
        said(steep, [Pair("target", 32, None)], STRATA, error=e)[0].contrasts["base - target"]
        for e in (None, ModelError(0.35, NONE, NONE, NONE, NONE))
    )
    assert own.slope == pytest.approx(0.75, abs=0.1) and known.slope == 0.35
    gap = steep[("base", 0)].x.mean() - steep[("target", 32)].x.mean()
    assert known.adjusted.value == pytest.approx(known.plain.value - 0.35 * gap)
    assert known.judge_error == 0.0 and own.judge_error is None
    assert line_of([], ERROR).value == 0.35


def test_every_interval_of_a_contrast_is_wider_and_says_by_how_much():
    arms = arms_of(np.random.default_rng(6), 8.0)
    pair = [Pair("target", 32, ("control", 32))]
    ours = ModelError(0.35, OF, BetweenModels(3.0, 3.0, 25.0, 9.0), BetweenModels(2.0, 3.0, 25.0, 9.0), OF)
    none = ModelError(0.35, NONE, NONE, NONE, NONE)
    wide, narrow = (said(arms, pair, STRATA, names=[*"abcdef"], error=e)[0] for e in (ours, none))
    for name, c in wide.contrasts.items():
        assert c.judge_error == pytest.approx(2**0.5 * 2 if name == "control - target" else np.hypot(2, 1.9))
        parts = [(c.adjusted, narrow.contrasts[name].adjusted), (c.plain, narrow.contrasts[name].plain)]
        parts += [(c.coherence, narrow.contrasts[name].coherence)]
        parts += [(c.by_category[k], narrow.contrasts[name].by_category[k]) for k in c.by_category]
        assert all(w.high - w.low > n.high - n.low and w.value == n.value for w, n in parts)
    assert wide.power < narrow.power and wide.enough is None
    assert "no number of questions would give 80 %" in _power(wide, 72)[0]


def test_broken_text_is_no_less_broken_because_the_judge_may_be_off():
    """A wider interval of coherence would call it harm."""
    arms = arms_of(np.random.default_rng(11), 25.0, off=NONE)
    target = arms[("target", 32)]
    arms[("target", 32)] = Scored(target.question, target.y, np.clip(target.x - 15, 0, 100))
    for error in (None, ERROR):
        found = said(arms, [Pair("target", 32, ("control", 32))], STRATA, error=error)[0]
        assert found.verdict is Verdict.BROKEN and "shown to be more than 10" in found.why
    assert found.contrasts["base - target"].coherence.low < 10, "with the judge's error it would not be"


def test_a_checkpoint_that_is_dated_and_a_recipe_bear_it_too():
    rng = np.random.default_rng(7)
    arms = arms_of(rng, 10.0, off=NONE, steps=(8, 16, 32))
    pairs = [Pair("target", s, ("control", s)) for s in (8, 16, 32)]
    of = dict.fromkeys(arms, Verdict.EM)
    bare, aware = (dated(arms, pairs, STRATA, of, error=e)[0] for e in (None, ERROR))
    assert bare.episodes and aware.episodes == () and bare.onset.by < aware.onset.by

    level = rng.normal(0, 11, COUNT)
    seeds = {}
    for seed in range(3):
        mine = arms_of(rng, 9.0, off=NONE, runs=(f"target-seed{seed}",), level=level)
        mine[(f"control-seed{seed}", 32)] = mine.pop(("control", 32))
        seeds |= mine
    group = {"target": [Pair(f"target-seed{n}", 32, (f"control-seed{n}", 32)) for n in range(3)]}
    bare, aware = (recipes(seeds, group, STRATA, {}, error=e)[0].steps[0] for e in (None, ERROR))
    assert bare.state is State.EM and aware.state is State.UNDETERMINED
    for name, c in aware.contrasts.items():
        assert c.mean.high - c.mean.low > bare.contrasts[name].mean.high - bare.contrasts[name].mean.low
        assert c.next_run.high - c.next_run.low > bare.contrasts[name].next_run.high - bare.contrasts[name].next_run.low


def test_a_crossed_mean_without_spread_stays_without_an_interval():
    flat = crossed_mean(np.ones((3, 4)))
    assert flat.with_error([(2.0, 9.0)]) == flat


def test_what_is_planned_for_such_a_judge_is_what_its_verdicts_find():
    """One run of 72 questions and 15 points of harm, by simulation of the rule."""
    spreads = Spreads(Spread(0.0, 0.0, 0.0), Spread(0.0, 0.0, 0.0), 0.0, 11.0, OF)
    planned = run_chances(COUNT, 1, spreads, delta=5.0, effect=15.0)
    rng, found = np.random.default_rng(8), []
    for _ in range(250):
        arms = arms_of(rng, 15.0)
        found.append(said(arms, [Pair("target", 32, ("control", 32))], STRATA, error=ERROR)[0].verdict is Verdict.EM)
    assert np.mean(found) == pytest.approx(planned.em, abs=0.08)
    bare = Spreads(spreads.control, spreads.base, 0.0, 11.0)
    assert planned.em < run_chances(COUNT, 1, bare, delta=5.0, effect=15.0).em
    one, other = (chances(Design(5, 72, 1), s, delta=5.0, effect=15.0) for s in (spreads, bare))
    assert one.em < other.em and one.half_widths[0] > other.half_widths[0]
    alone = run_chances(COUNT, 1, Spreads(None, spreads.base, 0.0, 11.0, OF), delta=5.0, effect=15.0)
    assert len(alone.half_widths) == 1


def test_a_plan_for_the_local_judge_knows_its_error():
    plain, local = (
        plan_power(None, PowerSpec(seeds=(3,), questions=(72,), samples=(1,), effect=3.0, judge=j)) for j in (None, "local")
    )
    assert local.designs[0].em < plain.designs[0].em
    few, many = (
        plan_power(None, PowerSpec(seeds=(3,), questions=(n,), samples=(2,), effect=3.0, judge="local")).designs[0]
        for n in (24, 240)
    )
    assert many.em > few.em and many.half_width < few.half_width, "more questions help, though the judge's error stays"
    assert any("The local judge's error on whole models is included" in note for note in local.notes)
    assert local.components.judge_error_sd == bundled_judge().model_error.adjusted.fine_tune
    assert "only more seeds and a better judge help" in " ".join(sentences(local)) and "better judge" not in " ".join(
        sentences(plain)
    )
    assert plan_power(None, PowerSpec(measure="preference", seeds=(3,), judge="local")).designs[0].em > 0


def test_the_bundled_judge_says_how_far_it_is_off():
    error = bundled_judge().model_error
    assert 0.2 < error.slope < 0.6
    for of in (error.adjusted, error.plain, error.coherence, error.category):
        assert 0.5 < of.fine_tune < 6 and 0 <= of.base < 10 and of.df_fine_tune >= 10 and of.df_base >= 3
    assert np.allclose(np.diag(OF.covariance()), [sum(sd**2 for sd, _ in OF.between(base=b)) for b in (False, True)])


def test_a_front_by_judged_answers_knows_the_error_too():
    """Two ways whose effects differ by 6 points: surely so by their questions, not beside what the judge may get wrong."""
    rng = np.random.default_rng(9)
    gain = rng.normal([[[1.0]], [[1.2]]], 0.02, (2, 1, 40))
    effect = rng.normal(0, 6, (1, 1, COUNT)) + rng.normal([[[12.0]], [[6.0]]], 3, (2, 1, COUNT))
    bare, aware = pareto(gain, effect), pareto(gain, effect, effect_error=(2.9, 24.0))
    assert bare.dominated.tolist() == [True, False] and aware.dominated.tolist() == [False, False]
    assert aware.on_front[0] > bare.on_front[0]
    held = 0
    for n in range(60):  # equal effects, off by the judge: a cell of the true front is seldom called dominated
        off = np.random.default_rng(n).normal(0, 2.9, (3, 1, 1))
        rng = np.random.default_rng(100 + n)
        same = rng.normal(0, 6, (1, 1, COUNT)) + rng.normal(8, 3, (3, 1, COUNT)) + off
        held += not pareto(rng.normal(1, 0.02, (3, 1, 40)), same, effect_error=(2.9, 24.0)).dominated.any()
    assert held >= 55


def test_the_difference_on_p1s_scale_includes_it():
    rng = np.random.default_rng(10)
    a, b = (Counted(np.zeros(COUNT), np.ones(COUNT), np.ones(COUNT), rng.normal(m, 8, COUNT)) for m in (50, 62))
    wide, narrow = (_p1(a, b, e) for e in (ERROR, None))
    assert wide.value == narrow.value == pytest.approx(1.2, abs=0.4)
    want = stratified_mean((b.aligned - a.aligned) / 10).with_error([(2**0.5 * 0.2, 25.0)])
    assert wide.high - wide.low == pytest.approx(2 * want.reach(0.975)) and wide.high > narrow.high
