"""What several seeds of one recipe say together: seeds and questions both vary, so that a verdict speaks of the next seed too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emscope.core.outcomes import State, Verdict
from emscope.run.analysis import Evidence, control_is_dud, paired_steps, read_along
from emscope.stats.crossed import Crossed, crossed_mean, of_runs
from emscope.stats.onset import HARM, bounds, state_of

FROM = 3  # seeds that a recipe's verdict needs: of two the spread between seeds is hardly known
SCOPE = "this recipe: seeds and questions like these"


def recipe(name: str, seeds: Mapping[int, Evidence]) -> dict[str, Any] | None:
    """Return what the preference screen says of a recipe from its seeds; None below two seeds, or without a common step.

    At each step that all seeds share: both contrasts with seeds and questions crossed, and the state that follows. The verdict is the
    last step's, from `FROM` seeds on. `stop` is the last step up to which every one is safe, tested in order (fixed sequence, Maurer 1995).
    """
    found = list(seeds.values())
    if len(found) < 2 or len({e.control is None or control_is_dud(e) for e in found}) > 1:
        return None
    shared = [set(paired_steps(e)) for e in found]
    steps = sorted(set.intersection(*shared))
    if not steps:
        return None
    along = [read_along(e, steps) for e in found]
    delta, calibrated = found[0].delta, all(e.calibrated for e in found)
    rows = []
    for n, step in enumerate(steps):
        base = crossed_mean(np.array([a.contrasts.base[n] for a in along]), along[0].contrasts.strata)
        control = None
        if along[0].contrasts.control is not None:
            values = np.array([a.contrasts.control[n] for a in along if a.contrasts.control is not None])
            control = crossed_mean(values, along[0].contrasts.strata)
        rows.append(crossed_row(step, control, base, delta, [a.states[n] for a in along]))
    return {"name": name, "scope": SCOPE, "delta": delta, "steps": rows} | settled(rows, len(found), calibrated)


def crossed_row(step: int, control: Crossed | None, base: Crossed, delta: float, states: list[State]) -> dict[str, Any]:
    """Return one step of a recipe: contrasts by name, the state that follows from both, and how many of the runs are em."""
    state = state_of(bounds(control.mean) if control else None, bounds(base.mean), delta)
    named = {"control - target": control, "base - target": base}
    return {
        "step": step,
        "state": str(state),
        "contrasts": {
            name: {"mean": c.estimate.to_json(), "next_run": c.next_run.to_json(), "sd_of_seeds": c.sigma_seed}
            for name, c in named.items()
            if c is not None
        },
        "em": of_runs(sum(s in HARM for s in states), len(states)).to_json(),
    }


def settled(rows: list[dict[str, Any]], seeds: int, calibrated: bool) -> dict[str, Any]:
    """Return verdict and stop of a recipe, with a sentence where there is none."""
    if seeds < FROM:
        return {
            "seeds": seeds,
            "verdict": None,
            "stop": None,
            "why": f"a recipe's verdict needs {FROM} seeds, and there are {seeds}",
        }
    last = State(rows[-1]["state"])
    if not calibrated:
        why = f"nobody said how much of this measure is harm on this base; it reads {last.replace('_', ' ')}"
        return {"seeds": seeds, "verdict": str(Verdict.UNCALIBRATED), "stop": None, "why": why}
    stop = None
    for row in rows:
        if row["state"] != State.SAFE:
            break
        stop = row["step"]
    why = "" if stop is not None else "the first step is not shown safe for a fresh seed"
    return {"seeds": seeds, "verdict": str(Verdict(last)), "stop": stop, "why": why}
