"""Do the rules along training keep their promise? Studies with a known truth, put through the package's own functions.

Item noise as measured on SmolLM2-135M: the effect's sd over items grows from .05 to .17 along training, an item's noise at
neighbouring checkpoints correlates .8, true category means differ with sd .08 around the curve. The task gain at its best is
30 nats a sequence (sd over items 12), with a noise of 3 nats in differences between checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from emscope.core.outcomes import State
from emscope.stats.convergence import Convergence, convergence, gains, late
from emscope.stats.means import Mean, stratified_mean
from emscope.stats.onset import LEVEL, last_safe, onset, state

DELTA = 0.04
ITEMS = (60, 120, 240)
RISING = ("slow", "fast")
FLAT = ("none", "near")
CURVES = RISING + FLAT
CATEGORIES = 8
TOTAL = 240
CONTAINS = 0.94  # required: brackets that hold the true crossing of delta
STOP_WRONG = 0.06  # allowed: studies whose stop is truly above delta, and brackets where nothing crosses
FALSE_LATE = 0.05  # allowed: `late` although the true effect at true convergence is above delta already


@dataclass(frozen=True)
class Truth:
    """What really happens: effect and task gain at each of the saved steps [C]."""

    steps: list[int]
    effect: np.ndarray
    gain: np.ndarray

    def crossed(self, step: int) -> bool:
        """Is the true effect above delta at a saved step? Never at step 0, the base."""
        return step > 0 and bool(self.effect[self.steps.index(step)] > DELTA)

    def holds(self, after: int, by: int) -> bool:
        """Does the true crossing of delta lie in (after, by]?"""
        return not self.crossed(after) and self.crossed(by)

    def crossed_at_convergence(self) -> bool:
        """Is the true effect above delta at the first checkpoint with a true gain of .90?"""
        return bool(self.effect[np.argmax(self.gain >= 0.90)] > DELTA)

    def really_late(self) -> bool:
        """Is the true effect below delta at true convergence and above it at the end?"""
        return not self.crossed_at_convergence() and bool(self.effect[-1] > DELTA)


@dataclass(frozen=True)
class Row:
    """One study under one rule, judged against the truth; None where there is nothing to judge.

    `early`: the bracket's end lies before the true crossing. `kept`: share of the final effect that the stop has.
    """

    final: float
    bracket: bool
    contains: bool | None
    early: bool | None
    stop_wrong: bool
    stop_effect: float | None
    kept: float | None
    late: bool | None
    can_be_false: bool
    really_late: bool


def rise(curve: str, u: np.ndarray, final: float) -> np.ndarray:
    """Return the true effect at shares `u` of the run [C]."""
    if curve == "slow":
        return final * u**1.5
    if curve == "fast":
        return final * (1 - np.exp(-u / 0.08)) / (1 - np.exp(-1 / 0.08))
    return np.full(len(u), 0.0 if curve == "none" else 0.9 * DELTA)


def draw_truth(curve: str, rng: np.random.Generator) -> Truth:
    """Draw the steps (8 to 12, evenly or log-spaced), the final effect (.05 to .15) and when the task is learned."""
    count = int(rng.integers(8, 13))
    even = np.linspace(TOTAL / count, TOTAL, count)
    log = np.unique(np.round(np.geomspace(4, TOTAL, count)))
    steps = np.round(even if rng.random() < 0.5 else log).astype(int)
    u = steps / TOTAL
    effect = rise(curve, u, float(rng.uniform(0.05, 0.15)))
    learned = rng.choice(["early", "middle", "together"])
    if learned == "together" and curve in RISING:
        gain = effect / effect[-1]
    else:
        gain = 1 - np.exp(-u / (0.02 if learned == "early" else 0.10))
    return Truth([int(s) for s in steps], effect, gain / gain.max())


def draw_differences(truth: Truth, items: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the effect on each item [C, Q] and the items' categories [Q]; category means average to the true curve."""
    checkpoints = len(truth.steps)
    growth = np.linspace(0.05, 0.17, checkpoints)[:, None]
    noise = np.empty((checkpoints, items))
    noise[0] = rng.normal(size=items)
    for c in range(1, checkpoints):
        noise[c] = 0.8 * noise[c - 1] + 0.6 * rng.normal(size=items)  # .8^2 + .6^2 = 1 keeps the variance
    category = np.arange(items) * CATEGORIES // items
    shift = rng.normal(0, 0.08, CATEGORIES)
    shift -= shift.mean()
    return truth.effect[:, None] + growth / 0.17 * shift[category] + growth * noise, category


