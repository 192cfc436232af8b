"""Many checkpoints at once: bounds against closed forms and SciPy, the stop against a closed test by brute force; simulations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from scipy import optimize, special, stats

from emscope.core.outcomes import State
from emscope.stats import simultaneous
from emscope.stats.means import stratified_mean
from emscope.stats.onset import state
from emscope.stats.quantiles import normal
from emscope.stats.simultaneous import safe_stop, simultaneous_bounds
from emscope.stats.skew import moments

DELTA = 0.04
BARELY = 1.0001 * DELTA


def categories(count):
    """Return six categories of unequal size."""
    weights = np.array([1, 1, 1.5, 1.5, 2, 3])
    sizes = np.floor(weights / weights.sum() * count).astype(int)
    sizes[-1] += count - sizes.sum()
    return np.repeat(np.arange(6), sizes)


def noise(rng, spread, count, rho):
    """Return item noise [C, Q] of standard deviation `spread` [C] whose neighbours correlate by `rho`."""
    fresh = rng.normal(size=(len(spread), count))
    for c in range(1, len(spread)):
        fresh[c] = rho * fresh[c - 1] + np.sqrt(1 - rho**2) * fresh[c]
    return fresh * spread[:, None]


def run_of(rng, effect, count, rho, *, top=0.27, contrasts=1):
    """Return readings [A, C, Q] around `effect` [C]: sd .05 growing to `top` (the second contrast 1.25 times that, correlated .4
    with the first), and categories that lie apart, more so as the run goes on.
    """
    spread = np.linspace(0.05, top, len(effect))
    apart = rng.normal(0, 0.3, 6)
    shift = (apart - apart.mean())[categories(count)]
    items = [noise(rng, np.ones(len(effect)), count, rho) for _ in range(contrasts)]
    if contrasts == 2:
        items[1] = 0.4 * items[0] + np.sqrt(0.84) * items[1]
    return np.stack([effect[:, None] + spread[:, None] * k * (e + shift) for k, e in zip((1, 1.25), items, strict=False)])


def curve(name, count):
    """Return the true effect at `count` checkpoints."""
    t = np.linspace(0, 1, count)
    return {
        "none": np.zeros(count),
        "just below delta": np.full(count, 0.9 * DELTA),
        "delta": np.full(count, BARELY),
        "late": np.where(t < 0.5, 0, 3 * DELTA),
        "late, to delta": np.where(t < 0.5, 0, BARELY),
        "slow rise": 2 * DELTA * t,
        "bump": np.where((t > 0.3) & (t < 0.7), 1.5 * DELTA, 0),
        "bump, to delta": np.where((t > 0.3) & (t < 0.7), BARELY, 0),
    }[name]


CURVES = ("none", "just below delta", "delta", "late", "late, to delta", "slow rise", "bump", "bump, to delta")
NEIGHBOURS = {4: 0.8, 12: 0.8, 28: 0.95, 100: 0.98}


# --------------------------------------------------------------------------------------------------------------- bounds


def test_one_checkpoint_has_the_t_bounds_of_its_mean():
    values, strata = np.random.default_rng(1).normal(size=(1, 60)), categories(60)
    found, one = simultaneous_bounds(values, strata, skewed=False), stratified_mean(values[0], strata)
    assert found.critical == pytest.approx(stats.norm.ppf(0.95), abs=0.04)
    level = stats.norm.cdf(found.critical)
    assert found.upper[0] == pytest.approx(one.bound(level, +1)) and found.lower[0] == pytest.approx(one.bound(level, -1))
    assert found.means[0] == pytest.approx(one.value)


def test_alike_checkpoints_need_no_correction_and_independent_ones_sidaks():
    rng = np.random.default_rng(2)
    alike = simultaneous_bounds(np.tile(rng.normal(size=300), (50, 1)))
    apart = simultaneous_bounds(rng.normal(size=(50, 5_000)))
    assert alike.critical == pytest.approx(stats.norm.ppf(0.95), abs=0.05)
    assert apart.critical == pytest.approx(stats.norm.ppf(0.95 ** (1 / 50)), abs=0.06)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_critical_value_is_the_normal_quantile_of_the_largest_with_the_estimated_correlation(level):
    values, strata = run_of(np.random.default_rng(3), np.zeros(5), 60, 0.6)[0], categories(60)
    centred = np.concatenate([values[:, strata == k] - values[:, strata == k].mean(1)[:, None] for k in range(6)], 1)
    sizes = np.bincount(strata)[strata]
    cov = (centred / (sizes * (sizes - 1))) @ centred.T  # of the means, up to 1/36
    law = stats.multivariate_normal(np.zeros(5), cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov))))
    exact = optimize.brentq(lambda k: law.cdf(np.full(5, k), rng=np.random.default_rng(0)) - level, 1, 4, xtol=1e-3)
    assert stats.norm.cdf(simultaneous_bounds(values, strata, level).critical - exact) == pytest.approx(0.5, abs=0.05)


def test_two_contrasts_are_bounded_together():
    values, strata = run_of(np.random.default_rng(4), np.zeros(6), 60, 0.9, contrasts=2), categories(60)
    both, flat = simultaneous_bounds(values, strata), simultaneous_bounds(values.reshape(12, 60), strata)
    assert both.upper.shape == (2, 6) and both.critical == flat.critical
    assert both.upper.ravel() == pytest.approx(flat.upper) and both.lower.ravel() == pytest.approx(flat.lower)
    assert both.critical > simultaneous_bounds(values[0], strata).critical


def test_the_same_readings_give_the_same_bounds_whatever_their_units():
    values = np.random.default_rng(5).normal(size=(4, 60))
    one, again, scaled = simultaneous_bounds(values), simultaneous_bounds(values), simultaneous_bounds(3 - 2 * values)
    assert np.array_equal(one.upper, again.upper)
    assert scaled.lower == pytest.approx(
        3 - 2 * one.upper, abs=0.03
    )  # the draws are mirrored, so that critical values differ a little


def test_skewed_items_have_higher_bounds_or_none():
    values = np.zeros((3, 240)) + 0.001 * np.random.default_rng(6).normal(size=(3, 240))
    values[1, :12] = 1.0
    values[2, :2] = 1.0
    plain, found = simultaneous_bounds(values, skewed=False), simultaneous_bounds(values)
    assert found.upper[0] == pytest.approx(plain.upper[0], rel=0.1)
    assert found.upper[1] > plain.upper[1] + 0.002
    assert found.upper[2] == np.inf and np.isfinite(plain.upper).all() and np.isfinite(found.lower).all()


@pytest.mark.parametrize("values", [np.zeros(5), np.zeros((0, 5)), np.zeros((1, 1, 2, 5)), np.zeros((3, 0))])
def test_readings_of_another_shape_are_refused(values):
    with pytest.raises(ValueError, match="values must be"):
        simultaneous_bounds(values)


@pytest.mark.parametrize(("count", "checkpoints", "rho"), [(24, 12, 0.8), (60, 28, 0.95)])
def test_bounds_hold_at_all_checkpoints_at_once(monkeypatch, count, checkpoints, rho):
    """Upper bounds of 95 % are all above the truth in 95 % of runs; pointwise ones in 70 to 80 %."""
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    rng, strata, held, alone = np.random.default_rng(7), categories(count), [], []
    for _ in range(150):
        values = run_of(rng, np.zeros(checkpoints), count, rho)[0]
        held.append((simultaneous_bounds(values, strata).upper > 0).all())
        found = moments(values, strata)
        alone.append((found.means + special.stdtrit(found.df, 0.95) * found.se > 0).all())
    assert np.mean(held) == pytest.approx(0.95, abs=0.046)
    assert np.mean(alone) < 0.87


# ------------------------------------------------------------------------------------------------------------- the stop


def closed(values, strata, delta, level=0.95):
    """Return the last checkpoint that a closed test over every subset shows, before any surely above; None without one."""
    read = simultaneous._read(moments(np.asarray(values, float), strata), False)
    draws, m, count = read.draws, read.moments, read.draws.shape[1]
    z = -special.ndtri(special.stdtr(m.df, (m.means - delta) / m.se)).max(0)  # the contrast that passes least
    k1 = normal(1 - (1 - level) / 2)

    def behind(i):
        """Return k2(i) from its definition: P(Z_i > k1 or the largest from i on > k2) = 1 - level, for the worse contrast."""
        rest, place = draws[:, i:].max((0, 1)), int(np.ceil(level * draws.shape[2]))
        firsts = [one > np.sort(one)[int(np.ceil((1 - (1 - level) / 2) * len(one)))] for one in draws[:, i]]
        return max(np.sort(np.where(first, np.inf, rest))[place] for first in firsts)

    k2 = [behind(i) for i in range(count)]
    subsets = [s for size in range(1, count + 1) for s in combinations(range(count), size)]
    passed = {s: bool(z[s[0]] > k1 or z[list(s)].max() > k2[s[0]]) for s in subsets}
    above = (simultaneous_bounds(values, strata, level, skewed=False).lower > delta).all(0)
    shown = [c for c in range(count) if all(passed[s] for s in subsets if c in s) and not above[: c + 1].any()]
    return shown[-1] if shown else None


@pytest.mark.parametrize("contrasts", [1, 2])
def test_the_stop_is_that_of_the_closed_test_over_all_subsets(monkeypatch, contrasts):
    """The rule reads k2 of the first failure and of later ones only; the closed test rejects every subset that holds c."""
    monkeypatch.setattr(simultaneous, "DRAWS", 300)
    rng, strata, behind = np.random.default_rng(8), categories(60), 0
    for _ in range(50):
        effect = rng.choice([0.0, 0.0, 0.02, 0.03, 0.05], 5)
        values = run_of(rng, effect, 60, 0.3, top=0.12, contrasts=contrasts)
        found = safe_stop(range(5), values, strata, delta=DELTA, skewed=False)
        assert found == closed(values, strata, DELTA)
        read = simultaneous._read(moments(values, strata), False)
        walk = simultaneous._below(read, normal(0.975), DELTA)
        behind += found is not None and not walk[: found + 1].all()
    assert behind > 5  # the case that the walk alone does not settle was among them


def last(passed):
    """Return the place of the last that passed, -1 where none did."""
    return int(np.flatnonzero(passed)[-1]) if passed.any() else -1


def unbroken(passed):
    """Return the place of the last before the first that did not pass, -1 where that is the first."""
    return len(passed) - 1 if passed.all() else int(np.argmin(passed)) - 1


def one_by_one(values, strata=None):
    """Return the place of the last that is safe before any that is not, by bounds of each reading alone."""
    return unbroken(np.array([state(stratified_mean(v, strata), DELTA) is State.SAFE for v in values]))


def test_reading_states_one_by_one_is_maurers_fixed_sequence():
    """Each hypothesis at full level in order, ended by the first that is not rejected: literally, with SciPy's t test."""
    rng = np.random.default_rng(9)
    for _ in range(40):
        values = run_of(rng, curve("slow rise", 12), 60, 0.8)[0]
        place = -1
        for c, v in enumerate(values):
            if stats.ttest_1samp(v, DELTA, alternative="less").pvalue >= 0.05:
                break
            place = c
        assert one_by_one(values) == place


