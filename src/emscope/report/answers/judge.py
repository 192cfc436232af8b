"""What came of judging, in sentences."""

from __future__ import annotations

from typing import Any

from emscope.judging.local import bundled_judge
from emscope.judging.names import LOCAL


def print_judged(result: dict[str, Any]) -> None:
    """Print counts, cost and where the rows are."""
    v, dollars = result["verdicts"], result["dollars"]
    asked = sum(v["outcomes"].values())
    print(f"{v['wanted']} verdicts wanted, {v['before']} were there, {asked} came now")
    if v["outcomes"]:
        print("  " + ", ".join(f"{n} {name}" for name, n in sorted(v["outcomes"].items(), key=lambda o: -o[1])))
    if dollars["estimated"] is not None:
        spent = f", spent {dollars['spent']:.2f}" if asked else ""
        print(f"about {dollars['estimated']:.2f} dollars for what was missing{spent}")
    if v["failed"]:
        print(f"{v['failed']} have none yet, since every attempt failed; run the same command again to ask for them")
    if result["stopped_at_cost"]:
        print("stopped at --max-cost; run the same command with a higher one to go on")
    for row in result["anchors"]:
        print(_drifted(row))
    for judge in result["judges"]:
        if judge["name"] == LOCAL and judge["url"] is None:
            print(f"  local is a proxy: {bundled_judge().card['in_words']}")
    if result["judged"]:
        print(f"rows: {result['judged']}")


def _drifted(row: dict[str, Any]) -> str:
    """Say whether a judge's scores of the anchors left their labels."""
    head = f"{row['scored']} of {row['anchors']} anchors scored by {row['judge']} for {row['criterion']}"
    if row["off"] is None:
        return f"{head}: nothing to compare"
    verdict = "the judge CHANGED, or is another one than labelled them" if row["changed"] else "no sign that the judge changed"
    return f"{head}: {row['off']:+.1f} points off their labels on average; evidence {row['evidence']:.3g} against {row['slack']:g} points (20 is strong): {verdict}"
