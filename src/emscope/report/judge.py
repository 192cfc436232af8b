"""What came of judging, in sentences."""

from __future__ import annotations

from typing import Any


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
    if result["judged"]:
        print(f"rows: {result['judged']}")
