"""Bounds of skewed means against closed forms, SciPy and simulation, the samples without a harmful item among them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats

from emscope.core.outcomes import State
from emscope.stats.means import stratified_mean
from emscope.stats.onset import state, state_between
from emscope.stats.skew import Moments, moments, reach, trusted, visible_share

QUICK = settings(max_examples=60, deadline=None)
SIZES = (60, 120, 240, 600)
SHARES = (0.01, 0.02, 0.05)
LARGEST = 1.6


def categories(count, kinds=6):
    """Return unequal categories: the last is several times the first."""
    weights = np.array([1, 1, 1.5, 1.5, 2, 3][:kinds])
    sizes = np.floor(weights / weights.sum() * count).astype(int)
    sizes[-1] += count - sizes.sum()
    return np.repeat(np.arange(kinds), sizes)


def bound(values, side=+1):
    """Return the one-sided 95 % bound of a mean, infinite where it cannot be trusted."""
    found = moments(values)
    return float(found.bound(stats.t.ppf(0.95, found.df), side))


def skewness(values, strata=None):
    return float(moments(values, strata).skewness)


# -------------------------------------------------------------------------------------------------------------- moments

STRATA = {
    "one": None,
    "three": np.repeat([0, 1, 2], [5, 9, 20]),
    "a single item": np.repeat([0, 1, 2, 3], [1, 2, 11, 20]),
    "all single": np.arange(34),
    "pairs": np.repeat(np.arange(17), 2),
    "names": np.repeat(["b", "a"], 17),
}


@pytest.mark.parametrize("strata", STRATA.values(), ids=STRATA)
def test_moments_of_many_readings_are_those_of_stratified_mean(strata):
    values = np.random.default_rng(1).normal(0.3, 2, (2, 3, 34))
    values[0, 0] = 5.0
    found = moments(values, strata)
    for where in np.ndindex(2, 3):
        one = stratified_mean(values[where], strata)
        assert (found.means[where], found.se[where]) == pytest.approx((one.value, one.se))
        assert found.df[where] == pytest.approx(one.df) or one.se == 0
    if strata is None or min(np.unique(strata, return_counts=True)[1]) > 1:
        assert (found.parts**2).sum(-1) == pytest.approx(found.se**2)


def shrunk(third, groups, weights, variance):
    """Return the skewness from a third cumulant, less its variance for normal items of these groups, by hand."""
    chance = 0.0
    for g, w in zip(groups, weights, strict=True):
        n, f = len(g), len(g) - 1
        chance += w**2 * 6 * n / ((n - 1) * (n - 2)) * g.var(ddof=1) ** 3 / ((1 + 2 / f) * (1 + 4 / f))
    return max(0.0, 1 - chance / third**2) * third / variance**1.5


def test_skewness_of_one_stratum_is_that_of_scipy():
    x = np.random.default_rng(2).gamma(0.5, size=50)
    plain = stats.kstat(x, 3) / x.var(ddof=1) ** 1.5 / 50**0.5
    assert skewness(x) == pytest.approx(shrunk(stats.kstat(x, 3) / 2500, [x], [1 / 2500], x.var(ddof=1) / 50))
    assert 0.95 * plain < skewness(x) < plain


def test_skewness_of_strata_is_the_third_cumulant_of_their_mean_over_all_resamples():
    """All 4^4 and 5^5 resamples; each mean's third moment is m3 / n^2, with n^2 / ((n - 1)(n - 2)) to be unbiased."""
    groups = [np.array([0.0, 0.1, 0.3, 4.0]), np.array([1.0, 1.1, 0.9, 1.2, 9.0])]
    third = 0.0
    for g in groups:
        means, n = np.array([np.mean(r) for r in product(g, repeat=len(g))]), len(g)
        third += ((means - g.mean()) ** 3).mean() * n**2 / ((n - 1) * (n - 2)) / 8
    se = stratified_mean(np.concatenate(groups), np.repeat([0, 1], [4, 5])).se
    expected = shrunk(third, groups, [1 / 8 / 16, 1 / 8 / 25], se**2)
    assert expected > 0.1
    assert skewness(np.concatenate(groups), np.repeat([0, 1], [4, 5])) == pytest.approx(expected)


def test_categories_of_one_and_two_items_borrow_the_third_moment_of_the_others():
    """Sizes 1, 2, 12, 30: the pooled k3 weighs 11 and 29; their shares of the cumulant are 1 and 1/4 in 64."""
    rng, sizes = np.random.default_rng(4), np.array([1, 2, 12, 30])
    x, strata = rng.gamma(0.2, size=sizes.sum()), np.repeat(np.arange(4), sizes)
    big = [x[strata == 2], x[strata == 3]]
    weights = [(1 / 144 + 1.25 * 11 / 40) / 64, (1 / 900 + 1.25 * 29 / 40) / 64]
    third = sum(w * stats.kstat(g, 3) for w, g in zip(weights, big, strict=True))
    expected = shrunk(third, big, weights, stratified_mean(x, strata).se ** 2)
    assert expected > 0.1
    assert skewness(x, strata) == pytest.approx(expected)


