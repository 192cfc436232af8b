"""The Pareto front: bounds and draws against plain computations, and how often a cell of the true front is called bettered."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emscope.stats.means import stratified_mean
from emscope.stats.pareto import pareto


def values(means, items, sd, rng, seeds=1):
    """Return [N, S, Q] with the given true means; cells share their items."""
    means = np.asarray(means, float)[:, None, None]
    return means + rng.normal(size=(1, 1, items)) + sd * rng.normal(size=(len(means), seeds, items))


def test_cells_are_bettered_as_a_plain_loop_over_pairs_says():
    rng = np.random.default_rng(3)
    gain, effect = (
        values([0.1, 0.5, 0.5, 0.9, 0.2], 60, 0.3, rng),
        values([0.0, 0.1, 0.6, 0.7, 0.9], 80, 0.3, rng),
    )
    strata = np.arange(80) % 4
    found = pareto(gain, effect, None, strata)
    tail = stats.norm.sf(found.critical)

    def lower(d, strata):
        mean = stratified_mean(d, strata)
        return mean.value - stats.t.isf(tail, mean.df) * mean.se

    bettered = {
        i
        for i in range(5)
        for j in range(5)
        if i != j and lower(gain[j, 0] - gain[i, 0], None) > 0 and lower(effect[i, 0] - effect[j, 0], strata) > 0
    }
    assert set(np.flatnonzero(found.dominated)) == bettered == {4}
    assert found.by[4] in (0, 1, 2, 3) and gain[found.by[4]].mean() > gain[4].mean()
    assert found.gain == pytest.approx(gain.mean((1, 2))) and found.effect == pytest.approx(effect.mean((1, 2)))


def test_the_critical_value_is_that_of_independent_differences_where_they_are():
    """Two cells: one pair on two independent sides, so P(|T1|, |T2| <= c) = .95."""
    rng = np.random.default_rng(4)
    found = pareto(values([0, 1], 400, 1.0, rng), values([0, 1], 400, 1.0, rng))
    assert found.critical == pytest.approx(stats.norm.isf((1 - 0.95**0.5) / 2), abs=0.05)


def test_the_chance_of_the_front_is_that_of_resampled_items():
    """Beside 4,000 bootstrap draws of items, the same for all cells."""
    rng = np.random.default_rng(5)
    gain, effect = values([0.0, 0.05, 0.3], 100, 0.4, rng), values([0.0, -0.02, 0.05], 90, 0.4, rng)
    drawn = np.zeros(3)
    for _ in range(4000):
        g = gain[:, 0, rng.integers(0, 100, 100)].mean(-1)
        e = effect[:, 0, rng.integers(0, 90, 90)].mean(-1)
        drawn += [not any(g[j] > g[i] and e[j] < e[i] for j in range(3) if j != i) for i in range(3)]
    found = pareto(gain, effect).on_front
    assert found == pytest.approx(drawn / 4000, abs=0.03) and 0.02 < found.min() < 0.98


def test_cells_that_are_alike_are_both_on_the_front_and_neither_betters_the_other():
    rng = np.random.default_rng(6)
    gain, effect = values([0.0], 50, 1.0, rng, seeds=3), values([0.0], 40, 1.0, rng, seeds=3)
    found = pareto(np.repeat(gain, 2, 0), np.repeat(effect, 2, 0))
    assert found.on_front.tolist() == [1.0, 1.0] and not found.dominated.any()


def test_seeds_that_differ_widen_what_items_alone_would_show():
    """A cell that lies far below on items, and whose seeds lie apart by as much, is not called bettered."""
    rng = np.random.default_rng(7)
    gain, effect = values([0.0, 0.5], 200, 0.1, rng, seeds=3), values([0.5, 0.0], 200, 0.1, rng, seeds=3)
    assert pareto(gain, effect).dominated.tolist() == [True, False]
    apart = np.array([-0.6, 0.1, 0.5])[:, None]
    gain[1] += apart
    effect[1] -= apart
    assert not pareto(gain, effect).dominated.any()


@pytest.mark.parametrize(
    ("gain", "effect"), [((2, 1, 5), (3, 1, 5)), ((2, 1, 5), (2, 2, 5)), ((2, 5), (2, 5)), ((0, 1, 5), (0, 1, 5))]
)
def test_cells_that_do_not_match_are_refused(gain, effect):
    with pytest.raises(ValueError, match="with the same cells and seeds"):
        pareto(np.zeros(gain), np.zeros(effect))


def falsely(cells, seeds, sd, studies, rng):
    """Return the share of studies that call a cell bettered, where more gain always comes with a little more harm, so that none is."""
    found = 0
    for _ in range(studies):
        of_seeds = sd * rng.normal(size=(2, cells, seeds, 1))
        gain = values(np.arange(cells), 40, 0.5, rng, seeds) + of_seeds[0]
        effect = values(1e-9 * np.arange(cells), 60, 0.5, rng, seeds) + of_seeds[1]
        found += pareto(gain, effect).dominated.any()
    return found / studies


@pytest.mark.parametrize(("cells", "seeds", "sd"), [(6, 1, 0.0), (4, 2, 0.1), (5, 3, 0.1)])
def test_a_cell_of_the_true_front_is_called_bettered_in_at_most_a_twentieth_of_studies(cells, seeds, sd):
    assert falsely(cells, seeds, sd, 100, np.random.default_rng(8)) <= 0.05
