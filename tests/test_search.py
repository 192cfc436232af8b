"""Reading few checkpoints of a long run: the onset is that of reading all, and noise does not buy a wrong one."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sp

from emscope.core.outcomes import State
from emscope.stats.onset import HARM, LEVEL, onset
from emscope.stats.search import look_level, looks, next_look
from emscope.study.decision.along import read_along
from test_stats import evidence
from test_verdicts_simulated import DELTA, Truth, both, draw_items, draw_run

SAFE, EM, UNCLEAR, DRIFT = State.SAFE, State.EM, State.UNDETERMINED, State.STYLE_DRIFT


def searched(states, seed=0):
    """Search a run whose readings would say `states`; return the places read, in order."""
    seen: dict[int, State] = {}
    while (at := next_look(len(states), seen, states[-1] if seen else None, seed)) is not None:
        assert at not in seen and 0 <= at < len(states)
        seen[at] = states[at]
    return list(seen)


def bracket(states, places):
    places = sorted(places)
    return onset(places, [states[n] for n in places], few=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 64, 100, 200])
def test_every_onset_is_found_exactly_whatever_its_place(count):
    most = 2 * ceil(log2(count)) if count > 1 else 1
    for first in range(count):
        states = [SAFE] * first + [EM] * (count - first)
        read = searched(states, seed=first)
        assert len(read) <= min(most, count)
        whole, few = bracket(states, range(count)), bracket(states, read)
        # a run's first place is 0, and so is the base that `after` names: compare the pairs that were read instead
        assert few.by == whole.by == first and few.censored == (first in (0, min(read)))
        assert first == 0 or first - 1 in read


@pytest.mark.parametrize("count", [16, 100])
def test_an_unclear_stretch_is_closed_in_from_both_ends(count):
    for first in range(2, count - 20, 7):
        states = [SAFE] * first + [UNCLEAR] * 6 + [EM] * (count - first - 6)
        read = searched(states)
        found, whole = bracket(states, read), bracket(states, range(count))
        assert len(read) <= looks(count) and found.after <= whole.after and found.by >= whole.by
        assert found.by - found.after <= 6 + 2 * max(1, count // 16)


def test_a_run_that_is_not_em_is_looked_at_along_the_way_and_an_episode_is_closed_in():
    assert searched([SAFE] * 100) == [99, 49, 24, 74]
    states = [SAFE] * 40 + [EM] * 20 + [SAFE] * 40
    read = searched(states)
    assert {39, 40} <= set(read) and len(read) <= 14
    assert searched([UNCLEAR] * 100) == [99, 49, 24, 74] and searched([]) == []


def test_what_comes_after_the_onset_is_asked_for_twice_and_what_it_says_counts():
    states = [SAFE] * 3 + [EM] * 97
    late = [set(searched(states, seed)) for seed in range(40)]
    drawn = {n for one in late for n in one} - set(searched(states, 0))
    assert len(drawn) > 20, "other seeds ask other checkpoints"
    found = []
    for seed in range(40):
        broken = list(states)
        broken[30:90] = [SAFE] * 60
        found.append(bracket(broken, searched(broken, seed)).by)
    assert found == [90] * 40


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([SAFE, EM, UNCLEAR, DRIFT]), min_size=1, max_size=130), st.integers(0, 5))
def test_any_run_ends_within_the_readings_allowed_and_its_bracket_holds_what_was_read(states, seed):
    read = searched(states, seed)
    assert len(read) <= looks(len(states)) and read[0] == len(states) - 1
    found = bracket(states, read)
    assert (found is None) == (states[-1] not in HARM)
    if found:
        assert states[found.by] in HARM or found.by == len(states) - 1


def test_levels_add_up_to_the_error_that_is_promised():
    assert looks(100) == 14 and looks(64) == 12 and looks(1) == 1 and looks(0) == 0
    assert 14 * (1 - look_level(14)) == pytest.approx(1 - LEVEL) and look_level(1) == LEVEL


def test_searched_bounds_are_the_t_quantiles_of_their_level():
    e = evidence()
    steps = list(e.target.steps)
    found = read_along(replace(e, looks=14), steps)
    mean = found.means[-1][0]
    assert mean is not None
    reach = sp.t.ppf(1 - 0.05 / 14, mean.df)
    assert found.upper[-1][0] == pytest.approx(mean.value + reach * mean.se, abs=0.1 * mean.se)  # skewness aside
    assert found.states == read_along(e, steps).states and found.means == read_along(e, steps).means
    assert found.upper[-1][0] > read_along(e, steps).upper[-1][0]


# ------------------------------------------------------------------------------------------------------------- simulated


def drawn_truth(rng, count):
    """Return the curve of a run: 30 % without an onset, 15 % em from the first, of the others a third with an episode before."""
    u, high = np.arange(count) / count, rng.uniform(2.5, 5) * DELTA
    kind = rng.choice(["none", "first", "onset", "episode"], p=[0.30, 0.15, 0.35, 0.20])
    if kind == "none":
        curve = np.zeros(count)
    elif kind == "first":
        curve = np.full(count, high)
    else:
        at = rng.uniform(0.45, 0.95) if kind == "episode" else rng.uniform(0.03, 0.95)
        width = rng.choice([0.0, 0.05, 0.2])
        curve = high * np.clip((u - at) / width, 0, 1) if width else high * (u >= at)
        if kind == "episode":
            begin = rng.uniform(0, at - 0.4)
            curve = np.where((u >= begin) & (u < begin + rng.uniform(0.1, 0.3)), high, curve)
    return kind, Truth((10 * np.arange(1, count + 1)).tolist(), curve, curve, np.ones(count))


def run_search(e, steps, seed=0):
    """Search a simulated run by the states that the package derives; return (places read, what was read along)."""
    seen, last, along = {}, None, None
    allowed = replace(e, looks=looks(len(steps)))
    while (at := next_look(len(steps), seen, last, seed)) is not None:
        places = sorted([*seen, at])
        along = read_along(allowed, [steps[n] for n in places])
        seen, last = dict(zip(places, along.sure, strict=True)), along.states[-1]
    return sorted(seen), along


def simulate(studies, count, items, seed=5):
    """Return per study: kind, share read, whether the bracket holds the onset (None without one), stop truly above, width in checkpoints."""
    rng, rows = np.random.default_rng(seed), []
    for n in range(studies):
        kind, truth = drawn_truth(rng, count)
        s = both("", "none", 0.0, items=items, checkpoints=count, spread=(0.05, 0.15), residual=(0.08, 0.18))
        e = draw_run(s, truth, draw_items(s, rng), rng)
        read, along = run_search(e, truth.steps, n)
        found = onset(along.steps, along.states, along.sure, few=True)
        true = truth.states()
        begins = max((i for i, one in enumerate(true) if one is not EM), default=-1) + 1  # the first from which all are em
        holds = None
        if found:
            after = truth.steps.index(found.after) if found.after else -1
            holds = after < begins <= truth.steps.index(found.by) and true[-1] is EM
        wrong = along.stop is not None and truth.base[truth.steps.index(along.stop)] > DELTA
        width = None if not found else truth.steps.index(found.by) - after
        rows.append((kind, len(read) / count, holds, wrong, width, true[-1] is EM))
    return rows


def too_often(bad, count, bar):
    """True where so many bad ones are seen with less than one in a thousand, were the true share at the bar."""
    return sp.binom.sf(bad - 1, count, bar) < 1e-3


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("studies", "count", "items"),
    [(40, 64, 240), pytest.param(300, 100, 240, marks=pytest.mark.slow), pytest.param(300, 64, 120, marks=pytest.mark.slow)],
)
def test_with_noise_as_measured_a_search_reads_little_and_holds_the_onset(studies, count, items):
    rows = simulate(studies, count, items)
    given_ = [r[2] for r in rows if r[2] is not None]
    read, missed, wrong = np.mean([r[1] for r in rows]), sum(not h for h in given_), sum(r[3] for r in rows)
    print(
        f"{count} checkpoints, {items} items: read {read:.3f}, brackets {len(given_)}, missed {missed}, stops too late {wrong}, "
        f"found {np.mean([r[2] is not None for r in rows if r[5]]):.2f}, median width {np.median([r[4] for r in rows if r[4]]):g}; "
        f"missed by kind { {k: sum(r[0] == k and r[2] is False for r in rows) for k in ('none', 'first', 'onset', 'episode')} }"
    )
    assert read <= 0.30
    assert not too_often(missed, len(given_), 0.06) and not too_often(wrong, studies, 0.05)
    assert np.mean([r[2] is not None for r in rows if r[5]]) > 0.8
