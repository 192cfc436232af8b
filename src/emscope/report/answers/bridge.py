"""How good a bridge between judges is, in sentences."""

from __future__ import annotations

from emscope.answers.bridge_result import Bridge
from emscope.report.words import interval, number


def print_bridge(result: Bridge) -> None:
    """Print the map, its errors on studies left out, and what it converts."""
    for line in _lines(result):
        print(line)


def sentences(result: Bridge) -> list[str]:
    """Return a bridge in sentences."""
    return [line.strip() for line in _lines(result)]


def _lines(result: Bridge) -> list[str]:
    spec = result.definition
    left_out = (("mean", 1.0, "points", result.left_out.mean), ("rate", 100.0, "percentage points", result.left_out.rate))
    lines = [
        f"{spec.old} to {spec.new}: {result.answers.both} answers of {result.studies} studies have both scores",
        "  " + "  ".join(f"{k.old:.0f}→{k.new:.0f}" for k in result.map),
    ]
    for what, scale, unit, tried in left_out:
        if tried.error is not None and tried.bias is not None and tried.reach is not None:
            lines.append(
                f"{what} of a left-out study: off by {tried.error * scale:.1f} (root mean square, bias {tried.bias * scale:.1f}) "
                f"{unit}; another one within ±{tried.reach * scale:.1f}, which covered {number(tried.held, 2)} of these"
            )
    for row in result.moved:
        lines += [
            f"{row.study} ({row.answers} answers, {spec.old} {row.old_mean:.1f})",
            f"  mean by {spec.new}: {row.mean.why or interval(row.mean, 1)}",
            f"  rate below {spec.below:g}: {row.rate.why or interval(row.rate, 3)}",
        ]
    return lines + [f"note: {note}" for note in result.notes]
