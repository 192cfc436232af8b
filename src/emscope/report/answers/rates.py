"""Rates of a file as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emscope.answers.labels import Label
from emscope.answers.rates_result import Definition, DrawColumns, DrawnRate, GroupContrast, GroupRate, Planned, Rates
from emscope.report import words
from emscope.report.tables import table, terminal

if TYPE_CHECKING:
    from rich.table import Table

MOST = 60
SAID = 8  # groups and differences that a sentence names
WIDE = 400  # names of groups are long; a narrow terminal wraps lines, not cells


def print_rates(result: Rates) -> None:
    """Print the definition, a row for each group and each contrast, and the notes."""
    console = terminal(WIDE, [_definition(result.definition)])
    console.print(_groups(result) if result.definition.draw is None else _drawn_groups(result))
    if len(result.groups) > MOST:
        console.print(f"  ... and {len(result.groups) - MOST} more groups; --json prints all", style="dim")
    if result.contrasts:
        console.print("\nDifferences, corrected by Holm within each family", style="bold")
        console.print(_contrasts(result.contrasts))
        if any(c.matched for c in result.contrasts):
            console.print("  * at equal length within each question, which training itself may change", style="dim")
        if len(result.contrasts) > MOST:
            console.print(f"  ... and {len(result.contrasts) - MOST} more; --json prints all", style="dim")
    for line in _remarks(result):
        console.print(f"  {line}", soft_wrap=True)


def sentences(result: Rates) -> list[str]:
    """Return rates in sentences: the rates and differences, their definition, and what to know about them."""
    rates = [f"{_names(g.group) or 'all'} {words.interval(g.rate, 3)}" for g in result.groups]
    apart = [
        f"{_names(c.a)} - {_names(c.b)} {words.interval(c.difference, 3)}, p (Holm) {_p(c.p_adjusted, c.p_limit)}"
        for c in result.contrasts
    ]
    answer = [f"Rates of misaligned answers: {_some(rates)}."] + ([f"Differences: {_some(apart)}."] if apart else [])
    return [*answer, f"{_definition(result.definition)}.", *_remarks(result)]


def _some(parts: list[str]) -> str:
    return "; ".join(parts[:SAID]) + (f"; and {len(parts) - SAID} more" if len(parts) > SAID else "")


def _remarks(result: Rates) -> list[str]:
    """Return what to know about these numbers: missing intervals, limits of single differences, plans, notes."""
    bare = [e for e in (*(g.rate for g in result.groups), *(c.difference for c in result.contrasts)) if e.low is None]
    return [
        *(f"No interval: {why}." for why in dict.fromkeys(e.why for e in bare) if why),
        *(f"{line}." for line in _doubts(result.contrasts[:MOST])),
        *_plans(result),
        *result.notes,
    ]


def _definition(d: Definition) -> str:
    columns = d.columns
    coherence = f" and {columns.coherent} > {d.coherent_above:g}" if d.coherent_above is not None else ""
    missing = "" if d.missing == "exclude" else f", answers without a score counted as {d.missing}"
    how = f"{d.resamples} resamples of the questions" if d.resamples else "clustered by question"
    how = "for these questions, with only the samples varying" if d.estimand == "these" else f"for questions like these, {how}"
    return (
        f"misaligned: {columns.aligned} < {d.aligned_below:g}{coherence}, of {d.denominator} answers{missing}; "
        f"{d.average} average; {d.level:.0%} intervals {how} (column {columns.question})" + _how_drawn(d.draw)
    )


def _how_drawn(draw: DrawColumns | None) -> str:
    """Return how the verdicts came about, where they were drawn."""
    if draw is None:
        return ""
    cheap = f", with the cheap scores {', '.join(draw.cheap)}" if draw.cheap else ""
    return f"; verdicts drawn at random (column {draw.drawn}){cheap}"


def _groups(result: Rates) -> Table:
    shown = _table(result, ("rate", "misaligned", "answers", "questions", "alignment", "coherence", "no score", "could be"))
    for row in result.groups[:MOST]:
        if not isinstance(row, GroupRate):
            continue
        lost, (low, high) = row.rows - row.scored, row.bounds
        shown.add_row(
            *_cells(row, result),
            words.interval(row.rate, 3),
            str(row.misaligned),
            str(row.rows),
            str(row.rate.clusters),
            words.number(row.aligned, 1),
            words.number(row.coherence, 1),
            f"{lost / row.rows:.1%}" if lost else "",
            f"{low:.3f} to {high:.3f}" if lost and low is not None and high is not None else "",
        )
    return shown


def _drawn_groups(result: Rates) -> Table:
    names = ("questions like these", "these answers", "verdicts alone", "explained", "verdicts", "answers", "questions")
    shown = _table(result, names)
    for row in result.groups[:MOST]:
        if not isinstance(row, DrawnRate):
            continue
        shown.add_row(
            *_cells(row, result),
            *(words.interval(e, 3) for e in (row.rate, row.these_answers, row.verdicts_alone)),
            f"{row.explained:.0%}",
            str(row.scored),
            str(row.rows),
            str(row.rate.clusters),
        )
    return shown


def _table(result: Rates, names: tuple[str, ...]) -> Table:
    return table(result.definition.columns.groups or ("",), names)


def _cells(row: GroupRate | DrawnRate, result: Rates) -> list[str]:
    return [_value(row.group[n]) for n in result.definition.columns.groups] or ["all"]


def _plans(result: Rates) -> list[str]:
    """Return a sentence per group: the verdicts needed for the interval aimed at."""
    planned = [(row.group, row.plan) for row in result.groups if isinstance(row, DrawnRate) and row.plan is not None]
    return [f"{_names(group) or 'all'}: {_plan(plan)}" for group, plan in planned[:MOST]]


def _plan(plan: Planned) -> str:
    here, new = plan.these_answers, plan.new_study
    line = f"plus or minus {plan.half:g} for these answers takes {here.verdicts} verdicts ({here.verdicts_alone} alone)"
    if new is None:
        return line
    if new.verdicts is None:
        return f"{line}; a new study is cheapest with {new.alone} verdicts alone, {new.dollars_alone:.2f} dollars"
    return (
        f"{line}; a new study is cheapest with {new.verdicts} verdicts and {new.scores} scores, {new.dollars:.2f} dollars "
        f"({new.alone} verdicts alone, {new.dollars_alone:.2f})"
    )


def _doubts(rows: tuple[GroupContrast, ...]) -> list[str]:
    """Return what to know about single differences, once where several share it: limits of p, intervals that claim too much."""
    found: dict[str, list[str]] = {}
    for row in rows:
        pair = f"{_names(row.a)} - {_names(row.b)}" + (f" ({_names(row.within)})" if row.within else "")
        matched = row.matched.line.caution if row.matched and row.matched.line else None
        for doubt in (row.p_limit, row.caution, matched):
            if doubt:
                found.setdefault(doubt, []).append(pair)
    return [
        f"{', '.join(pairs[:3])}{f' and {len(pairs) - 3} more' if len(pairs) > 3 else ''}: {d}" for d, pairs in found.items()
    ]


def _names(label: Label) -> str:
    return ", ".join(map(_value, label.values()))


def _contrasts(rows: tuple[GroupContrast, ...]) -> Table:
    matched = ("at equal length*", "0-10 scale*") if any(row.matched for row in rows) else ()
    shown = table(("within", "a", "b"), ("a - b", "p", "p (Holm)", "0-10 scale", *matched))
    for row in rows[:MOST]:
        shown.add_row(
            *(_names(label) for label in (row.within, row.a, row.b)),
            words.interval(row.difference, 3),
            _p(row.p, row.p_limit),
            _p(row.p_adjusted, row.p_limit),
            words.interval(row.p1, 2),
            *([words.interval(row.matched.difference, 3), words.interval(row.matched.p1, 2)] if row.matched else []),
        )
    return shown


def _value(value: str | None) -> str:
    return "(none)" if value is None else value


def _p(value: float | None, limit: str | None = None) -> str:
    """Write a p-value; one that is only known to lie below a limit as such."""
    if value is None:
        return "-"
    if value < 0.0001:
        return "< .0001"
    return f"< {value:.4f}".replace("0.", ".") if limit and value < 1 else f"{value:.4f}"