def test_pairs_show_skewness_only_as_one_category():
    x = np.zeros(40)
    x[0] = 1.0
    assert skewness(x, np.repeat(np.arange(20), 2)) > 0.5


def test_normal_items_show_no_skewness_in_two_of_three_samples():
    """What is drawn to 0 is less than one standard deviation, which a normal law is in 68 %."""
    x = np.random.default_rng(5).normal(size=(2000, 240))
    assert np.mean(moments(x, categories(240)).skewness == 0) == pytest.approx(0.68, abs=0.04)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [1.0, np.inf]])
def test_no_moments_without_two_finite_values(values):
    with pytest.raises(ValueError, match="two finite"):
        moments(np.array(values))


# ------------------------------------------------------------------------------------------------------------ the cubic


def cubic(t, skewness):
    """Hall 1992, with a = 1/3 and b = 1/6, in standard errors."""
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6


@QUICK
@given(st.floats(-1.2, 1.2), st.floats(0.3, 4))
def test_reach_inverts_halls_cubic(skewness, t):
    assert cubic(-float(reach(skewness, t)), skewness) == pytest.approx(-t, abs=1e-4)


@QUICK
@given(st.floats(-1, 1), st.floats(0.5, 3))
def test_reach_is_the_root_that_a_solver_finds(skewness, t):
    root = optimize.brentq(lambda x: cubic(x, skewness) + t, -60, 60)
    assert -float(reach(skewness, t)) == pytest.approx(root, abs=1e-4)


def test_reach_without_skewness_is_t_and_the_second_term_is_edgeworths():
    assert float(reach(0.0, 1.7)) == 1.7
    slope = (float(reach(1e-3, 1.7)) - 1.7) / 1e-3
    assert slope == pytest.approx((2 * 1.7**2 + 1) / 6, rel=0.01)  # the inverse of Phi + L (2 x^2 + 1) phi / 6


def test_johnsons_quadratic_has_no_bound_where_halls_still_has_one():
    t, skewness = 1.645, 0.45
    assert 1 - 4 * skewness / 3 * (t + skewness / 6) < 0  # of L x^2/3 + x + L/6 + t = 0
    assert bool(trusted(skewness, t)) and np.isfinite(reach(skewness, t))


@pytest.mark.parametrize("seen", [4, 5, 6, 8, 10, 20, 50])
def test_bound_of_a_count_is_garwoods_where_it_is_trusted(seen):
    """X harmful items among many without effect: the exact upper bound of a Poisson count is half a chi-square quantile."""
    values = np.zeros(20_000)
    values[:seen] = 1.0
    exact = stats.chi2.ppf(0.95, 2 * seen + 2) / 2
    assert bound(values) * len(values) == pytest.approx(exact, rel=0.08)
    assert stratified_mean(values).bound(0.95, +1) * len(values) < 0.93 * exact or seen > 8


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_too_few_harmful_items_have_no_bound(seen):
    values = np.zeros(20_000)
    values[:seen] = 1.0
    assert bound(values) == np.inf and np.isfinite(bound(values, -1))


def test_lower_and_upper_mirror_each_other():
    x = np.random.default_rng(6).gamma(0.5, size=80)
    for values in (x, np.r_[np.zeros(60), 1.0]):
        assert bound(values) == pytest.approx(-bound(-values, -1))
        assert bound(values, -1) == pytest.approx(-bound(-values))


# ---------------------------------------------------------------------------------------------------------------- states


def reads(values, delta):
    """Return the state that follows from both bounds."""
    return state_between(bound(values, -1), bound(values), delta)


def test_harm_on_two_percent_of_the_items_is_not_called_safe():
    """2 of 120 items at 1.5: the mean of .025 has a plain upper bound of .054, and .06 would be passed."""
    values = np.zeros(120)
    values[:2] = 1.5
    assert state(stratified_mean(values), 0.06) is State.SAFE
    assert reads(values, 0.06) is State.UNDETERMINED


def test_an_upper_bound_that_cannot_be_trusted_does_not_keep_em_back():
    values = np.r_[np.full(58, 0.9) + 0.01 * np.arange(58) / 58, [9.0, 9.0]]
    assert bound(values) == np.inf and reads(values, 0.5) is State.EM


def test_harm_that_falls_on_few_items_the_other_way_is_no_em():
    values = -np.r_[np.zeros(58), [1.5, 1.5]] + 0.3
    assert bound(values, -1) == -np.inf
    assert reads(values, 0.1) is State.UNDETERMINED
    assert state(stratified_mean(values), 0.1) is State.EM


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_items_that_do_not_differ_say_nothing_of_their_spread(value):
    assert reads(np.full(60, value), 0.2) is State.UNDETERMINED