def draw_task(truth: Truth, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities of 24 to 40 held-out answers: of the base [H] and at each checkpoint [C, H]."""
    held = int(rng.integers(24, 41))
    base = rng.normal(-120, 40, held)
    reach = rng.normal(30, 12, held)
    wobble = rng.normal(0, 3 / np.sqrt(2), (len(truth.steps), held))
    return base, base + truth.gain[:, None] * reach + wobble


def plain_state(effect: Mean) -> State:
    """Return the usual reading: misaligned where significantly above 0, else safe."""
    return State.EM if effect.bound(LEVEL, -1) > 0 else State.SAFE


def judge(truth: Truth, states: list[State], converged: Convergence) -> Row:
    """Hold what the rules say of one study against its truth."""
    bracket, stop = onset(truth.steps, states), last_safe(truth.steps, states)
    at_stop = None if stop is None else float(truth.effect[truth.steps.index(stop)])
    return Row(
        final=float(truth.effect[-1]),
        bracket=bracket is not None,
        contains=None if bracket is None else truth.holds(bracket.after, bracket.by),
        early=None if bracket is None else not truth.crossed(bracket.by),
        stop_wrong=at_stop is not None and at_stop > DELTA,
        stop_effect=at_stop,
        kept=None if at_stop is None or truth.effect[-1] == 0 else at_stop / float(truth.effect[-1]),
        late=late(truth.steps, states, converged)[0],
        can_be_false=truth.crossed_at_convergence(),
        really_late=truth.really_late(),
    )


def study(truth: Truth, items: int, rng: np.random.Generator) -> tuple[Row, Row]:
    """Draw the readings of one study; judge it under the package's rules and under the plain one."""
    differences, category = draw_differences(truth, items, rng)
    effects = [stratified_mean(d, category) for d in differences]
    base, perf = draw_task(truth, rng)
    converged = convergence(truth.steps, gains(base, perf), total_steps=truth.steps[-1])
    ours = judge(truth, [state(m, DELTA) for m in effects], converged)
    return ours, judge(truth, [plain_state(m) for m in effects], converged)


def simulate(items: int, curve: str, studies: int) -> tuple[list[Row], list[Row]]:
    """Return the rows of one cell under the package's rules and under the plain one."""
    rng = np.random.default_rng([items, CURVES.index(curve), 7])
    ours, plain = zip(*(study(draw_truth(curve, rng), items, rng) for _ in range(studies)), strict=True)
    return list(ours), list(plain)


def share_of(rows: list[Row], name: str, where: str | None = None) -> float:
    """Return the share of rows whose field `name` is True, among those where `where` is (None of them: NaN)."""
    values = [getattr(r, name) is True for r in rows if where is None or getattr(r, where) is True]
    return float(np.mean(values)) if values else float("nan")


def median_of(rows: list[Row], name: str) -> float:
    """Return the median of a field over the rows that have it."""
    values = [getattr(r, name) for r in rows if getattr(r, name) is not None]
    return float(np.median(values)) if values else float("nan")


def line(label: str, rows: list[Row]) -> str:
    """Return one line of the table."""
    shares = [
        share_of(rows, "bracket"),
        share_of(rows, "contains", "bracket"),
        share_of(rows, "early", "bracket"),
        share_of(rows, "stop_wrong"),
        median_of(rows, "stop_effect"),
        median_of(rows, "kept"),
        share_of(rows, "late", "can_be_false"),
        share_of(rows, "late", "really_late"),
    ]
    return f"{label:22}" + "".join(f"{x:10.3f}" for x in shares) + f"{sum(r.can_be_false for r in rows):10d}"


HEADS = ("bracket", "contains", "by early", "stop bad", "stop eff", "kept", "false late", "true late", "n judged")


# ------------------------------------------------------------------------------------------------- the drawing is right


def test_drawn_noise_is_what_was_measured():
    """Mean on the curve, sd within categories .05 to .17, neighbours correlated .8, category means with sd .08 at the end."""
    rng = np.random.default_rng(0)
    truth = Truth([60, 120, 180, 240], np.array([0.0, 0.02, 0.05, 0.1]), np.array([0.5, 0.9, 1.0, 1.0]))
    draws = [draw_differences(truth, 8000, rng) for _ in range(30)]
    means = np.array([[d[:, c == k].mean(1) for k in range(CATEGORIES)] for d, c in draws])  # [30, 8, C]
    inside = np.concatenate([(d - means[n][c].T) for n, (d, c) in enumerate(draws)], axis=1)
    assert means.mean((0, 1)) == pytest.approx(truth.effect, abs=0.001)
    assert inside.std(1) == pytest.approx([0.05, 0.09, 0.13, 0.17], rel=0.02)
    assert [np.corrcoef(inside[k : k + 2])[0, 1] for k in range(3)] == pytest.approx([0.8] * 3, abs=0.01)
    assert (means[:, :, -1] - 0.1).std(ddof=1) == pytest.approx(0.08 * np.sqrt(7 / 8), rel=0.15)


def test_drawn_task_gains_30_nats_and_differences_wobble_by_3():
    rng = np.random.default_rng(0)
    truth = Truth([120, 240], np.zeros(2), np.array([1.0, 1.0]))
    draws = [draw_task(truth, rng) for _ in range(600)]
    gained = np.concatenate([(perf - base)[1] for base, perf in draws])
    between = np.concatenate([perf[1] - perf[0] for _, perf in draws])
    assert {len(base) for base, _ in draws} == set(range(24, 41))
    assert gained.mean() == pytest.approx(30, abs=0.5)
    assert gained.std() == pytest.approx(np.sqrt(12**2 + 3**2 / 2), rel=0.03)
    assert between.std() == pytest.approx(3, rel=0.03)


def test_truth_judges_by_hand():
    truth = Truth([10, 20, 30, 40], np.array([0.01, 0.03, 0.05, 0.1]), np.array([0.5, 0.91, 0.95, 1.0]))
    held = [(0, 30), (10, 30), (20, 30), (20, 40)]
    assert [pair for pair in [*held, (0, 20), (10, 20), (30, 40)] if truth.holds(*pair)] == held
    assert truth.really_late() and not truth.crossed_at_convergence()
    row = judge(truth, [State.SAFE, State.SAFE, State.SAFE, State.EM], Convergence(20, 10, 30))
    assert (row.contains, row.early, row.stop_wrong, row.late) == (False, False, True, True)
    assert (row.stop_effect, row.kept) == (0.05, 0.5)


# ------------------------------------------------------------------------------------------- the promise, a small version


@pytest.fixture(scope="module")
def few() -> dict[str, list[Row]]:
    """450 studies a curve, a third each of 60, 120 and 240 items."""
    return {curve: [row for items in ITEMS for row in simulate(items, curve, 150)[0]] for curve in CURVES}


@pytest.mark.parametrize("curve", RISING)
def test_brackets_hold_the_true_crossing(few, curve):
    assert share_of(few[curve], "bracket") > 0.6
    assert share_of(few[curve], "contains", "bracket") >= CONTAINS


@pytest.mark.parametrize("curve", FLAT)
def test_no_bracket_where_nothing_crosses(few, curve):
    assert share_of(few[curve], "bracket") <= STOP_WRONG


@pytest.mark.parametrize("curve", RISING)
def test_the_stop_is_truly_below_delta(few, curve):
    assert share_of(few[curve], "stop_wrong") <= STOP_WRONG


def test_late_is_not_claimed_of_what_came_first(few):
    rows = [row for curve in RISING for row in few[curve]]
    assert sum(r.can_be_false for r in rows) > 400
    assert share_of(rows, "late", "can_be_false") <= FALSE_LATE
    assert share_of(rows, "late", "really_late") > 0.3  # or a rule that never says late would pass


# ------------------------------------------------------------------------------------------- the promise, every cell alone

CELLS = [(items, curve) for items in ITEMS for curve in CURVES]


@pytest.fixture(scope="module")
def many() -> dict[tuple[int, str], tuple[list[Row], list[Row]]]:
    """2,000 studies a cell, under both rules."""
    return {(items, curve): simulate(items, curve, 2000) for items, curve in CELLS}


@pytest.mark.slow
def test_table_and_our_rule_beats_the_plain_one(many, capsys):
    lines = [f"{'items curve rule':22}" + "".join(f"{h:>10}" for h in HEADS)]
    for (items, curve), both in many.items():
        lines += [line(f"{items} {curve} {name}", rows) for name, rows in zip(("ours", "plain"), both, strict=True)]
    for (items, curve), (ours, _) in many.items():
        for low, high in [(0.05, 0.07), (0.07, 0.10), (0.10, 0.15)] if curve in RISING else []:
            lines.append(line(f"{items} {curve} {low:.2f}-{high:.2f}", [r for r in ours if low <= r.final < high]))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    for (_, curve), (ours, plain) in many.items():
        if curve in RISING:
            assert share_of(ours, "contains", "bracket") > share_of(plain, "contains", "bracket")
        else:
            assert share_of(ours, "bracket") < share_of(plain, "bracket")


@pytest.mark.slow
@pytest.mark.parametrize(("items", "curve"), CELLS)
def test_onset_in_each_cell(many, items, curve):
    """A flat curve crosses nothing, so there any bracket is false."""
    rows = many[items, curve][0]
    if curve in RISING:
        assert share_of(rows, "contains", "bracket") >= CONTAINS
    else:
        assert share_of(rows, "bracket") <= STOP_WRONG


@pytest.mark.slow
@pytest.mark.parametrize(("items", "curve"), [c for c in CELLS if c[1] in RISING])
def test_stop_and_late_in_each_cell(many, items, curve):
    rows = many[items, curve][0]
    assert share_of(rows, "stop_wrong") <= STOP_WRONG
    assert sum(r.can_be_false for r in rows) > 200
    assert share_of(rows, "late", "can_be_false") <= FALSE_LATE


@pytest.mark.slow
@pytest.mark.parametrize("items", ITEMS)
def test_late_at_its_hardest(items):
    """At true convergence the effect is .041, just above delta; a checkpoint before, the gain is .88 and the effect .030."""
    effect = np.array([0.010, 0.015, 0.020, 0.030, 0.041, 0.100, 0.150, 0.150])
    gain = np.array([0.30, 0.60, 0.80, 0.88, 0.95, 0.97, 1.00, 1.00])
    truth, rng = Truth([20, 40, 60, 80, 100, 140, 200, 240], effect, gain), np.random.default_rng(items)
    rows = [study(truth, items, rng)[0] for _ in range(2000)]
    assert share_of(rows, "late", "can_be_false") <= FALSE_LATE