def test_one_noisy_reading_does_not_end_the_walk():
    values, strata = run_of(np.random.default_rng(10), np.zeros(28), 240, 0.95, top=0.1)[0], categories(240)
    assert one_by_one(values, strata) == safe_stop(range(28), values, strata, delta=DELTA) == 27
    values[9] += np.where(np.arange(240) % 2, 0.33, -0.25)  # its mean .04 higher, with noise of its own
    assert one_by_one(values, strata) == 8
    assert safe_stop(range(28), values, strata, delta=DELTA) == 27


def test_nothing_is_shipped_behind_a_checkpoint_that_is_surely_above():
    values, strata = run_of(np.random.default_rng(11), np.zeros(12), 240, 0.8, top=0.05)[0], categories(240)
    values[5] += 0.3
    assert simultaneous_bounds(values, strata).upper[-1] < DELTA
    assert safe_stop(range(10, 130, 10), values, strata, delta=DELTA) == 50
    values[0] += 0.3
    assert safe_stop(range(10, 130, 10), values, strata, delta=DELTA) is None


def test_both_contrasts_must_be_below_and_both_above_end_the_run():
    values, strata = run_of(np.random.default_rng(12), np.zeros(8), 240, 0.8, top=0.05, contrasts=2), categories(240)
    assert safe_stop(range(8), values, strata, delta=DELTA) == 7
    values[1, 4:] += 0.3
    assert safe_stop(range(8), values[0], strata, delta=DELTA) == 7
    assert safe_stop(range(8), values, strata, delta=DELTA) == 3
    values[1, 6:] -= 0.3  # the base alone moved, for a while: style drift is no end
    assert safe_stop(range(8), values, strata, delta=DELTA) == 7
    values[0, 5] += 0.3
    assert safe_stop(range(8), values, strata, delta=DELTA) == 3


