"""The runs of a study counted, and its fronts, in sentences."""

from __future__ import annotations

from emscope.report.words import BLANK, percent, sentence
from emscope.study.decision.cases import CasesBy, Count
from emscope.study.decision.fronts import ParetoFront
from emscope.study.report import Report, StudyReport

MEASURES = {"judged": "by judged answers", "preference": "by preference", "truthfulness": "by truthfulness"}
NAMED = 5  # cells of a front that are named


def counted(report: Report) -> list[str]:
    """Return a sentence for each measure, and one for each front; [] where there is one run only."""
    if not isinstance(report, StudyReport) or len(report.targets) < 2:
        return []
    return [*map(_by, report.cases), *(text for one in report.fronts if (text := _front(one)))]


def count(of: Count) -> str:
    """Write a count as `3 of 5 [0.15, 0.95], 1 open`; a dash where nothing was counted."""
    if of.of + of.open == 0:
        return BLANK
    low, high = of.share.low, of.share.high
    interval = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    return f"{of.yes} of {of.of}{interval}{f', {of.open} open' if of.open else ''}"


def _by(by: CasesBy) -> str:
    one, ways = by.together, len(by.ways)
    parts = [f"{MEASURES[by.measure]}, em runs: {count(one.em)}"]
    if ways > 1:
        parts.append(f"ways of training em in all seeds: {count(by.consistent)}")
    if one.em.yes:
        parts += [f"late: {count(one.late)}", f"avoidable by early stopping: {count(one.avoidable)}"]
    if one.stop.yes:
        parts.append(f"with a step shown safe: {count(one.stop)}")
    if one.retained.value is not None:
        parts.append(f"task gain kept there: {percent(one.retained)}")
    return sentence("; ".join(parts))


def _front(front: ParetoFront) -> str:
    """Say which checkpoints are on the front, if known."""
    if not front.cells:
        return sentence(f"no Pareto front of task gain against harm {MEASURES[front.measure]} for {front.arm}: {front.why}")
    left = [c for c in front.cells if c.bettered_by is None]
    first = sorted(left, key=lambda c: -c.on_front)[:NAMED]
    named = ", ".join(f"{c.way} at step {c.step} ({c.on_front:.2f})" for c in first)
    return sentence(
        f"{MEASURES[front.measure]}, of {len(front.cells)} checkpoints of {front.arm}, {len(front.cells) - len(left)} are shown to be dominated by another in both task gain "
        f"and harm; most often on the Pareto front across resamples: {named}{f'; {front.why}' if front.why else ''}"
    )
