"""The results of judging, in sentences."""

from __future__ import annotations

from emscope.answers.judge_result import AnchorDrift, JudgedFile
from emscope.judging.local import bundled_judge


def print_judged(result: JudgedFile) -> None:
    """Print counts, cost and where the rows are."""
    for line in _lines(result):
        print(line)


def sentences(result: JudgedFile) -> list[str]:
    """Return counts, cost and where the rows are, in sentences."""
    return [line.strip() for line in _lines(result)]


def _lines(result: JudgedFile) -> list[str]:
    counts, dollars = result.verdicts, result.dollars
    lines = [f"{counts.wanted} verdicts needed: {counts.before} were there, {counts.received} received now"]
    if counts.outcomes:
        often = sorted(counts.outcomes.items(), key=lambda o: -o[1])
        lines.append("  " + ", ".join(f"{count} {outcome}" for outcome, count in often))
    if dollars.estimated is not None:
        spent = f", spent {dollars.spent:.2f}" if counts.received else ""
        lines.append(f"about {dollars.estimated:.2f} dollars for what was missing{spent}")
    if counts.failed:
        lines.append(
            f"{counts.failed} answers have no verdict yet, since every attempt failed; run the same command again to retry"
        )
    if result.stopped_at_cost:
        lines.append("stopped at `max_cost`; run the same command with a higher limit to continue")
    lines += [_drifted(row) for row in result.anchors]
    lines += [f"  local is a proxy: {bundled_judge().card['in_words']}" for judge in result.judges if judge.local]
    return lines + ([f"rows: {result.judged}"] if result.judged else [])


def _drifted(row: AnchorDrift) -> str:
    """Say whether a judge's scores of the anchors have drifted from their labels."""
    head = f"{row.scored} of {row.anchors} anchors scored by {row.judge} for {row.criterion}"
    if row.off is None:
        return f"{head}: nothing to compare"
    verdict = "the judge CHANGED, or is not the one that labelled them" if row.changed else "no sign that the judge changed"
    return (
        f"{head}: {row.off:+.1f} points off their labels on average; evidence {row.evidence:.3g} against {row.slack:g} points "
        f"(20 is strong): {verdict}"
    )