def test_a_skewed_checkpoint_is_not_shipped():
    values = 0.01 * np.random.default_rng(13).normal(size=(6, 240))
    values[3:, :3] += 0.9
    assert safe_stop(range(6), values, delta=DELTA, skewed=False) == 5
    assert safe_stop(range(6), values, delta=DELTA) == 2


@pytest.mark.parametrize(
    ("steps", "delta", "said"),
    [(range(3), 0.0, "above 0"), (range(3), float("nan"), "above 0"), (range(4), 0.1, "4 steps for 3")],
)
def test_bad_arguments_of_a_stop_are_named(steps, delta, said):
    with pytest.raises(ValueError, match=said):
        safe_stop(steps, np.zeros((3, 9)), delta=delta)


@pytest.mark.parametrize(("name", "contrasts"), [("delta", 1), ("late, to delta", 1), ("delta", 2)])
def test_a_stop_is_above_delta_in_one_run_of_twenty(monkeypatch, name, contrasts):
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    rng, strata, effect = np.random.default_rng(14), categories(60), curve(name, 12)
    stops = [safe_stop(range(12), run_of(rng, effect, 60, 0.8, contrasts=contrasts), strata, delta=DELTA) for _ in range(150)]
    false = np.mean([s is not None and effect[s] > DELTA for s in stops])
    assert false <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 150)


