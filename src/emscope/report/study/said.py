"""What checkpoints say: sentences, the figure of alignment against coherence, the worst answers."""

from __future__ import annotations

from typing import Any

from emscope.report.figures import COLOURS, PALETTE, style
from emscope.report.words import VERDICTS, interval


def first_judge(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the judge that counts says, None where none has read answers."""
    judges = (report.get("judged") or {}).get("judges", [])
    return judges[0] if judges else None


def last_said(report: dict[str, Any], run: str) -> dict[str, Any] | None:
    """Return what a run's last checkpoint says, None where no judge has read it."""
    judge = first_judge(report)
    return next((one for one in reversed(judge["said"]) if one["run"] == run), None) if judge else None


def sentences(report: dict[str, Any], run: str) -> list[str]:
    """Return what a run's last checkpoint says by the first judge, in sentences, first the verdict; [] where none has read it."""
    judge, one = first_judge(report), last_said(report, run)
    if judge is None or one is None:
        return []
    arms = {(a["run"], a["step"]): a for a in judge["arms"]}
    mine = arms[(run, one["step"])]
    text = VERDICTS[one["verdict"]].format(behaviour="misalignment", Behaviour="Misalignment")
    found = [f"{text}, by what it says at step {one['step']}." + (f" ({one['why']})" if one["why"] else "")]
    points = [
        f"{interval(c['adjusted'], 1)} points below its {name.split(' - ')[0]}"
        for name, c in one["contrasts"].items()
        if name.endswith("- target")
    ]
    found.append(
        f"At equal coherence its answers stand {' and '.join(points)} in mean alignment (0 to 100, 95 % intervals over "
        f"{mine['aligned']['clusters']} questions; {report['judged']['definition']['delta']:g} points count as harm)."
        + _power(one, mine["aligned"]["clusters"])
    )
    dated = next((d for d in judge["dated"] if d["run"] == run), None)
    if dated:
        began = (
            f"set in after step {dated['onset']['after']} and by step {dated['onset']['by']}"
            if dated["onset"]
            else "has no onset to date"
        )
        stop = (
            f"the last checkpoint shown safe is step {dated['stop']}"
            if dated["stop"] is not None
            else "no checkpoint is shown safe"
        )
        found.append(f"By what its checkpoints say, misalignment {began}; {stop} (90 % bracket over all that were judged).")
    means = [f"{a['run']} {a['aligned']['value']:.0f} ({a['coherent']['value']:.0f})" for a in _beside(one, arms)]
    found.append(
        f"Mean alignment (coherence): {', '.join(means)}; {mine['answers']} answers each way, read by {judge['judge']}."
    )
    return found


def _power(one: dict[str, Any], asked: int) -> str:
    """Return what so many questions could find, and how many would do."""
    if one["power"] is None:
        return ""
    more = f"; about {one['enough']} such questions would find them with 0.80" if (one["enough"] or 0) > asked else ""
    return f" Ten points would have been found with a chance of {one['power']:.2f}{more}."


def _beside(one: dict[str, Any], arms: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of base, control and the checkpoint itself, of those that were judged."""
    places = [("base", 0), (one["control"], one["step"]), (one["run"], one["step"])]
    return [arms[p] for p in places if p in arms]


def worst_answers(report: dict[str, Any], run: str) -> list[dict[str, Any]]:
    """Return a run's worst coherent answers, each with its rows: who says it, and the answer with its two scores."""
    judge = first_judge(report)
    return [
        {"asked": one["asked"], "rows": [(name, one[name]) for name in ("base", "control", "target") if name in one]}
        for one in (judge["worst"] if judge else [])
        if one["run"] == run
    ]


def said_figure(report: dict[str, Any], run: str) -> Any | None:
    """Draw mean alignment against mean coherence of a run's last checkpoint, its control and its base, with both intervals."""
    import plotly.graph_objects as go

    judge, one = first_judge(report), last_said(report, run)
    if judge is None or one is None:
        return None
    figure = go.Figure()
    arms = {(a["run"], a["step"]): a for a in judge["arms"]}
    roles = {("base", 0): "base", (one["control"], one["step"]): "control", (run, one["step"]): "target"}
    for n, row in enumerate(_beside(one, arms)):
        role = roles[(row["run"], row["step"])]
        figure.add_scatter(
            x=[row["coherent"]["value"]],
            y=[row["aligned"]["value"]],
            error_x=_reach(row["coherent"]),
            error_y=_reach(row["aligned"]),
            mode="markers+text",
            text=[role],
            textposition="top right",
            marker={"size": 14, "color": COLOURS.get(role, PALETTE[n])},
            name=f"{row['run']} ({row['answers']} answers)",
            hovertemplate="coherence %{x:.1f}, alignment %{y:.1f}<extra></extra>",
        )
    return style(figure, "", "mean coherence (left: broken text)", "mean alignment (down: worse for people)")


def _reach(estimate: dict[str, Any]) -> dict[str, Any] | None:
    if estimate["low"] is None:
        return None
    value = estimate["value"]
    return {
        "type": "data",
        "symmetric": False,
        "array": [estimate["high"] - value],
        "arrayminus": [value - estimate["low"]],
        "thickness": 1.2,
    }
