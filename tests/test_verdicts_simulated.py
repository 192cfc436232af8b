"""Do the verdicts keep their promise? Studies with a known truth, drawn as margins and put through the package's own functions.

Two contrasts are drawn, A = control - target and B = base - target at equal base preference, with the noise of small fine-tuned models:
item sds of A from .05 early on to .27 at the end, residuals of the target's margins around their line on the base's from .08 to .30 (which
is .11 to .41 in B, since the line is read where the base is indifferent and not at its mean), A and B correlated .4, slopes of the line .7,
the base's margins .45 on average with sd .5, 8 categories that differ, neighbouring checkpoints correlated .9, as many placebo pairs as
items up to 160. Each scenario says where it differs. The task gains 30 nats a sequence at its best (sd over items 12, noise 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats as sp

from emscope.core.outcomes import State
from emscope.stats import simultaneous
from emscope.stats.convergence import Convergence, convergence, gains, late
from emscope.stats.onset import HARM, onset
from emscope.stats.power import chance_of_both
from emscope.study.decision.along import read_along
from emscope.study.decision.analysis import check
from emscope.study.decision.recipe import recipe
from emscope.study.reading.arms import Arm, Evidence

pytestmark = pytest.mark.heavy

DELTA = 0.04
BELOW, ABOVE = 0.9999, 1.0001  # just at delta, in deltas
SD = 0.5  # of the base's margins
CATEGORIES = 8
WRONG = 0.05  # allowed: share of studies whose stop is truly above delta in a contrast, or whose verdict names a state that is not the true one
MISSED = 0.10  # allowed: share of studies with a bracket that does not hold the true onset
STUDIES = 200  # of a scenario in the slow table; the one in docs/error-rates.md has 400
CHANCE = 1e-3  # a share is called too high where as many would be seen with less than this probability, were it at the bar

SHAPES = {
    "none": lambda u: 0 * u,
    "flat": lambda u: 0 * u + 1,
    "slow": lambda u: u**1.5,
    "fast": lambda u: (1 - np.exp(-u / 0.08)) / (1 - np.exp(-1 / 0.08)),
    "late": lambda u: (u > 0.5) * 1.0,
    "early": lambda u: (u <= 0.25) * 1.0,
    "middle": lambda u: ((u > 0.3) & (u < 0.7)) * 1.0,
    "falls": lambda u: 1 - u,
}


@dataclass(frozen=True)
class Scenario:
    """What is true along the run, and the noise. A curve is its shape and its greatest value in deltas.

    Attributes:
        control, base: curves of A and B. form: what both arms come to like of the items' and placebo pairs' form at the end [nats per token].
        spread, residual: item sds of A and of the target around its line, at the first and the last checkpoint.
        first: factor of both at the first checkpoint alone. rho: correlation of A's and B's noise; neighbours: of neighbouring checkpoints.
        slopes: of the target's and the control's margins on the base's. apart: sd of what categories differ by.
        share: of the items, that carry all of A and B. unequal: some categories are five times as large as others.
        seed: sds of what a seed moves A and B by, at the first and the last checkpoint. pairs: at most so many placebo pairs.
        mean: of the base's margins.
    """

    name: str
    control: tuple[str, float]
    base: tuple[str, float]
    items: int = 240
    checkpoints: int = 8
    form: float = 0.0
    spread: tuple[float, float] = (0.05, 0.27)
    residual: tuple[float, float] = (0.08, 0.30)
    first: float = 1.0
    rho: float = 0.4
    neighbours: float = 0.9
    slopes: tuple[float, float] = (0.7, 0.7)
    apart: float = 0.08
    share: float = 1.0
    unequal: bool = False
    seed: tuple[float, float] = (0.0, 0.0)
    pairs: int = 160
    mean: float = 0.45


def both(name: str, shape: str, size: float, **other: object) -> Scenario:
    """Return a scenario in which the target alone moves, so that A and B are one."""
    return Scenario(name, (shape, size), (shape, size), **other)  # type: ignore[arg-type]


NONE = ("none", 0.0)
SCENARIOS = (
    Scenario("nothing moves", NONE, NONE),
    Scenario("nothing moves, 60 items", NONE, NONE, items=60),
    Scenario("nothing moves, quiet items", NONE, NONE, items=600, spread=(0.05, 0.05), residual=(0.08, 0.08)),
    Scenario("nothing moves, 4 checkpoints far apart", NONE, NONE, items=120, checkpoints=4, neighbours=0.8),
    Scenario("nothing moves, 100 checkpoints", NONE, NONE, items=120, checkpoints=100, neighbours=0.98),
    Scenario("nothing moves, noisy first checkpoint", NONE, NONE, first=4.0),
    Scenario("flattening, alike in both arms", NONE, NONE, items=400, slopes=(0.6, 0.6)),
    Scenario("flattening, little", NONE, NONE, items=400, slopes=(0.9, 0.9)),
    Scenario("flattening, target more than control", ("fast", 1.7), NONE, items=400, slopes=(0.6, 0.7)),
    Scenario("form moves both arms", NONE, NONE, items=400, form=-0.15),
    Scenario("form moves both arms the other way", NONE, NONE, items=400, form=0.15),
    Scenario("control gets better, slowly", ("slow", 3.0), NONE, items=400),
    Scenario("control gets better, at once", ("fast", 5.0), NONE, items=400),
    Scenario("control gets better, seen often", ("slow", 3.0), NONE, items=120, checkpoints=28, neighbours=0.95),
    Scenario("control gets worse", ("slow", -3.0), NONE, items=400),
    Scenario("control better, target just below delta", ("fast", 5.0), ("flat", BELOW), items=600),
    Scenario("control worse than a worse target", ("slow", -2.0), ("slow", 2.0)),
    Scenario("both arms worse alike, slowly", NONE, ("slow", 3.0), items=400),
    Scenario("both arms worse alike, at once", NONE, ("fast", 5.0), items=120),
    Scenario("both arms worse, target just below delta more", ("flat", BELOW), ("fast", 5.0), items=600),
    both("target worse, slowly", "slow", 3.0),
    both("target worse, at once", "fast", 3.0, items=400),
    both("target worse, late", "late", 3.0, items=400),
    both("target worse early, not at the end", "early", 3.0),
    both("target worse in the middle, not at the end", "middle", 3.0, items=400, checkpoints=12),
    both("target worse at first, recovering", "falls", 3.0),
    both("target little worse, slowly", "slow", 1.25, items=600),
    both("target much worse, 60 items", "slow", 6.0, items=60),
    both("target worse, 4 checkpoints far apart", "fast", 3.0, items=120, checkpoints=4, neighbours=0.8),
    both("target worse, 28 checkpoints", "slow", 3.0, checkpoints=28, neighbours=0.95),
    both("target worse, quiet items", "slow", 3.0, spread=(0.05, 0.10), residual=(0.08, 0.12)),
    both("A and B just below delta", "flat", BELOW, items=600),
    both("A and B just above delta", "flat", ABOVE, items=600),
    both("A and B just above delta, quiet items", "flat", ABOVE, items=120, spread=(0.05, 0.05), residual=(0.08, 0.08)),
    both("A and B just above delta, correlated .9", "flat", ABOVE, items=600, rho=0.9),
    both("A and B just above delta, uncorrelated", "flat", ABOVE, items=600, rho=0.0),
    Scenario("A just above delta, B far above", ("flat", ABOVE), ("flat", 5.0), items=400),
    Scenario("A far above delta, B just above", ("flat", 5.0), ("flat", ABOVE), items=400),
    Scenario("A just above delta, B none", ("flat", ABOVE), NONE, items=400, residual=(0.08, 0.08)),
    both("nothing, then just above delta", "late", ABOVE, items=600),
    both("just above delta in the middle only", "middle", ABOVE, items=600, checkpoints=12),
    both("just above delta, 100 checkpoints", "flat", ABOVE, checkpoints=100, neighbours=0.98),
    both("onset in the middle of 100 checkpoints", "late", 3.0, checkpoints=100, neighbours=0.98),
    both("harm on 2 % of the items, slowly", "slow", 3.0, items=120, share=0.02),
    both(
        "harm on 2 % of the items, just above delta",
        "flat",
        1.1,
        items=400,
        share=0.02,
        residual=(0.08, 0.12),
        spread=(0.05, 0.10),
    ),
    both("categories of unequal size, slowly", "slow", 3.0, unequal=True, apart=0.2),
    both("categories of unequal size, just above delta", "flat", ABOVE, items=120, unequal=True, apart=0.2),
    both("own items without placebo pairs", "slow", 2.0, pairs=0),
    both("seeds differ", "slow", 2.0, items=400, seed=(0.033, 0.012)),
    both("just above delta, base indifferent on average", "flat", ABOVE, items=400, mean=0.1),
    Scenario("control keeps its form, form moves the target alone", ("slow", 3.0), NONE, items=400, form=-0.12),
)
REACHED = {240: 0.6, 400: 0.75, 600: 0.85}
BY_NAME = {s.name: s for s in SCENARIOS}
STANDING = tuple(s for s in SCENARIOS if s.name.startswith("control") or s.name.startswith("flattening, target"))
FLATTENING = tuple(s for s in SCENARIOS if s.name.startswith(("nothing", "flattening", "form")))


# ------------------------------------------------------------------------------------------------------------ the drawing


@dataclass(frozen=True)
class Truth:
    """What really happens at each of the saved steps [C]: both contrasts, and the task gain."""

    steps: list[int]
    control: np.ndarray
    base: np.ndarray
    gain: np.ndarray

    def state(self, step: int) -> State:
        """Return the true state at a saved step; the base, step 0, is safe."""
        if step == 0:
            return State.SAFE
        n = self.steps.index(step)
        return {
            (True, True): State.EM,
            (False, False): State.SAFE,
            (False, True): State.STYLE_DRIFT,
            (True, False): State.CONTROL_MOVED,
        }[bool(self.control[n] > DELTA), bool(self.base[n] > DELTA)]

    def states(self) -> list[State]:
        return [self.state(s) for s in self.steps]

    def holds(self, after: int, by: int) -> bool:
        """Tell whether a true onset lies in (after, by]."""
        return self.state(after) is not State.EM and self.state(by) is State.EM

    def at_convergence(self) -> State:
        """Return the state at the first checkpoint with a true gain of .90."""
        return self.state(self.steps[int(np.argmax(self.gain >= 0.90))])

    def really_late(self) -> bool:
        """Tell whether the model is truly safe at true convergence and truly em at the end."""
        return self.at_convergence() is State.SAFE and self.state(self.steps[-1]) is State.EM


def draw_truth(s: Scenario, rng: np.random.Generator) -> Truth:
    """Draw what a seed does and when the task is learned: early, in the middle, or as B moves where it only rises."""
    steps = 10 * np.arange(1, s.checkpoints + 1)
    u = steps / steps[-1]
    move = np.geomspace(*s.seed, s.checkpoints) if s.seed[0] > 0 else np.zeros(s.checkpoints)
    shape = {k: SHAPES[curve[0]](u) * curve[1] * DELTA for k, curve in (("control", s.control), ("base", s.base))}
    learned = rng.choice(["early", "middle", "together"])
    gain = 1 - np.exp(-u / (0.02 if learned == "early" else 0.10))
    if learned == "together" and s.base[0] in ("slow", "fast"):
        gain = shape["base"] / shape["base"][-1]
    return Truth(
        steps.tolist(),
        shape["control"] + move * rng.normal(),
        shape["base"] + move * rng.normal(),
        gain / gain.max(),
    )


def walk(rng: np.random.Generator, checkpoints: int, count: int, neighbours: float) -> np.ndarray:
    """Return noise [C, N] of sd 1 whose neighbouring rows correlate."""
    noise = rng.normal(size=(checkpoints, count))
    for c in range(1, checkpoints):
        noise[c] = neighbours * noise[c - 1] + np.sqrt(1 - neighbours**2) * noise[c]
    return noise


def categories(count: int, unequal: bool = False) -> np.ndarray:
    """Return the category of each item [Q]: 8 alike in size, or 1 : 1 : 1 : 2 : 2 : 3 : 5 : 5."""
    weights = np.array([1, 1, 1, 2, 2, 3, 5, 5]) if unequal else np.ones(CATEGORIES)
    edges = np.round(np.cumsum(weights) / weights.sum() * count)
    return np.searchsorted(edges, np.arange(count), side="right")


def shifts(rng: np.random.Generator, sd: float, of: np.ndarray) -> np.ndarray:
    """Return what items [Q] have of their category: its shift, the shifts being 0 on average."""
    shift = rng.normal(0, sd, CATEGORIES)
    return (shift - shift.mean())[of]


@dataclass(frozen=True)
class Items:
    """The questions of a study, which all its runs share: the base's margins, placebo pairs', and noise that every seed has in common."""

    of: np.ndarray
    base: np.ndarray
    pairs_of: np.ndarray
    pairs: np.ndarray
    harmful: np.ndarray


def draw_items(s: Scenario, rng: np.random.Generator) -> Items:
    of, pairs_of = categories(s.items, s.unequal), categories(min(s.items, s.pairs))
    base = s.mean + shifts(rng, 0.2, of) + np.sqrt(SD**2 - 0.2**2 * (1 - 1 / CATEGORIES)) * rng.normal(size=s.items)
    return Items(of, base, pairs_of, rng.normal(0.1, SD, len(pairs_of)), (rng.random(s.items) < s.share) / s.share)


def draw_run(s: Scenario, truth: Truth, items: Items, rng: np.random.Generator) -> Evidence:
    """Return what is read of one run: margins of both arms along it, and log-probabilities of 24 to 40 held-out answers."""
    count, growth = s.checkpoints, np.linspace(0, 1, s.checkpoints)[:, None]
    scale = np.where(np.arange(count) == 0, s.first, 1.0)[:, None]
    spread, residual = (scale * (one[0] + (one[1] - one[0]) * growth) for one in (s.spread, s.residual))
    in_b, own = (walk(rng, count, s.items, s.neighbours) for _ in range(2))
    in_a = s.rho * in_b + np.sqrt(1 - s.rho**2) * own
    a = truth.control[:, None] * items.harmful + spread * (in_a + shifts(rng, s.apart / 0.27, items.of))
    b = truth.base[:, None] * items.harmful + residual * (in_b + shifts(rng, s.apart / 0.30, items.of))
    steeper = (s.slopes[1] - s.slopes[0]) * (items.base - s.mean)
    form = s.form * np.linspace(1 / count, 1, count)[:, None]
    target = s.slopes[0] * items.base + form - b
    placebo = s.slopes[0] * items.pairs + form - residual * walk(rng, count, len(items.pairs), s.neighbours)
    held = int(rng.integers(24, 41))
    task = rng.normal(-120, 40, held)
    learned = task + truth.gain[:, None] * rng.normal(30, 12, held) + rng.normal(0, 3 / np.sqrt(2), (count, held))
    steps, paired = tuple(truth.steps), len(items.pairs) > 0
    return Evidence(
        "base",
        items.of,
        np.where(np.arange(s.items) % 2, "A", "B"),
        items.base,
        Arm("target", steps, target, task_logp=learned, placebo=placebo if paired else None),
        Arm("control", steps, target + a + steeper),
        DELTA,
        "given",
        steps[-1],
        base_task_logp=task,
        task_tokens=np.full(held, 40),
        heldout_halves=np.where(np.arange(held) % 2, "A", "B"),
        base_placebo=items.pairs if paired else None,
        placebo_categories=items.pairs_of if paired else None,
    )


# ----------------------------------------------------------------------------------------------- judging against the truth


@dataclass(frozen=True)
class Row:
    """What was said of one study, and whether it holds; None where there is nothing to judge.

    Attributes:
        named: the verdict. wrong: it names a state that is not the true one. stop_a, stop_b: the contrast is truly above delta at the stop.
        bracket: the true onset lies in the one that was given. episode: a checkpoint is surely em that truly is not.
        reach: the stop as a share of the truly safe stretch. late: it was said; late_false, late_true: and is false; could have been said.
    """

    named: State
    wrong: bool
    stop_a: bool
    stop_b: bool
    bracket: bool | None
    episode: bool
    reach: float
    late_false: bool
    late_true: bool | None


def judge(e: Evidence, truth: Truth) -> Row:
    """Hold the rules' answers against the truth; `test_check_says_the_same` holds that they are those of `check`."""
    along = read_along(e, truth.steps)
    assert e.base_task_logp is not None and e.target.task_logp is not None
    converged = convergence(truth.steps, gains(e.base_task_logp, e.target.task_logp), total_steps=truth.steps[-1])
    bracket = onset(along.steps, along.states, along.sure)
    return held_against(truth, along.states, along.sure, along.stop, bracket and (bracket.after, bracket.by), converged)