# ------------------------------------------------------------------------------------------------- an effect that grows


# ------------------------------------------------------------------------------------------- rules compared, at length


def shipped(values, strata, stop: Callable[..., int | None]) -> dict[str, int]:
    """Return which checkpoint each rule ships, -1 for none. `values` [A, C, Q]; the last three rules only where A is 1."""
    alone = moments(values, strata)
    reach = special.stdtrit(alone.df, 0.95) * alone.se
    joint = simultaneous_bounds(values, strata)
    below = (joint.upper < DELTA).all(0)
    early = np.logical_or.accumulate((joint.lower > DELTA).all(0))
    found = stop(range(values.shape[1]), values, strata, delta=DELTA)
    rules = {
        "one by one": unbroken((alone.means + reach < DELTA).all(0)),
        "max-t, all": unbroken(below),
        "max-t, last": last(below & ~early),
        "safe_stop": -1 if found is None else found,
    }
    if len(values) > 1:
        return rules
    pooled = values[0].copy()
    pooled[1:-1] = (values[0][:-2] + values[0][1:-1] + values[0][2:]) / 3
    near = moments(pooled, strata)
    rules["of three"] = unbroken(near.means + special.stdtrit(near.df, 0.95) * near.se < DELTA)
    rules |= isotonic_bootstrap(alone.means[0], alone.se[0], alone.parts[0])
    return rules


def isotonic_bootstrap(means, se, parts):
    """Return the last below delta by a multiplier bootstrap of the isotonic fit: percentile and reflected 95 % ends."""
    weights = 1 / se**2
    fit = optimize.isotonic_regression(means, weights=weights).x
    draws = np.random.default_rng(1).normal(size=(200, parts.shape[1])) @ parts.T
    again = np.array([optimize.isotonic_regression(means + d, weights=weights).x for d in draws])
    low, high = np.quantile(again, [0.05, 0.95], axis=0)
    return {"isotonic %": last(high < DELTA), "isotonic 2f": last(2 * fit - low < DELTA)}


def study(effect, count, rho, runs, *, top=0.27, contrasts=1, seed=0):
    """Return of each rule: share of stops above delta, at half of the safe stretch or later, that exist; their place."""
    rng, strata = np.random.default_rng(seed), categories(count)
    stops: dict[str, list[int]] = {}
    for _ in range(runs):
        for rule, place in shipped(run_of(rng, effect, count, rho, top=top, contrasts=contrasts), strata, safe_stop).items():
            stops.setdefault(rule, []).append(place)
    safe = effect < DELTA
    stretch = len(safe) if safe.all() else int(np.argmin(safe))
    rows = {}
    for rule, places in stops.items():
        at = np.array(places)
        ships = at >= 0
        rows[rule] = (
            float(np.mean(ships & ~safe[at])),
            float(np.mean(at + 1 >= stretch / 2)) if stretch else float("nan"),
            float(ships.mean()),
            float(np.median(at[ships] + 1)) / len(safe) if ships.any() else float("nan"),
        )
    return rows


