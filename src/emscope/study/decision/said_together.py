"""What several checkpoints of a run say together (onset, episodes, the last safe step), and several seeds of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from emscope.core.outcomes import State, Verdict
from emscope.stats.adjusted import Scored, adjusted_by_question
from emscope.stats.crossed import Crossed, crossed_mean
from emscope.stats.model_error import ModelError, line_of
from emscope.stats.onset import LEVEL, episodes, last_safe, onset, states_along
from emscope.stats.quantiles import student
from emscope.stats.simultaneous import simultaneous_bounds
from emscope.stats.skew import moments
from emscope.study.decision.checked import Episode, Onset
from emscope.study.decision.recipe import RecipeResult, recipe_result, recipe_step
from emscope.study.decision.said import DELTA, Arms, Dated, Pair, Place


def dated(
    arms: Arms,
    pairs: Sequence[Pair],
    strata: np.ndarray,
    verdicts: Mapping[Place, Verdict],
    *,
    delta: float = DELTA,
    error: ModelError | None = None,
) -> list[Dated]:
    """Return onset, episodes and the last safe step of each run that was judged at several checkpoints, by bounds that hold for all at once.

    A broken checkpoint shows neither harm nor safety. (`stats.onset`; contrasts as in `said`)
    """
    found = []
    for run in dict.fromkeys(p.run for p in pairs):
        mine = sorted((p for p in pairs if p.run == run), key=lambda p: p.step)
        sides = _along(arms, mine, strata, error)
        if len(mine) < 2 or sides is None:
            continue
        values, of = sides
        errors = _errors_along(values.shape[0], values.shape[1], error) if error else None
        alone, joint = moments(values, of), simultaneous_bounds(values, of, LEVEL, errors=errors)
        alone = alone.with_errors(*errors) if errors else alone
        reach = np.vectorize(student)(LEVEL, alone.df)
        steps, broken = [p.step for p in mine], [verdicts.get((run, p.step)) is Verdict.BROKEN for p in mine]
        states = _unless(broken, states_along(alone.bound(reach, -1), alone.bound(reach, +1), delta))
        sure = _unless(broken, states_along(joint.lower, joint.upper, delta))
        bracket = onset(steps, states, sure)
        began = Onset(bracket.after, bracket.by) if bracket else None
        found.append(Dated(run, began, tuple(Episode(*ends) for ends in episodes(steps, sure)), last_safe(steps, sure)))
    return found


def _along(
    arms: Arms, pairs: Sequence[Pair], strata: np.ndarray, error: ModelError | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return each question's contrasts for each checkpoint [A, C, Q], against control (where all have one) and base, and the questions' categories."""
    sides = []
    if all(p.control and p.control in arms for p in pairs):
        sides.append([(arms[p.control], arms[(p.run, p.step)]) for p in pairs if p.control])
    if ("base", 0) not in arms:
        return None
    sides.append([(arms[("base", 0)], arms[(p.run, p.step)]) for p in pairs])
    rows = [
        [adjusted_by_question(left, right, strata, line_of([left, right], error)) for left, right in side] for side in sides
    ]
    if any(one is None for row in rows for one in row):
        return None
    values = np.array([[one[1] for one in row if one is not None] for row in rows])
    both = np.isfinite(values).all((0, 1))
    return (values[..., both], strata[both]) if both.sum() > 2 else None


def _errors_along(contrasts: int, steps: int, error: ModelError) -> tuple[np.ndarray, np.ndarray]:
    """Return what the judge's error on each model adds to each contrast [A, C, E], and its degrees of freedom [E].

    The base's is in all base - target, a checkpoint's in both of its contrasts; those of different checkpoints are taken as independent,
    which errs on the safe side for bounds that hold at all of them.
    """
    of = error.adjusted
    found = np.zeros((contrasts, steps, 1 + contrasts * steps))
    found[-1, :, 0] = of.base
    for n in range(steps):
        found[:, n, 1 + n] = of.fine_tune
        if contrasts > 1:
            found[0, n, 1 + steps + n] = of.fine_tune
    return found, np.array([of.df_base] + contrasts * steps * [of.df_fine_tune])


def _unless(broken: Sequence[bool], states: Sequence[State]) -> list[State]:
    return [State.UNDETERMINED if b else s for b, s in zip(broken, states, strict=True)]


def recipes(
    arms: Arms,
    groups: Mapping[str, Sequence[Pair]],
    strata: np.ndarray,
    verdicts: Mapping[Place, Verdict],
    *,
    delta: float = DELTA,
    error: ModelError | None = None,
) -> list[RecipeResult]:
    """Return what several seeds of one recipe say together, with seeds and questions crossed; see `decision.recipe`.

    Args:
        groups: by recipe, the last checkpoint of each seed. verdicts: of each checkpoint alone. error: the judge's on whole models, where it
            is known; taken as one for all seeds, since it follows the manner that the data teaches.
    """
    found = []
    base = arms.get(("base", 0))
    for name, pairs in groups.items():
        own = [arm for pair in pairs if (arm := arms.get((pair.run, pair.step))) is not None]
        controls = [arm for pair in pairs if pair.control and (arm := arms.get(pair.control)) is not None]
        if base is None or len(pairs) < 2 or len(own) < len(pairs) or len(controls) not in (0, len(pairs)):
            continue
        against_base = _crossed([(base, arm) for arm in own], strata, error, base=True)
        against_control = _crossed(list(zip(controls, own, strict=True)), strata, error, base=False) if controls else None
        if against_base is None or (controls and against_control is None):
            continue
        said_by = [verdicts.get((p.run, p.step)) for p in pairs]
        states = [State.EM if v is Verdict.EM else State.UNDETERMINED for v in said_by]
        steps = [recipe_step(pairs[0].step, against_control, against_base, delta, states)]
        one = recipe_result(name, steps, delta, len(pairs), calibrated=True)
        if Verdict.BROKEN in said_by:
            why = "one of its runs is broken, and broken text shows neither harm nor safety"
            one = replace(one, verdict=Verdict.BROKEN, stop=None, why=why)
        found.append(one)
    return found


def _crossed(
    sides: Sequence[tuple[Scored, Scored]], strata: np.ndarray, error: ModelError | None, *, base: bool
) -> Crossed | None:
    """Return left - right at equal coherence over seeds and the questions that all of them answered."""
    line = line_of(list({id(arm): arm for pair in sides for arm in pair}.values()), error)
    rows = [adjusted_by_question(left, right, strata, line) for left, right in sides]
    values = np.array([row[1] for row in rows if row is not None])
    both = np.isfinite(values).all(0) if len(values) == len(sides) else np.zeros(0, bool)
    if both.sum() <= 2:
        return None
    return crossed_mean(values[:, both], strata[both]).with_error(error.adjusted.between(base=base) if error else [])
