"""Checks to rows of the `estimates` table, so that figures and other tools read numbers, not prose."""

from __future__ import annotations

from emscope.core.digest import canonical, short
from emscope.core.estimate import Estimate
from emscope.core.plain import JsonObject
from emscope.study.decision.checked import CheckpointReading, CheckResult


def estimate_rows(run: str, check: CheckResult) -> list[JsonObject]:
    """Return one row for each estimate of a check."""
    definition = canonical(check.definition.to_json())
    rows = [_row(run, c.step, what, e, definition) for c in check.checkpoints for what, e in _estimates(c).items() if e]
    if check.stop:
        rows.append(_row(run, check.stop.step, "retained", check.stop.retained, definition))
    if check.refusal:
        of = check.refusal
        told = {"refusal": of.target, **{f"refusal: {name}": one for name, one in of.contrasts.items()}}
        rows += [_row(run, of.step, what, one, definition) for what, one in told.items()]
    return rows


def _estimates(c: CheckpointReading) -> dict[str, Estimate | None]:
    return {
        "effect": c.effect,
        "base_effect": c.base_effect,
        "margin": c.margin,
        "misaligned_preference": c.misaligned_preference,
        "truth": c.truth,
        "gain": c.gain,
        "gain_margin": c.gain_margin,
        **c.contrasts,
        **{f"effect in {name}": e for name, e in c.by_category.items()},
    }


def _row(run: str, step: int, what: str, estimate: Estimate, definition: str) -> JsonObject:
    found = estimate.to_json()
    values = {name: found.get(name) for name in ("value", "low", "high", "level", "method", "n", "clusters", "why")}
    key = short([run, step, what, definition])
    return {"key": key, "run": run, "step": step, "what": what, "definition": definition, **values}