def printed(title, rows):
    return title + "".join(f"\n    {rule:12} {a:6.3f} {b:6.2f} {c:6.2f} {d:6.2f}" for rule, (a, b, c, d) in rows.items())


HEAD = "above delta | at least half of the safe stretch | ships | median place of the stop, share of the run"


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("checkpoints", NEIGHBOURS)
def test_table_of_stops(monkeypatch, capsys, name, checkpoints):
    """Each rule in each scenario; of `safe_stop` at most 5 % may be above delta (2.6 standard errors of the simulation)."""
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    runs, out = 200, []
    for count in (60, 120, 240, 600):
        rows = study(curve(name, checkpoints), count, NEIGHBOURS[checkpoints], runs, seed=count)
        out.append(printed(f"{name}, {checkpoints} checkpoints, {count} items", rows))
        assert rows["safe_stop"][0] <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / runs), out[-1]
        if name == "late" and checkpoints == 100 and count >= 120:
            assert rows["safe_stop"][1] >= 0.85, out[-1]
    with capsys.disabled():
        print(f"\n{HEAD}", *out, sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("checkpoints", [28, 100])
def test_table_of_stops_by_two_contrasts(monkeypatch, capsys, name, checkpoints):
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    runs, out = 200, []
    for count in (60, 120, 240, 600):
        rows = study(curve(name, checkpoints), count, NEIGHBOURS[checkpoints], runs, contrasts=2, seed=count)
        out.append(printed(f"{name}, {checkpoints} checkpoints, {count} items, two contrasts", rows))
        assert rows["safe_stop"][0] <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / runs), out[-1]
        if name == "late" and checkpoints == 100 and count >= 240:
            assert rows["safe_stop"][1] >= 0.85, out[-1]
    with capsys.disabled():
        print(f"\n{HEAD}", *out, sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.8, 0.98])
@pytest.mark.parametrize("top", [0.17, 0.27])
def test_table_of_stops_by_correlation_and_spread(monkeypatch, capsys, rho, top):
    """Where neighbours correlate little, a walk over 100 readings breaks early, and `safe_stop` goes on."""
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    out = []
    for name in ("none", "late", "delta"):
        for count in (60, 120, 240):
            rows = study(curve(name, 100), count, rho, 150, top=top, seed=count)
            out.append(printed(f"{name}, 100 checkpoints, {count} items, correlation {rho}, sd to {top}", rows))
            assert rows["safe_stop"][0] <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 150), out[-1]
            if name == "none" and rho == 0.8 and count == 60:
                assert rows["safe_stop"][3] > rows["one by one"][3] + 0.1, out[-1]
    with capsys.disabled():
        print(f"\n{HEAD}", *out, sep="\n")


@pytest.mark.slow
@pytest.mark.parametrize(("share", "count"), [(0.02, 240), (0.03, 240), (0.02, 600)])
def test_harm_on_few_items_is_not_shipped(monkeypatch, capsys, share, count):
    """Harm on 2 or 3 % of the items from the middle on, to just above delta: plain bounds ship it in 8 to 14 %."""
    monkeypatch.setattr(simultaneous, "DRAWS", 500)
    rng, strata, effect = np.random.default_rng(19), categories(count), curve("delta", 28)
    false = {True: 0, False: 0}
    for _ in range(300):
        values = run_of(rng, np.zeros(28), count, 0.95, top=0.1)[0] + effect[:, None] / share * (rng.random(count) < share)
        for skewed in false:
            false[skewed] += safe_stop(range(28), values, strata, delta=DELTA, skewed=skewed) is not None
    with capsys.disabled():
        print(
            f"\nharm on {share} of {count} items: shipped in {false[True] / 300:.3f}, by plain bounds {false[False] / 300:.3f}"
        )
    assert false[True] <= 0.05 * 300 + 2.6 * np.sqrt(0.05 * 0.95 * 300)
    assert false[False] > 0.06 * 300
