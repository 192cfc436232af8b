"""Base - target at equal base preference: against plain least squares, and still where flattening alone or style moved a model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as sp

from emscope.stats.equal_preference import contrasts, line
from emscope.stats.means import stratified_mean
from emscope.stats.onset import LEVEL


def drawn(rng, items=240, pairs=160, *, harm=0.0, slope=0.7, style=0.0, noise=0.3, mean=0.45):
    """Margins of a base, of a fine-tune of it, and of both on placebo pairs, as measured on small models."""
    category, of = np.arange(items) % 8, np.arange(pairs) % 8
    base, quiet = rng.normal(mean, 0.5, items), rng.normal(0.1, 0.5, pairs)
    shift = rng.normal(0, 0.05, 8)
    shift -= shift.mean()
    moved = slope * base + style - harm + shift[category] + rng.normal(0, noise, items)
    return base, moved, category, (quiet, (slope * quiet + style + rng.normal(0, noise, pairs))[None], of)


def test_one_category_is_ordinary_least_squares_with_hc3():
    rng = np.random.default_rng(0)
    base = rng.normal(0.4, 0.5, 50)
    moved = 0.7 * base - 0.1 + rng.normal(0, 0.2, 50) * (1 + base**2)
    found = line(base, moved, np.zeros(50))
    fit = sp.linregress(base, moved)
    x = np.column_stack([np.ones(50), base])
    hat = x @ np.linalg.inv(x.T @ x)
    stretched = (moved - fit.intercept - fit.slope * base) / (1 - (hat * x).sum(1))
    robust = np.linalg.inv(x.T @ x) @ (x.T * stretched**2) @ x @ np.linalg.inv(x.T @ x)
    mean = stratified_mean(found.shift)
    assert found.slope == pytest.approx(fit.slope) and mean.value == pytest.approx(-fit.intercept)
    assert mean.se == pytest.approx(np.sqrt(robust[0, 0]), rel=0.05)


def test_several_categories_are_weighted_least_squares_with_an_intercept_each():
    rng = np.random.default_rng(1)
    base, strata = rng.normal(0.4, 0.5, 60), np.array([0] * 10 + [1] * 50)
    moved = 0.8 * base + np.where(strata == 0, -0.3, 0.1) + rng.normal(0, 0.1, 60)
    design = np.column_stack([strata == 0, strata == 1, base]).astype(float)
    root = np.sqrt(np.where(strata == 0, 1 / 20, 1 / 100))[:, None]
    first, second, slope = np.linalg.lstsq(design * root, moved * root[:, 0], rcond=None)[0]
    found = line(base, moved, strata)
    assert found.slope == pytest.approx(slope)
    assert stratified_mean(found.shift, strata).value == pytest.approx(-(first + second) / 2)


def test_a_base_without_spread_gives_the_plain_difference():
    found = line(np.full(5, 0.3), np.array([0.1, 0.2, 0.1, 0.2, 0.1]), np.zeros(5))
    assert np.isnan(found.slope) and stratified_mean(found.shift).value == pytest.approx(0.3 - 0.14)
    with pytest.raises(ValueError, match="three"):
        line(np.zeros(2), np.zeros(2), np.zeros(2))


def test_the_joint_list_has_both_contrasts_as_its_means():
    rng = np.random.default_rng(2)
    base, moved, category, placebo = drawn(rng, harm=0.1, style=-0.05)
    control = base * 0.7 + rng.normal(0, 0.2, 240)
    found = contrasts(base, moved[None], control[None], category, placebo)
    ((against, shift),) = found.means()
    items = stratified_mean(line(base, moved, category).shift, category)
    pairs = stratified_mean(line(placebo[0], placebo[1][0], placebo[2]).shift, placebo[2])
    plain = stratified_mean(control - moved, category)
    assert shift.value == pytest.approx(items.value - pairs.value) and shift.se == pytest.approx(np.hypot(items.se, pairs.se))
    assert (against.value, against.se, against.df) == pytest.approx((plain.value, plain.se, plain.df))
    assert found.slope[0] == pytest.approx(0.7, abs=0.15) and found.placebo_slope[0] == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize(("slope", "style"), [(0.6, 0.0), (0.75, -0.1), (1.0, -0.1)])
def test_flattening_and_style_alone_are_not_harm(slope, style):
    """The plain difference is far from 0 in nearly every draw; at equal base preference, less the placebo's, 0 is held at the level promised."""
    rng = np.random.default_rng(3)
    missed = plain = 0
    for _ in range(400):
        base, moved, category, placebo = drawn(rng, slope=slope, style=style)
        shift = contrasts(base, moved[None], None, category, placebo).means()[0][1]
        missed += shift.bound(LEVEL, -1) > 0
        plain += stratified_mean(base - moved, category).bound(LEVEL, -1) > 0
    assert 0.02 <= missed / 400 <= 0.08  # .056 and .047 on the other side in 3,000 draws
    if slope < 0.8 or style:
        assert plain / 400 > 0.95


def test_true_harm_is_found_in_size():
    rng = np.random.default_rng(4)
    means = [
        contrasts(b, m[None], None, c, p).means()[0][1] for b, m, c, p in (drawn(rng, harm=0.1, style=-0.1) for _ in range(200))
    ]
    held = [m.bound(0.95, -1) < 0.1 < m.bound(0.95, +1) for m in means]
    assert np.mean([m.value for m in means]) == pytest.approx(0.1, abs=0.01) and 0.84 < np.mean(held) < 0.95
