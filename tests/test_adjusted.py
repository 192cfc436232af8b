"""Differences at equal covariate: against statsmodels, and simulated."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from emscope.stats.adjusted import Scored, adjusted_by_category, adjusted_difference, slope
from emscope.stats.means import stratified_mean


def drawn(rng, questions=24, answers=4, effect=0.0, breaks=0.0, b=0.6, noise=12.0, differ=6.0):
    """Two arms: alignment falls with coherence, coherence is lower on the left, and questions differ in all of it."""
    level, hard = rng.normal(0, 8, questions), rng.normal(0, 10, questions)
    own = rng.normal(0, differ, questions)
    q = np.repeat(np.arange(questions), answers)
    arms = []
    for side in (1, 0):
        x = 70 + hard[q] - side * breaks + rng.normal(0, 15, len(q))
        y = 30 + level[q] + b * x + side * (effect + own[q]) + rng.normal(0, noise, len(q))
        arms.append(Scored(q, y, x))
    return arms


def test_slope_and_difference_are_those_of_least_squares():
    left, right = drawn(np.random.default_rng(0))
    y, x = np.concatenate([left.y, right.y]), np.concatenate([left.x, right.x])
    cell = np.concatenate([left.question, right.question + 24])
    design = np.column_stack([x, *(cell == c for c in range(48))]).astype(float)
    fitted = sm.OLS(y, design).fit()
    found, b = adjusted_difference(left, right, np.zeros(24, int))
    assert b == pytest.approx(fitted.params[0], abs=1e-9) == slope([left, right]).value
    assert found.value == pytest.approx(np.mean(fitted.params[1:25] - fitted.params[25:]), abs=1e-8)


def test_without_a_covariate_it_is_the_stratified_mean_of_differences():
    left, right = drawn(np.random.default_rng(1), b=0.0)
    flat = [Scored(a.question, a.y, np.full(len(a.y), 50.0)) for a in (left, right)]
    strata = np.arange(24) % 3
    found, b = adjusted_difference(*flat, strata)
    d = [left.y[left.question == q].mean() - right.y[right.question == q].mean() for q in range(24)]
    plain = stratified_mean(np.array(d), strata)
    assert b == 0 and found.value == pytest.approx(plain.value) and found.se == pytest.approx(plain.se)


def test_questions_that_one_arm_did_not_answer_are_left_out():
    left, right = drawn(np.random.default_rng(2))
    some = left.question < 20
    fewer = Scored(left.question[some], left.y[some], left.x[some])
    found, _ = adjusted_difference(fewer, right, np.zeros(24, int))
    assert found.n == 20
    one = left.question == 3
    assert adjusted_difference(Scored(left.question[one], left.y[one], left.x[one]), right, np.zeros(24, int)) is None


@pytest.mark.parametrize(("effect", "breaks"), [(0.0, 0.0), (0.0, 25.0), (-6.0, 25.0)])
def test_intervals_hold_the_effect_though_one_arm_is_broken(effect, breaks):
    """What breaks a model lowers its alignment scores too; at equal coherence the rest remains. 400 simulated studies."""
    rng = np.random.default_rng(3)
    strata = np.arange(24) % 3
    held, raw, values = 0, 0, []
    for _ in range(400):
        left, right = drawn(rng, effect=effect, breaks=breaks)
        found, _ = adjusted_difference(left, right, strata)
        estimate = found.estimate(0.95)
        held += estimate.low <= effect <= estimate.high
        values.append(found.value)
        d = [left.y[left.question == q].mean() - right.y[right.question == q].mean() for q in range(24)]
        plain = stratified_mean(np.array(d), strata).estimate(0.95)
        raw += plain.low <= effect <= plain.high
    assert 0.925 <= held / 400 <= 0.975
    assert abs(np.mean(values) - effect) < 0.35
    assert (raw / 400 < 0.2) if breaks else raw / 400 > 0.925


def test_categories_average_to_the_whole_and_are_plain_where_there_is_no_covariate():
    left, right = drawn(np.random.default_rng(4), breaks=10)
    strata = np.arange(24) % 3
    parts = adjusted_by_category(left, right, strata)
    whole, b = adjusted_difference(left, right, strata)
    assert np.mean([p.value for p in parts.values()]) == pytest.approx(whole.value)
    gap = {q: [a.y[a.question == q].mean() - b * a.x[a.question == q].mean() for a in (left, right)] for q in range(24)}
    for category, part in parts.items():
        assert part.value == pytest.approx(np.mean([gap[q][0] - gap[q][1] for q in range(24) if q % 3 == category]))
        assert (part.n, part.df) == (8, 7)
    flat = [Scored(a.question, a.y, np.full(len(a.y), 50.0)) for a in (left, right)]
    for category, part in adjusted_by_category(*flat, strata).items():
        own = [left.y[left.question == q].mean() - right.y[right.question == q].mean() for q in range(24) if q % 3 == category]
        assert part.value == pytest.approx(np.mean(own)) and part.se == pytest.approx(np.std(own, ddof=1) / 8**0.5)
    assert adjusted_by_category(left, right, np.r_[np.zeros(23, int), 1]).keys() == {0}  # one question has no spread


def test_intervals_of_a_category_hold_its_effect_though_one_arm_lost_coherence():
    rng, held, reps = np.random.default_rng(5), 0, 700
    strata = np.arange(24) % 3
    for _ in range(reps):
        left, right = drawn(rng, effect=4.0, breaks=12)
        held += sum(
            p.estimate(0.95, "").low <= 4.0 <= p.estimate(0.95, "").high
            for p in adjusted_by_category(left, right, strata).values()
        )
    share = held / (3 * reps)
    assert 0.935 < share < 0.99, share


def test_with_one_answer_a_question_the_slope_is_that_of_least_squares_with_both_intercepts():
    arms = drawn(np.random.default_rng(6), answers=1, breaks=20)
    third = drawn(np.random.default_rng(7), answers=1)[0]
    some = third.question % 5 > 0
    arms.append(Scored(third.question[some], third.y[some], third.x[some]))
    x, y, q = (np.concatenate([getattr(a, k) for a in arms]) for k in ("x", "y", "question"))
    arm = np.repeat(range(3), [len(a.x) for a in arms])
    design = np.column_stack([x, *(q == c for c in range(24)), *(arm == c for c in (1, 2))]).astype(float)
    assert slope(arms).value == pytest.approx(sm.OLS(y, design).fit().params[0], abs=1e-8)
    assert slope([Scored(a.question, a.y, np.full(len(a.y), 50.0)) for a in arms]).value == 0


def test_with_one_answer_a_question_intervals_hold_the_effect_though_one_arm_is_broken():
    rng, held, raw, reps = np.random.default_rng(8), 0, 0, 600
    strata = np.arange(72) % 3
    for _ in range(reps):
        left, right = drawn(rng, questions=72, answers=1, effect=-4.0, breaks=15)
        found = adjusted_difference(left, right, strata)[0].estimate(0.95)
        held += found.low <= -4.0 <= found.high
        flat = [Scored(a.question, a.y, np.full(72, 50.0)) for a in (left, right)]
        plain = adjusted_difference(*flat, strata)[0].estimate(0.95)
        raw += plain.low <= -4.0 <= plain.high
    assert 0.92 <= held / reps <= 0.98, held / reps
    assert raw / reps < 0.5