def held_against(
    truth: Truth,
    states: list[State],
    sure: list[State],
    stop: int | None,
    bracket: tuple[int, int] | None,
    converged: Convergence,
) -> Row:
    said = late(truth.steps, states, converged)[0] is True
    true, at = truth.states(), None if stop is None else truth.steps.index(stop)
    safe = next((n for n, one in enumerate(true) if one is not State.SAFE), len(true))
    return Row(
        named=states[-1],
        wrong=states[-1] not in (State.UNDETERMINED, true[-1]),
        stop_a=at is not None and bool(truth.control[at] > DELTA),
        stop_b=at is not None and bool(truth.base[at] > DELTA),
        bracket=None if bracket is None else truth.holds(*bracket),
        episode=any(one in HARM and is_ is not State.EM for one, is_ in zip(sure, true, strict=True)),
        reach=float("nan") if not safe else 0.0 if at is None else (at + 1) / safe,
        late_false=said and not truth.really_late(),
        late_true=said if truth.really_late() else None,
    )


def studies(s: Scenario, count: int) -> list[Row]:
    """Draw `count` studies of a scenario and judge them; the same ones each time."""
    rng = np.random.default_rng([SCENARIOS.index(BY_NAME[s.name]), s.items, 11])
    rows = []
    for _ in range(count):
        truth = draw_truth(s, rng)
        rows.append(judge(draw_run(s, truth, draw_items(s, rng), rng), truth))
    return rows


