"""Rates of groups where only a random draw of answers has the good judge's verdict, and all may have cheap scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from emscope.answers.labels import Label
from emscope.answers.rates_result import Counted, DrawColumns, DrawnRate, GroupContrast, Needed, Planned
from emscope.answers.rates_spec import RatesSpec, families, rest
from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import Columns, Thresholds
from emscope.data.drawn import DrawnAnswers, drawn_answers
from emscope.stats.holm import holm
from emscope.stats.prediction_powered import (
    Population,
    Powered,
    Verdicts,
    plan,
    powered,
    powered_contrast,
    powered_interval,
    verdicts_needed,
)

DRAWN, DRAWN_FROM = "drawn", "drawn_from"


def prediction_powered_rates(
    table: AnswerTable, columns: Columns, thresholds: Thresholds, scale: str, spec: RatesSpec
) -> Counted:
    """Return groups, contrasts and notes of a table with a random draw of answers judged.

    Raises:
        InputError: settings or columns that do not fit a rate from drawn verdicts.
    """
    drawn = drawn_column(table, spec.drawn) or (table.usual((DRAWN,)) if spec.drawn_from is not None else None)
    drawn_from = spec.drawn_from or table.usual((DRAWN_FROM,))
    _check(spec, drawn, table)
    answers = drawn_answers(table, columns, thresholds, scale, cheap=spec.cheap, drawn=str(drawn), drawn_from=drawn_from)
    labels = [dict(zip(columns.groups, label, strict=True)) for label in answers.groups]
    found = [_powered(answers, n, spec) for n in range(len(labels))]
    return Counted(
        answers.questions,
        tuple(_row(answers, n, label, f, spec) for n, (label, f) in enumerate(zip(labels, found, strict=True))),
        tuple(_contrasts(labels, found, spec)),
        tuple(_notes(answers, found, columns, spec)),
        DrawColumns(str(drawn), drawn_from, spec.cheap),
    )


def drawn_column(table: AnswerTable, named: str | None) -> str | None:
    """Return the column that says which answers were drawn: the one named (`none` for none), else `drawn` beside `drawn_from`.

    Raises:
        InputError: the named one is not there.
    """
    if named is not None and named.lower() == "none" and named not in table.names:
        return None
    table.named(named)
    return named or (table.usual((DRAWN,)) if table.usual((DRAWN_FROM,)) is not None else None)


def _check(spec: RatesSpec, drawn: str | None, table: AnswerTable) -> None:
    if drawn is None:
        raise InputError(
            f"'{table.where}' does not say which answers were drawn to be judged",
            "name the column with `drawn`; judging with a draw writes it",
        )
    refused = {
        "`resamples`": spec.resamples > 0,
        "`average=macro`": spec.average == "macro",
        "`match_length`": spec.match_length,
    }
    wrong = next((name for name, given in refused.items() if given), None)
    if wrong:
        raise InputError(f"{wrong} cannot be combined with drawn verdicts (column '{drawn}')", "leave it out")
    if spec.prices is not None and not min(spec.prices) > 0:
        raise InputError(f"`prices` are {spec.prices[0]:g} and {spec.prices[1]:g}", "give dollars, more than 0")


def _powered(answers: DrawnAnswers, group: int, spec: RatesSpec) -> Powered:
    cells, mine = answers.cell_group == group, answers.group == group
    order = np.argsort(answers.cell_question[cells])
    judged, coherent, hits = answers.judged[mine], answers.coherent[mine], answers.low[mine]
    counted = {"coherent": coherent, "scored": judged, "all": np.ones(len(judged))}[spec.denominator]
    if spec.missing != "exclude":
        counted = np.maximum(counted, 1 - judged)
        hits = np.maximum(hits, 1 - judged) if spec.missing == "misaligned" else hits
    return powered(
        Population(answers.cell_question[cells][order], answers.cell_rows[cells][order], answers.cell_cheap[cells][order]),
        Verdicts(
            hits, counted, answers.cheap[mine], answers.question[mine], answers.stratum[mine], answers.drawn, answers.out_of
        ),
        level=spec.level,
    )


def _row(answers: DrawnAnswers, group: int, label: Label, found: Powered, spec: RatesSpec) -> DrawnRate:
    mine = answers.group == group
    rows = int(answers.cell_rows[answers.cell_group == group].sum())
    return DrawnRate(
        label,
        powered_interval(found, level=spec.level),
        these_answers=found.these,
        verdicts_alone=found.alone,
        explained=found.explained,
        weights=tuple(found.weights),
        rows=rows,
        drawn=int(mine.sum()),
        scored=int(answers.judged[mine].sum()),
        coherent=int(answers.coherent[mine].sum()),
        misaligned=int(answers.low[mine].sum()),
        plan=_plan(found, rows, spec),
    )


def _plan(found: Powered, rows: int, spec: RatesSpec) -> Planned | None:
    if spec.aim is None or found.these.value is None:
        return None
    p, explained = found.these.value, found.explained
    needed = Needed(*verdicts_needed(p, explained, spec.aim, rows, level=spec.level))
    return Planned(spec.aim, needed, plan(p, explained, spec.aim, spec.prices, level=spec.level) if spec.prices else None)


def _contrasts(labels: Sequence[Label], found: list[Powered], spec: RatesSpec) -> Iterator[GroupContrast]:
    if spec.control is None and spec.within is None:
        return
    for family, pairs in families(labels, spec):
        compared = [powered_contrast(found[a], found[b], level=spec.level) for a, b in pairs]
        adjusted = holm([c.p for c in compared])
        for (a, b), c, p in zip(pairs, compared, adjusted, strict=True):
            yield GroupContrast(
                family,
                rest(labels[a], family),
                rest(labels[b], family),
                c.difference,
                p=c.p,
                p_adjusted=p,
                p_by=c.by,
                p_limit=c.limit,
                caution=c.caution,
                p1=None,
                matched=None,
            )


def _notes(answers: DrawnAnswers, found: list[Powered], columns: Columns, spec: RatesSpec) -> list[str]:
    notes = []
    if answers.idle:
        notes.append(
            f"{answers.idle} of {answers.idle + len(answers.judged)} drawn answers have neither a score nor an outcome and are left out: "
            "judge them first. Until then, the rates are valid only if those answers are like the rest."
        )
    if answers.spare:
        notes.append(
            f"{answers.spare} answers that were not drawn have scores, which are left out; `drawn=none` counts all scores alike."
        )
    lost = int((1 - answers.judged).sum())
    if lost and spec.denominator != "all":
        how = "left out" if spec.missing == "exclude" else f"counted as {spec.missing}"
        notes.append(f"{lost} of {len(answers.judged)} drawn answers have no score; they are {how}.")
    for name, count in zip(spec.cheap, answers.without, strict=True):
        if count:
            notes.append(
                f"{count} answers have no cheap score '{name}'; they got the mean of the others, which does not bias the rates."
            )
    idle = sum(not any(f.weights) for f in found)
    if spec.cheap and idle:
        notes.append(
            f"In {idle} of {len(found)} groups the cheap scores are left out: they explain nothing, or there are under 20 verdicts."
        )
    if columns.question is None:
        notes.append("The file has no question column: no interval for questions like these. Name the column with `question`.")
    return notes
