"""What a bridge between judges is worth, in sentences."""

from __future__ import annotations

from typing import Any

from emscope.answers.bridge_result import Bridge
from emscope.report.words import interval, number


def print_bridge(result: Bridge) -> None:
    """Print the map, its errors on studies left out, and what it moves."""
    for line in _lines(result.to_json()):
        print(line)


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the documented JSON of `bridge` in sentences."""
    return [line.strip() for line in _lines(found)]


def _lines(found: dict[str, Any]) -> list[str]:
    d, counts = found["definition"], found["answers"]
    lines = [
        f"{d['old']} to {d['new']}: {counts['both']} answers of {found['studies']} studies have both scores",
        "  " + "  ".join(f"{k['old']:.0f}→{k['new']:.0f}" for k in found["map"]),
    ]
    for what, scale in (("mean", 1.0), ("rate", 100.0)):
        tried = found["left_out"][what]
        if tried["reach"] is not None:
            lines.append(
                f"{what} of a study left out: off by {tried['error'] * scale:.1f} (root mean square, bias {tried['bias'] * scale:.1f}) "
                f"{'points' if what == 'mean' else 'percentage points'}; a further one within ±{tried['reach'] * scale:.1f}, which held "
                f"{number(tried['held'], 2)} of them"
            )
    for row in found["moved"]:
        lines += [
            f"{row['study']} ({row['answers']} answers, {d['old']} {row['old_mean']:.1f})",
            f"  mean by {d['new']}: {row['mean'].get('why') or interval(row['mean'], 1)}",
            f"  rate below {d['below']:g}: {row['rate'].get('why') or interval(row['rate'], 3)}",
        ]
    return lines + [f"note: {note}" for note in found["notes"]]