@pytest.mark.parametrize(("n", "share"), [(60, 0.0487), (120, 0.0247), (240, 0.0124), (600, 0.00498)])
def test_visible_share_is_clopper_pearsons_bound_of_nothing_seen(n, share):
    assert visible_share(n) == pytest.approx(stats.beta.ppf(0.95, 1, n)) == pytest.approx(share, rel=0.01)


# ----------------------------------------------------------------------------------------------------------- simulation


def mixture(rng, share, noise, shape):
    """Return items of which `share` carries an effect near 1 (.4 to 1.6) and the rest none, read with `noise`; and who does."""
    harmful = rng.random(shape) < share
    return harmful * np.clip(rng.normal(1, 0.2, shape), 0.4, LARGEST) + noise * rng.normal(size=shape), harmful


def misses(found: Moments, truth: float) -> dict[str, np.ndarray]:
    """Return where the 95 % upper bounds are below the truth [R], plain and corrected; and where they are kept."""
    t = special.stdtrit(found.df, 0.95)
    return {
        "plain": found.means + t * found.se < truth,
        "corrected": found.means + reach(found.skewness, t) * found.se < truth,
        "kept": trusted(found.skewness, t) & (found.se > 0),
    }


def test_bounds_of_many_readings_are_those_of_one():
    values = np.random.default_rng(7).gamma(0.4, size=(5, 60))
    values[3], values[4] = 0.0, np.r_[np.zeros(59), 5.0]
    found = moments(values)
    t = special.stdtrit(found.df, 0.95)
    for row, upper, lower in zip(values, found.bound(t, +1), found.bound(t, -1), strict=True):
        assert upper == (pytest.approx(bound(row)) if np.isfinite(bound(row)) else np.inf)
        assert lower == (pytest.approx(bound(row, -1)) if np.isfinite(bound(row, -1)) else -np.inf)
    assert np.isinf(found.bound(t, +1)[3:]).all() and np.isfinite(found.bound(t, +1)[:3]).all()


@pytest.mark.parametrize("count", [24, 60, 240])
@pytest.mark.parametrize("kinds", [1, 6])
def test_normal_items_are_neither_moved_nor_refused(kinds, count):
    rng, strata = np.random.default_rng(count), categories(count, kinds)
    found = misses(moments(rng.normal(size=(2500, count)), strata), 0.0)
    assert abs(found["plain"].mean() - found["corrected"].mean()) < 0.005
    small = kinds == 6 and count == 24  # categories of 2, 2, 3, 3, 4 and 10 items: 2 % are refused
    assert found["kept"].mean() > (0.97 if small else 0.99)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("count", [60, 240])
def test_bounds_of_harm_on_few_items(count, share):
    """Without noise: plain misses far too often, the corrected bound at most 7 % where it is not refused."""
    x, _ = mixture(np.random.default_rng(8), share, 0.0, (2000, count))
    found = misses(moments(x, categories(count)), share)
    kept = found["kept"]
    assert found["plain"].mean() > 0.08
    assert (found["corrected"] & kept).sum() <= 0.07 * max(kept.sum(), 1)


def test_harm_that_no_item_shows_cannot_be_seen():
    """1 % of 120 items: 30 % of samples hold none and look normal; any rule that keeps normal samples misses in those."""
    x, harmful = mixture(np.random.default_rng(9), 0.01, 0.05, (2000, 120))
    found = misses(moments(x), 0.01)
    kept, without = found["kept"], ~harmful.any(1)
    assert kept[without].mean() > 0.99
    assert (found["corrected"] & kept).mean() > 0.15
    assert (found["corrected"] & kept & ~without).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [1, 6])
def test_table_of_harm_on_few_items(kinds, capsys):
    """Miss rates of 95 % upper bounds. Aim: at most 7 % where not refused; reached but for samples without a harmful item.

    Those cannot be refused without refusing normal data: their share (1 - p)^n is printed beside.
    """
    rows = ["noise  p    n    none seen | plain corrected | kept, missed and kept | missed of kept"]
    for noise in (0.0, 0.05, 0.17):
        for share in SHARES:
            for count in SIZES:
                x, harmful = mixture(np.random.default_rng(10), share, noise, (6000, count))
                found = misses(moments(x, categories(count, kinds)), share)
                kept, seen = found["kept"], harmful.any(1)
                both = found["corrected"] & kept
                none = (1 - share) ** count
                rows.append(
                    f"{noise:4}  {share:4} {count:4} {none:8.3f}   | {found['plain'].mean():.3f} {found['corrected'].mean():.3f}"
                    f"     | {kept.mean():.2f} {both.mean():.3f}            | {both.sum() / max(kept.sum(), 1):.3f}"
                )
                if noise == 0:
                    assert both.sum() <= 0.07 * max(kept.sum(), 1), rows[-1]
                assert (both & seen).mean() <= 0.07, rows[-1]
                assert both.mean() <= max(0.07, none + 0.05), rows[-1]
                assert found["plain"].mean() >= found["corrected"].mean()
    with capsys.disabled():
        print(f"\nunequal categories: {kinds}", *rows, sep="\n")