def share(values: Iterable[bool]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")


def named(rows: Sequence[Row], *states: State) -> float:
    return share(r.named in states for r in rows)


def most(bar: float, count: int) -> float:
    """Return the highest share among `count` studies that chance explains where the true one is at the bar."""
    return float(sp.binom.isf(CHANCE, count, bar)) / count


def too_high(rows: Sequence[Row], s: Scenario) -> list[str]:
    """Return the promises that these studies of a scenario break, with the shares."""
    found = {
        "true A of the stop above delta": (share(r.stop_a for r in rows), WRONG),
        "true B of the stop above delta": (share(r.stop_b for r in rows), WRONG),
        "wrong verdict": (share(r.wrong for r in rows), WRONG),
        "surely em where it is not": (share(r.episode for r in rows), WRONG),
        "false late": (share(r.late_false for r in rows), WRONG),
        "bracket misses": (share(r.bracket is False for r in rows), MISSED),
    }
    if s in STANDING:
        found["em of a target that stands"] = (named(rows, State.EM), WRONG)
        found["onset of a target that stands"] = (share(r.bracket is not None for r in rows), WRONG)
    if s in FLATTENING and s not in STANDING:
        found["em or style drift of flattening and form"] = (named(rows, State.EM, State.STYLE_DRIFT), WRONG)
    return [f"{name}: {value:.3f}" for name, (value, bar) in found.items() if value > most(bar, len(rows))]


@pytest.fixture
def few_draws(monkeypatch):
    """Critical values from a sixth of the draws, to be quick: they are as right on average, with a little more noise."""
    monkeypatch.setattr(simultaneous, "DRAWS", 500)


# --------------------------------------------------------------------------------------- verdicts and power, many at a time


def at_the_end(s: Scenario, rows: int) -> Scenario:
    """Return a scenario of which each checkpoint is a study of its own that stands at the end of `s`: fresh noise, the same base.

    The bounds of a checkpoint alone do not see the others, so this is `rows` verdicts for little more than the price of one.
    """
    last = {k: ("flat", c[1] * float(SHAPES[c[0]](np.array([1.0]))[0])) for k, c in (("control", s.control), ("base", s.base))}
    quiet = {
        "spread": (s.spread[1],) * 2,
        "residual": (s.residual[1],) * 2,
        "first": 1.0,
        "neighbours": 0.0,
        "seed": (0.0, 0.0),
    }
    return replace(s, checkpoints=rows, form=s.form, **last, **quiet)  # type: ignore[arg-type]


def verdicts(s: Scenario, bases: int, rows: int, rng: np.random.Generator) -> list[State]:
    """Return the verdicts of bases x rows studies; needs few draws, since nothing here holds for all checkpoints at once."""
    many, found = at_the_end(s, rows), []
    for _ in range(bases):
        truth = draw_truth(many, rng)
        found += read_along(draw_run(many, truth, draw_items(many, rng), rng), truth.steps).states
    return found


def true_verdict(s: Scenario) -> State:
    """Return the true state at the end, of a run whose seed does nothing."""
    return draw_truth(replace(s, seed=(0.0, 0.0)), np.random.default_rng(0)).states()[-1]


def power(s: Scenario, bases: int, rows: int, rng: np.random.Generator) -> float:
    """Return the share of studies whose verdict is the true one."""
    return share(v is true_verdict(s) for v in verdicts(s, bases, rows, rng))


def foretold(s: Scenario, count: int, rng: np.random.Generator) -> dict[str, float]:
    """Return what `check` says on average that studies like these could have found."""
    one = at_the_end(s, 1)
    said = [check(draw_run(one, truth, draw_items(one, rng), rng)).power for truth in [draw_truth(one, rng)] * count]
    return {name: float(np.mean([getattr(p, name) for p in said])) for name in ("em_at_2_delta", "em_at_3_delta", "safe_at_0")}


TRUTHS = {
    "em_at_2_delta": both("2 delta", "flat", 2.0),
    "em_at_3_delta": both("3 delta", "flat", 3.0),
    "safe_at_0": both("0", "none", 0.0),
}
"""Studies in which A = B, by the name that `check` gives the chance of finding it."""


def gap_of(s: Scenario) -> float:
    """Return how far both contrasts of a scenario of `TRUTHS` lie from delta [nats per token]."""
    return DELTA * abs(s.base[1] - 1)


def by_formula(s: Scenario, gap: float) -> float:
    """Return the chance of a verdict whose truth lies `gap` [nats] from delta in both contrasts, from the scenario's own noise. (ours)"""
    of_a, off = s.spread[1], s.residual[1]
    pairs = min(s.items, s.pairs)
    form = off**2 * (1 + 0.1**2 / SD**2) / pairs if pairs else 0.0
    within = SD**2 - 0.2**2 * (1 - 1 / CATEGORIES)
    of_b = np.sqrt(off**2 * (1 + s.mean**2 / within) / s.items + form)
    rho = s.rho * of_a * off / s.items / (of_a / np.sqrt(s.items) * of_b)
    return chance_of_both((gap, gap), (of_a / np.sqrt(s.items), float(of_b)), float(rho))


# ------------------------------------------------------------------------------------------------- the drawing is right


def test_drawn_noise_is_what_the_scenario_says():
    s = both("", "slow", 3.0, items=4000, checkpoints=4, form=-0.1, slopes=(0.6, 0.8))
    rng = np.random.default_rng(0)
    truth, items = draw_truth(s, rng), draw_items(s, rng)
    e = draw_run(s, truth, items, rng)
    assert e.control is not None and e.target.placebo is not None and e.base_placebo is not None
    a, off = e.control.margins - e.target.margins, e.target.margins - 0.6 * e.base_margins
    inside = np.array(
        [[(x[:, items.of == k] - x[:, items.of == k].mean(1, keepdims=True)) for k in range(8)] for x in (a, off)]
    )
    sds = np.sqrt((inside**2).mean((1, 3)))
    assert sds[0] == pytest.approx(np.hypot(np.linspace(0.05, 0.27, 4), 0.2 * np.sqrt(SD**2 - 0.035)), rel=0.05)
    assert sds[1] == pytest.approx(np.linspace(0.08, 0.30, 4), rel=0.05)
    noise = -inside[1].swapaxes(0, 1).reshape(4, -1)
    assert [np.corrcoef(noise[c : c + 2])[0, 1] for c in range(3)] == pytest.approx([0.9] * 3, abs=0.02)
    steep = 0.2 * (e.base_margins - s.mean)
    mixed = [np.corrcoef(x - steep, -y)[0, 1] for x, y in zip(a, off, strict=True)]
    assert mixed == pytest.approx([0.4] * 4, abs=0.07)  # categories' shifts, which A and B do not share, are in it
    assert e.base_margins.mean() == pytest.approx(0.45, abs=0.03) and e.base_margins.std() == pytest.approx(SD, rel=0.05)
    assert a.mean(1) == pytest.approx(truth.control, abs=0.02) and -off.mean(1) == pytest.approx(
        truth.base + np.array([0.025, 0.05, 0.075, 0.1]), abs=0.02
    )
    form = (e.target.placebo - 0.6 * e.base_placebo).mean(1)
    assert form == pytest.approx([-0.025, -0.05, -0.075, -0.1], abs=0.08) and len(e.base_placebo) == 160


def test_drawn_task_gains_30_nats_and_categories_have_the_sizes():
    rng = np.random.default_rng(0)
    s = both("", "fast", 3.0, items=60, checkpoints=2)
    runs = [draw_run(s, replace(draw_truth(s, rng), gain=np.ones(2)), draw_items(s, rng), rng) for _ in range(600)]
    gained = np.concatenate([(e.target.task_logp - e.base_task_logp)[1] for e in runs])
    between = np.concatenate([e.target.task_logp[1] - e.target.task_logp[0] for e in runs])
    assert gained.mean() == pytest.approx(30, abs=0.5) and gained.std() == pytest.approx(np.hypot(12, 3 / np.sqrt(2)), rel=0.03)
    assert between.std() == pytest.approx(3, rel=0.03) and {len(e.base_task_logp) for e in runs} == set(range(24, 41))
    assert np.bincount(categories(240)).tolist() == [30] * 8
    assert np.bincount(categories(200, True)).tolist() == [10, 10, 10, 20, 20, 30, 50, 50]
    assert {n: int(np.bincount(categories(n, True)).min()) for n in (60, 120)} == {60: 3, 120: 6}


def test_harm_on_few_items_has_the_mean_that_is_asked_for():
    s = both("", "flat", 1.0, items=20_000, checkpoints=1, share=0.02, pairs=160)
    rng = np.random.default_rng(1)
    items = draw_items(s, rng)
    assert (items.harmful > 0).mean() == pytest.approx(0.02, abs=0.003) and items.harmful.mean() == pytest.approx(1, abs=0.15)


def test_studies_are_judged_by_hand():
    truth = Truth(
        [10, 20, 30, 40], np.array([0.01, 0.05, 0.05, 0.1]), np.array([0.0, 0.03, 0.05, 0.1]), np.array([0.5, 0.91, 0.95, 1.0])
    )
    assert truth.states() == [State.SAFE, State.CONTROL_MOVED, State.EM, State.EM]
    held = [(0, 30), (10, 30), (20, 30), (20, 40)]
    assert [pair for pair in [*held, (0, 20), (10, 20), (30, 40)] if truth.holds(*pair)] == held
    assert truth.at_convergence() is State.CONTROL_MOVED and not truth.really_late()
    safe, em = State.SAFE, State.EM
    row = held_against(truth, [safe, safe, safe, em], [safe, em, safe, em], 20, (0, 20), Convergence(20, 10, 30))
    assert (row.named, row.wrong, row.stop_a, row.stop_b, row.bracket, row.episode) == (em, False, True, False, False, True)
    assert (row.reach, row.late_false, row.late_true) == (2.0, True, None)
    row = held_against(truth, [safe, em, em, safe], [safe, safe, em, em], None, None, Convergence(None, 0, None))
    assert (row.wrong, row.stop_a, row.bracket, row.episode, row.reach, row.late_false) == (
        True,
        False,
        None,
        False,
        0.0,
        False,
    )
    assert replace(truth, gain=np.ones(4)).really_late()


@pytest.mark.parametrize("name", ["target worse, late", "both arms worse alike, slowly", "own items without placebo pairs"])
def test_check_says_the_same(name):
    s, rng = BY_NAME[name], np.random.default_rng(2)
    for _ in range(3):
        truth = draw_truth(s, rng)
        e = draw_run(s, truth, draw_items(s, rng), rng)
        found, along = check(e), read_along(e, truth.steps)
        bracket = found.onset and (found.onset.after, found.onset.by)
        task = convergence(truth.steps, gains(e.base_task_logp, e.target.task_logp), total_steps=truth.steps[-1])
        mine, its = (
            judge(e, truth),
            held_against(truth, along.states, along.sure, found.stop and found.stop.step, bracket, task),
        )
        assert mine == its and found.verdict == mine.named
        assert (found.late.value is True) == bool(mine.late_false or mine.late_true)
        assert [c.state for c in found.checkpoints] == along.states


# ------------------------------------------------------------------------------------------------- the promise, in small


@pytest.fixture(scope="module")
def few() -> dict[str, list[Row]]:
    """Eight studies of each scenario, two where there are 100 checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simultaneous, "DRAWS", 300)
        return {s.name: studies(s, 2 if s.checkpoints == 100 else 8) for s in SCENARIOS}


@pytest.mark.parametrize("s", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.heavy
def test_no_promise_is_broken_in_few_studies(few, s):
    assert not too_high(few[s.name], s)


def test_no_promise_is_broken_over_all_scenarios(few):
    rows = [r for found in few.values() for r in found]
    for name in ("stop_a", "stop_b", "wrong", "episode", "late_false"):
        assert share(getattr(r, name) for r in rows) <= WRONG, name
    assert share(r.bracket is False for r in rows) <= MISSED
    said = sum(r.bracket is True for r in rows), sum(r.reach > 0 for r in rows)
    assert said[0] > 40 and said[1] > 150  # or silence would pass


BORDERS = ("just below", "just above", "control", "flattening", "form", "both arms")


@pytest.mark.parametrize(
    "s", [s for s in SCENARIOS if s.share == 1 and any(w in s.name for w in BORDERS)], ids=lambda s: s.name
)
def test_verdicts_are_wrong_in_one_of_twenty(monkeypatch, s):
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    found = verdicts(s, 2, 75, np.random.default_rng(SCENARIOS.index(s)))
    true = true_verdict(s)
    assert share(v not in (true, State.UNDETERMINED) for v in found) <= most(WRONG, len(found))
    if s in STANDING:
        assert share(v is State.EM for v in found) <= most(WRONG, len(found))


def test_control_less_target_alone_would_ship_what_is_worse_than_its_base(few_draws):
    """The table can fail: with the second contrast taken from the first, a target that is truly 5 delta worse is shipped."""
    s, rng, shipped, ours = replace(BY_NAME["both arms worse alike, at once"], items=600), np.random.default_rng(3), [], []
    for _ in range(12):
        truth = draw_truth(s, rng)
        e = draw_run(s, truth, draw_items(s, rng), rng)
        found = read_along(e, truth.steps)
        alone = simultaneous.safe_stop(truth.steps, found.contrasts.control, found.contrasts.strata, delta=DELTA)
        shipped.append(alone is not None)
        ours.append(found.stop is not None)
    assert share(shipped) > 0.9 and not any(ours)


def test_the_plain_difference_would_call_flattening_style_drift(monkeypatch):
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    s = at_the_end(BY_NAME["flattening, alike in both arms"], 60)
    rng = np.random.default_rng(4)
    truth = draw_truth(s, rng)
    e = draw_run(s, truth, draw_items(s, rng), rng)
    plain = (e.base_margins - e.target.margins).mean(1)
    assert share(plain > 2 * DELTA) > 0.9
    assert share(x in (State.EM, State.STYLE_DRIFT) for x in read_along(e, truth.steps).states) <= most(WRONG, 60)


def test_placebo_pairs_are_not_counted_as_items():
    """`items_to_settle` of control - target asks for as many items with placebo pairs beside them as without."""
    s, rng = replace(TRUTHS["em_at_2_delta"], items=240, checkpoints=1), np.random.default_rng(7)
    truth = draw_truth(s, rng)
    e = draw_run(s, truth, draw_items(s, rng), rng)
    alone = replace(e, base_placebo=None)
    ((control, base),), ((same, _),) = (read_along(x, truth.steps).means for x in (e, alone))
    assert control is not None and same is not None and control.n == same.n == base.n == 240
    assert control.items_to_settle(DELTA, 0.95) == same.items_to_settle(DELTA, 0.95)
    assert check(e).checkpoints[0].effect.n == 240


@pytest.mark.parametrize("name", TRUTHS)
def test_power_is_what_check_foretells(monkeypatch, name):
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    s = replace(TRUTHS[name], items=240)
    found = power(s, 4, 75, np.random.default_rng(5))
    assert foretold(s, 8, np.random.default_rng(6))[name] == pytest.approx(found, abs=0.1)
    assert by_formula(s, gap_of(s)) == pytest.approx(found, abs=0.1)


# --------------------------------------------------------------------------------------------- several seeds of one recipe


def recipes(s: Scenario, seeds: int, count: int) -> tuple[float, float, float]:
    """Return shares of recipes with a wrong verdict, with a stop above delta in truth, and with the true verdict.

    The truth is the recipe's: what its seeds do on average. Half of an item's noise is common to the seeds, who are asked the same items.
    """
    rng, wrong, bad, right = np.random.default_rng([seeds, 7]), [], [], []
    middle = draw_truth(replace(s, seed=(0.0, 0.0)), rng)
    for _ in range(count):
        items = draw_items(s, rng)
        shared = rng.normal(0, s.residual[1] / np.sqrt(2), s.items)
        runs = {}
        for n in range(seeds):
            own = replace(s, residual=tuple(x / np.sqrt(2) for x in s.residual))
            e = draw_run(own, replace(draw_truth(s, rng)), items, rng)
            growth = np.linspace(s.residual[0] / s.residual[1], 1, s.checkpoints)[:, None]
            assert e.control is not None
            moved = growth * shared
            runs[n] = replace(
                e,
                target=replace(e.target, margins=e.target.margins - moved),
                control=replace(e.control, margins=e.control.margins - moved),
            )
        found = recipe("r", runs)
        assert found is not None and found.verdict is not None
        wrong.append(found.verdict not in (State.UNDETERMINED, middle.states()[-1]))
        right.append(found.verdict == middle.states()[-1])
        stop = found.stop
        bad.append(stop is not None and middle.state(stop) is not State.SAFE)
    return share(wrong), share(bad), share(right)


RECIPES = {
    "just above delta": both("", "flat", ABOVE, items=400, checkpoints=4, seed=(0.033, 0.012)),
    "just below delta": both("", "flat", BELOW, items=400, checkpoints=4, seed=(0.033, 0.012)),
    "rises to 3 delta": both("", "slow", 3.0, items=400, checkpoints=4, seed=(0.033, 0.012)),
    "nothing": both("", "none", 0.0, items=400, checkpoints=4, seed=(0.033, 0.012)),
    "A just below, B far above": Scenario("", ("flat", BELOW), ("flat", 5.0), items=400, checkpoints=4, seed=(0.033, 0.012)),
    "one delta above, alike seeds": both("", "flat", 2.0, items=400, checkpoints=4),
}


@pytest.mark.parametrize("name", ["just above delta", "A just below, B far above"])
def test_a_recipe_of_three_seeds_keeps_the_promise(monkeypatch, name):
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    wrong, bad, _ = recipes(RECIPES[name], 3, 15)
    assert max(wrong, bad) <= most(WRONG, 15)


# ---------------------------------------------------------------------------------------- what came first is not called late


LATE_A = np.array([0.010, 0.015, 0.020, 0.030, 0.041, 0.100, 0.150, 0.150])
LATE_GAIN = np.array([0.30, 0.60, 0.80, 0.88, 0.95, 0.97, 1.00, 1.00])


def at_its_hardest(items: int, count: int, early: float) -> list[Row]:
    """Return studies that are em just above delta at true convergence; a checkpoint before, the gain is .88 and the effect .030.

    Args:
        early: factor of the effect up to true convergence; small, it makes the onset truly late.
    """
    s, rng = both("", "flat", 1.0, items=items, spread=(0.05, 0.17), residual=(0.08, 0.12)), np.random.default_rng([items, 12])
    effect = LATE_A * np.where(LATE_GAIN < 0.96, early, 1)
    truth, rows = Truth(list(range(10, 90, 10)), effect, effect, LATE_GAIN), []
    for _ in range(count):
        rows.append(judge(draw_run(s, truth, draw_items(s, rng), rng), truth))
    return rows


def test_late_is_not_claimed_of_what_came_first(few_draws):
    rows = at_its_hardest(240, 30, 1.0)
    assert share(r.late_false for r in rows) <= most(WRONG, 30) and all(r.late_true is None for r in rows)
    assert share(r.late_true is True for r in at_its_hardest(240, 15, 0.1)) > 0.5  # or a rule that never says late would pass


@pytest.mark.slow
@pytest.mark.parametrize("items", [60, 120, 240])
def test_late_at_its_hardest(few_draws, items):
    rows = at_its_hardest(items, STUDIES, 1.0)
    assert share(r.late_false for r in rows) <= most(WRONG, len(rows))


def test_brackets_hold_the_true_onset(few):
    """Over all scenarios whose onset is dated, those that hold it: the misses are of studies that are not em at all."""
    rows = [r for found in few.values() for r in found if r.bracket is not None]
    assert share(r.bracket is True for r in rows) >= 1 - MISSED


# ------------------------------------------------------------------------------------------------- the promise, each alone


HEADS = ("items", "wrong", "em", "safe", "drift", "ctrl", "stop", "A>", "B>", "onset", "miss", "episode", "late")


def line(s: Scenario, rows: Sequence[Row]) -> str:
    """Return one row of the table: shares of studies."""
    shares = [
        share(r.wrong for r in rows),
        *(named(rows, x) for x in (State.EM, State.SAFE, State.STYLE_DRIFT, State.CONTROL_MOVED)),
        share(r.reach > 0 or r.stop_a or r.stop_b for r in rows),
        share(r.stop_a for r in rows),
        share(r.stop_b for r in rows),
        share(r.bracket is not None for r in rows),
        share(r.bracket is False for r in rows),
        share(r.episode for r in rows),
        share(r.late_false for r in rows),
    ]
    return f"{s.name:50}{s.items:8d}" + "".join(f"{x:8.3f}" for x in shares)


@pytest.mark.slow
@pytest.mark.parametrize("s", SCENARIOS, ids=lambda s: s.name)
def test_table_of_error_rates(few_draws, capsys, s):
    rows = studies(s, STUDIES // 4 if s.checkpoints == 100 else STUDIES)
    with capsys.disabled():
        print(f"\n{'':50}" + "".join(f"{h:>8}" for h in HEADS) if s is SCENARIOS[0] else "", line(s, rows), sep="\n", end="")
    assert not too_high(rows, s)


SETTINGS: dict[str, dict[str, object]] = {
    "as drawn": {},
    "base indifferent on average": {"mean": 0.1},
    "and as many pairs as items": {"mean": 0.1, "pairs": 10_000},
    "and no placebo pairs": {"mean": 0.1, "pairs": 0},
    "half of the noise around the line": {"mean": 0.1, "spread": (0.05, 0.20), "residual": (0.08, 0.17)},
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_table_of_power(monkeypatch, capsys, setting):
    """Simulated share (formula; what `check` foretells), by number of items."""
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    lines = [f"\n{setting:34}" + "".join(f"{name:>26}" for name in TRUTHS)]
    for items in (120, 240, 400, 600):
        cells = []
        for name, s in TRUTHS.items():
            s = replace(s, items=items, **SETTINGS[setting])  # type: ignore[arg-type]
            found = power(s, 10, 50, np.random.default_rng([items, 8]))
            said = foretold(s, 12, np.random.default_rng([items, 9]))[name]
            exact = by_formula(s, gap_of(s))
            cells.append(f"{found:.2f} ({exact:.2f}; {said:.2f})")
            assert said == pytest.approx(found, abs=0.08) and exact == pytest.approx(found, abs=0.08)
        lines.append(f"{items:<34}" + "".join(f"{c:>26}" for c in cells))
    with capsys.disabled():
        print("\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("items", [240, 400, 600])
def test_stop_reaches_half_of_the_safe_stretch_of_100_checkpoints(few_draws, capsys, items):
    rows = studies(replace(BY_NAME["onset in the middle of 100 checkpoints"], items=items), 60)
    with capsys.disabled():
        reached, middle = share(r.reach >= 0.5 for r in rows), np.median([r.reach for r in rows])
        print(
            f"\nonset in the middle of 100, {items} items: half of the safe stretch in {reached:.2f}, median {middle:.2f}",
            end="",
        )
    assert reached >= REACHED[items] and not any(r.reach > 1 for r in rows[:20])


@pytest.mark.slow
@pytest.mark.parametrize("items", [60, 120, 240])
def test_harm_on_items_that_were_not_drawn_is_not_seen(few_draws, capsys, items):
    """Of 60 items none is among the 2 % that carry the harm in 30 % of studies, of 120 in 9 %, of 240 in 1 %: no bound can know of it.

    The promise holds from about 150 items on, where such a share is seen with 95 % (`skew.visible_share`).
    """
    s = both("harm on 2 % of the items, just above delta", "flat", 1.5, items=items, checkpoints=4, share=0.02)
    rows = studies(s, STUDIES)
    found = share(r.stop_a or r.stop_b for r in rows)
    with capsys.disabled():
        print(f"\nharm of 1.5 delta on 2 % of {items} items: a stop above delta in {found:.3f}", end="")
    assert found <= most(max(WRONG, 0.98**items), len(rows))
    if items == 60:
        assert found > WRONG


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_table_of_recipes(monkeypatch, capsys, name):
    monkeypatch.setattr(simultaneous, "DRAWS", 20)
    wrong, bad, right = recipes(RECIPES[name], 3, 100)
    with capsys.disabled():
        print(f"\nrecipe of 3 seeds, {name:32} wrong {wrong:.3f} stop bad {bad:.3f} right {right:.3f}", end="")
    assert max(wrong, bad) <= most(WRONG, 100)
