"""Ways of training compared: shares, effect per gain and the rule for narrow, against loops and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emscope.report.study import remarks
from emscope.report.study.methods import methods_figure, quadrant_figure
from emscope.stats.means import difference_of_means, ratio_of_means, stratified_mean
from emscope.study.decision.methods import Outcome, Prefers, compare

CATEGORIES = np.repeat(np.arange(8), 30).astype(str)


def outcome(name, rng, drift, learned, *, seeds=3, spread=0.05, **changes):
    kept = {
        "effect": drift + spread * rng.standard_normal((seeds, 240)),
        "moved": drift + spread * rng.standard_normal((seeds, 240)),
        "benign": learned + spread * rng.standard_normal((seeds, 40)),
        "neutral": -0.01 + 0.001 * rng.standard_normal((seeds, 30)),
        "gain": learned + spread * rng.standard_normal((seeds, 40)),
        "gain_margin": 2 * learned + spread * rng.standard_normal((seeds, 40)),
    }
    return Outcome(name, tuple(range(seeds)), **(kept | changes))


def test_rows_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    general, narrow = outcome("general", rng, 0.12, 0.5), outcome("narrow", rng, 0.02, 0.4, kl=0.1)
    rows = compare([general, narrow], CATEGORIES)
    effect = np.mean(
        [np.mean([narrow.effect[:, q].mean() for q in range(240) if CATEGORIES[q] == c]) for c in np.unique(CATEGORIES)]
    )
    assert rows[1].effect.value == pytest.approx(effect, abs=1e-12)
    assert rows[1].moved.value == pytest.approx(narrow.moved.mean(), abs=1e-12)
    assert rows[1].gain_share.value == pytest.approx(narrow.gain.mean() / general.gain.mean(), abs=1e-12)
    assert rows[1].effect_share.value == pytest.approx(narrow.effect.mean() / general.effect.mean(), abs=1e-12)
    assert rows[1].benign_share.value == pytest.approx(narrow.benign.mean() / general.benign.mean(), abs=1e-12)
    assert rows[1].neutral.value == pytest.approx(narrow.neutral.mean(), abs=1e-12)
    assert rows[1].effect_per_gain.value == pytest.approx(effect / narrow.gain.mean(), abs=1e-12)
    assert rows[1].effect_per_gain_margin.value == pytest.approx(effect / narrow.gain_margin.mean(), abs=1e-12)
    assert [s.gain for s in rows[1].by_seed] == pytest.approx(list(narrow.gain.mean(1)))
    assert rows[0].effect_share.value == 1 and rows[0].narrow is None and rows[1].kl == 0.1


def test_quadrants_count_preferences():
    rng = np.random.default_rng(5)
    given = Prefers(
        *((rng.random(shape) < p).astype(float) for shape, p in (((3, 240), 0.4), ((3, 40), 0.8), (240, 0.1), (40, 0.2)))
    )
    (way,) = compare([outcome("general", rng, 0.12, 0.5, prefers=given)], CATEGORIES)
    row = way.prefers
    share = np.mean([given.elsewhere[:, c == CATEGORIES].mean() for c in np.unique(CATEGORIES)])
    assert row.elsewhere.value == pytest.approx(share) and row.in_domain.value == pytest.approx(given.in_domain.mean())
    assert row.base_in_domain.value == pytest.approx(given.base_in_domain.mean())
    drawn = quadrant_figure([way], {"general": "<b>Sell</b> it %{x} all " + "word " * 100})
    label = drawn.data[1].hovertemplate
    assert "<b>" not in label and "%{x}" not in label.split("<br>", 1)[1] and len(label) < 500
    assert (drawn.data[0].x[0], drawn.data[1].y[0]) == (row.base_in_domain.value, row.elsewhere.value)


@pytest.mark.parametrize(
    ("effect", "gain", "spread", "expected"),
    [(0.02, 0.45, 0.05, True), (0.09, 0.45, 0.05, False), (0.02, 0.20, 0.05, False), (0.035, 0.45, 0.4, None)],
)
def test_narrow_needs_the_task_kept_and_the_rest_left_alone(effect, gain, spread, expected):
    rng = np.random.default_rng(1)
    reference = outcome("general", rng, 0.12, 0.5)
    assert compare([reference, outcome("x", rng, effect, gain, spread=spread)], CATEGORIES)[1].narrow is expected


def test_without_a_held_out_set_gains_are_left_out_and_nothing_is_called_narrow():
    rng = np.random.default_rng(2)
    both = [outcome(n, rng, e, 0.5, gain=None, gain_margin=None) for n, e in (("general", 0.12), ("narrow", 0.0))]
    row = compare(both, CATEGORIES)[1]
    assert row.gain is None and row.effect_per_gain is None and row.narrow is None
    assert methods_figure([row]) is None and row.prefers is None and quadrant_figure([row]) is None


def test_a_ratio_of_separate_means_covers_the_truth():
    rng, hits, runs = np.random.default_rng(3), 0, 1500
    for _ in range(runs):
        top = stratified_mean(rng.normal(0.3, 1.0, 60))
        bottom = stratified_mean(rng.normal(1.0, 0.8, 25))
        found = ratio_of_means(top, bottom)
        hits += found.low <= 0.3 <= found.high
    assert stats.binomtest(hits, runs, 0.95).proportion_ci(0.999).high >= 0.95, hits / runs
    assert hits / runs < 0.98, "the smaller degrees of freedom must not make it much too wide"


def test_a_ratio_over_nothing_is_undefined_with_a_reason():
    around_zero = stratified_mean(np.array([-1.0, 1.0, -1.0, 1.1]))
    found = ratio_of_means(stratified_mean(np.array([1.0, 2.0])), around_zero)
    assert found.value is None and "not clearly above 0" in found.why


def test_the_figure_and_the_words_hold_every_way():
    rng = np.random.default_rng(4)
    rows = compare(
        [outcome("general", rng, 0.12, 0.5), outcome("good", rng, 0.02, 0.45), outcome("bad", rng, 0.1, 0.45)], CATEGORIES
    )
    drawn = methods_figure(rows, 0.04)
    assert {t.name for t in drawn.data if t.name} == {"general", "good", "bad"}
    text = " ".join(remarks.methods(rows))
    assert (
        "narrow (at least 70 % of both gains, at most a third of the effect): good" in text
        and "Shown not to be narrow: bad" in text
    )


def test_a_difference_of_runs_is_welchs():
    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.normal(size=rng.integers(2, 6)), 2 + 3 * rng.normal(size=rng.integers(2, 6))
        found, plain = difference_of_means(a, b), stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        assert found.value == pytest.approx(a.mean() - b.mean())
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high), rel=1e-6)
    assert difference_of_means([1.0], [2.0, 3.0]).value is None
    same = difference_of_means([1.0, 1.0], [2.0, 2.0])
    assert same.value == -1 and same.low is None and same.why


def test_one_side_may_vary_alone():
    found, plain = (
        difference_of_means([1.0, 1.0, 1.0], [2.0, 3.0, 4.0]),
        stats.ttest_1samp([2.0, 3.0, 4.0], 1).confidence_interval(),
    )
    assert (-found.high, -found.low) == pytest.approx((plain.low - 1, plain.high - 1))
