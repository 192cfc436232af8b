"""Check objects to rows of the `estimates` table, so that figures and other tools read numbers, not prose."""

from __future__ import annotations

from typing import Any

from emscope.core.digest import canonical, short


def estimate_rows(run: str, check: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each estimate in a `check` object."""
    definition = canonical(check["definition"])
    rows = []
    for checkpoint in check["checkpoints"]:
        named = {
            "effect": checkpoint["effect"],
            "base_effect": checkpoint["base_effect"],
            "margin": checkpoint["margin"],
            "misaligned_preference": checkpoint["misaligned_preference"],
            "truth": checkpoint["truth"],
            "gain": checkpoint["gain"],
            "gain_margin": checkpoint["gain_margin"],
            **checkpoint["contrasts"],
            **{f"effect in {c}": v for c, v in checkpoint["by_category"].items()},
        }
        rows += [_row(run, checkpoint["step"], what, e, definition) for what, e in named.items() if e]
    if check["stop"]:
        rows.append(_row(run, check["stop"]["step"], "retained", check["stop"]["retained"], definition))
    return rows


def _row(run: str, step: int, what: str, estimate: dict[str, Any], definition: str) -> dict[str, Any]:
    fields = ("value", "low", "high", "level", "method", "n", "clusters", "why")
    return {"key": short([run, step, what, definition]), "run": run, "step": step, "what": what, "definition": definition} | {
        f: estimate.get(f) for f in fields
    }
