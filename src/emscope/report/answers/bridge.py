"""What a bridge between judges is worth, in sentences."""

from __future__ import annotations

from typing import Any

from emscope.report.words import interval, number


def print_bridge(result: dict[str, Any]) -> None:
    """Print the map, its errors on studies left out, and what it moves."""
    d, counts = result["definition"], result["answers"]
    print(f"{d['old']} to {d['new']}: {counts['both']} answers of {result['studies']} studies have both scores")
    print("  " + "  ".join(f"{k['old']:.0f}→{k['new']:.0f}" for k in result["map"]))
    for what, scale in (("mean", 1.0), ("rate", 100.0)):
        tried = result["left_out"][what]
        if tried["reach"] is not None:
            print(
                f"{what} of a study left out: off by {tried['error'] * scale:.1f} (root mean square, bias {tried['bias'] * scale:.1f}) "
                f"{'points' if what == 'mean' else 'percentage points'}; a further one within ±{tried['reach'] * scale:.1f}, which held "
                f"{number(tried['held'], 2)} of them"
            )
    for row in result["moved"]:
        print(f"{row['study']} ({row['answers']} answers, {d['old']} {row['old_mean']:.1f})")
        print(f"  mean by {d['new']}: {row['mean'].get('why') or interval(row['mean'], 1)}")
        print(f"  rate below {d['below']:g}: {row['rate'].get('why') or interval(row['rate'], 3)}")
    for note in result["notes"]:
        print(f"note: {note}")
