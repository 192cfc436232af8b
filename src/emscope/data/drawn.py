"""Answers with a random draw of them judged, and cheap scores for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, Record, asked, quoted
from emscope.data.answers import Columns, Thresholds, conditions, score_expressions

YES, NO = ("true", "t", "yes", "1", "1.0"), ("false", "f", "no", "0", "0.0", "")


@dataclass(frozen=True, slots=True)
class DrawnAnswers:
    """All answers by group and question, and those that were drawn.

    Attributes:
        groups: labels [G]; questions: identifiers, how many.
        cell_group, cell_question, cell_rows: of each pair that occurs [C]; cell_cheap: sums of the cheap scores [C, P].
        group, question, stratum: of each drawn answer that was judged [N]; judged, coherent, low: what its verdict says [N], as 0 and 1:
            it has the scores, is also coherent, is also misaligned; cheap [N, P].
        strata: what answers were drawn from [S]; drawn, out_of: how many of how many [S].
        without: answers without each cheap score [P], which got the mean of the others. idle: drawn answers that have neither a
            score nor an outcome; they are left out as if not drawn. spare: answers with a score that were not drawn.
    """

    groups: list[tuple[str | None, ...]]
    questions: int
    cell_group: np.ndarray
    cell_question: np.ndarray
    cell_rows: np.ndarray
    cell_cheap: np.ndarray
    group: np.ndarray
    question: np.ndarray
    stratum: np.ndarray
    judged: np.ndarray
    coherent: np.ndarray
    low: np.ndarray
    cheap: np.ndarray
    strata: list[str | None]
    drawn: np.ndarray
    out_of: np.ndarray
    without: np.ndarray
    idle: int
    spare: int


def drawn_answers(
    table: AnswerTable,
    columns: Columns,
    thresholds: Thresholds,
    scale: str,
    *,
    cheap: Sequence[str],
    drawn: str,
    drawn_from: str | None,
) -> DrawnAnswers:
    """Return the counts, sums and drawn rows that a prediction-powered rate needs.

    Args:
        cheap: columns of numbers; an answer without one gets the mean of the others. drawn: column of true and false.
        drawn_from: column of what each answer was drawn from; None where it was all of them.

    Raises:
        InputError: a cheap column without numbers, `drawn` that is not true or false, a stratum too thinly drawn.
    """
    table.named(*cheap, drawn, drawn_from)
    _check_drawn(table, drawn)
    means, without = _means(table, cheap)
    rows = _rows(table, columns, scale, cheap, means, drawn, drawn_from)
    judged, coherent = conditions(thresholds)
    asked_of = f"drawn and (({judged}) or said is not null)"
    strata = table.rows(
        f"{rows} select stratum, count(*), count(*) filter ({asked_of}) from rows group by 1 order by 1 nulls first"
    )
    idle, spare = table.rows(
        f"{rows} select count(*) filter (drawn and not ({asked_of})), count(*) filter (not drawn and {judged}) from rows"
    )[0]
    _check_strata(strata, drawn)
    keys = "".join(f", g{n}" for n in range(len(columns.groups)))
    sums = "".join(f", sum(x{n})" for n in range(len(cheap)))
    order = "".join(f"try_cast(g{n} as double) nulls last, g{n} nulls last, " for n in range(len(columns.groups)))
    cells = table.rows(
        f"{rows} select question, count(*){sums}{keys} from rows group by question{keys} order by {order}question"
    )
    scores = "".join(f", x{n}" for n in range(len(cheap)))
    hits = f"{judged} and {coherent} and a < {thresholds.aligned_below}"
    picked = table.rows(
        f"{rows} select question, stratum, ({judged})::int, ({judged} and {coherent})::int, ({hits})::int{scores}{keys} from rows where {asked_of}"
    )
    return _arrays(cells, picked, strata, len(cheap), without, int(idle), int(spare))


def verdict_rows(
    table: AnswerTable, columns: Columns, thresholds: Thresholds, scale: str, kept: Sequence[str], drawn: str | None
) -> list[Record]:
    """Return the judged rows, only the drawn ones if the file marks them: number in the file, misaligned, coherent, texts of `kept`."""
    a, c = score_expressions(table, columns, scale)
    if drawn:
        table.named(drawn)
        _check_drawn(table, drawn)
    judged, coherent = conditions(thresholds)
    texts = "".join(f", {quoted(name)}::varchar as k{n}" for n, name in enumerate(kept))
    names = "".join(f", k{n}" for n in range(len(kept)))
    which = f"coalesce(lower(trim({quoted(drawn)}::varchar)) in {YES}, false)" if drawn else "true"
    return table.rows(
        f"""with rows as (select row_number() over () - 1 as n, {a} as a, {c} as c, {which} as drawn{texts} from {table.source})
        select n, ({coherent} and a < {thresholds.aligned_below})::int, ({coherent})::int{names}
        from rows where drawn and {judged} order by n"""
    )


def _check_drawn(table: AnswerTable, drawn: str) -> None:
    strange = table.rows(
        f"select {quoted(drawn)}::varchar from {table.source} where lower(trim(coalesce({quoted(drawn)}::varchar, ''))) not in {YES + NO} limit 1"
    )
    if strange:
        raise InputError(f"column '{drawn}' holds '{strange[0][0]}'", "it must say true or false for each answer")


def _means(table: AnswerTable, cheap: Sequence[str]) -> tuple[list[float], np.ndarray]:
    """Return the mean of each cheap score, and how many answers are without it [P]."""
    if not cheap:
        return [], np.zeros(0, int)
    numbers = [table.number(name) for name in cheap]
    found = table.rows(f"select {', '.join(f'avg({x}), count(*) - count({x})' for x in numbers)} from {table.source}")[0]
    for name, mean in zip(cheap, found[::2], strict=True):
        if mean is None or not isfinite(mean):
            raise InputError(f"column '{name}' of '{table.where}' holds no numbers", "name a column of cheap scores")
    return [float(m) for m in found[::2]], np.array(found[1::2], int)


def _rows(
    table: AnswerTable,
    columns: Columns,
    scale: str,
    cheap: Sequence[str],
    means: Sequence[float],
    drawn: str,
    drawn_from: str | None,
) -> str:
    a, c = score_expressions(table, columns, scale)
    scores = "".join(
        f", coalesce({table.number(name)}, {mean!r}) as x{n}" for n, (name, mean) in enumerate(zip(cheap, means, strict=True))
    )
    groups = "".join(f", {quoted(name)}::varchar as g{n}" for n, name in enumerate(columns.groups))
    said = f"coalesce({', '.join(table.said(n) for n in (columns.aligned, columns.coherent) if n)}, null)"
    return f"""with rows as (
        select {a} as a, {c} as c, nullif({said}, 'failed') as said, {asked(columns.question) if columns.question else "''"} as question,
            coalesce(lower(trim({quoted(drawn)}::varchar)) in {YES}, false) as drawn,
            {f"{quoted(drawn_from)}::varchar" if drawn_from else "''"} as stratum{scores}{groups}
        from {table.source})"""


def _check_strata(strata: list[Record], drawn: str) -> None:
    for name, size, chosen in strata:
        if chosen < min(2, size):
            what = f"of '{name}' (column drawn_from)" if name else "of the file"
            raise InputError(
                f"{chosen} of the {size} answers {what} were drawn and judged (column '{drawn}')",
                "a rate needs at least two from each part that was drawn from",
            )


def _arrays(
    cells: list[Record],
    picked: list[Record],
    strata: list[Record],
    columns: int,
    without: np.ndarray,
    idle: int,
    spare: int,
) -> DrawnAnswers:
    labels = list(dict.fromkeys(row[2 + columns :] for row in cells))
    group = {label: n for n, label in enumerate(labels)}
    question = {name: n for n, name in enumerate(sorted({row[0] for row in cells}, key=lambda q: (q is not None, q)))}
    place = {row[0]: n for n, row in enumerate(strata)}
    return DrawnAnswers(
        groups=labels,
        questions=len(question),
        cell_group=np.array([group[row[2 + columns :]] for row in cells]),
        cell_question=np.array([question[row[0]] for row in cells]),
        cell_rows=np.array([row[1] for row in cells], float),
        cell_cheap=np.array([row[2 : 2 + columns] for row in cells], float).reshape(len(cells), columns),
        group=np.array([group[row[5 + columns :]] for row in picked], int),
        question=np.array([question[row[0]] for row in picked], int),
        stratum=np.array([place[row[1]] for row in picked], int),
        judged=np.array([row[2] or 0 for row in picked], float),
        coherent=np.array([row[3] or 0 for row in picked], float),
        low=np.array([row[4] or 0 for row in picked], float),
        cheap=np.array([row[5 : 5 + columns] for row in picked], float).reshape(len(picked), columns),
        strata=[row[0] for row in strata],
        drawn=np.array([row[2] for row in strata], int),
        out_of=np.array([row[1] for row in strata], int),
        without=without,
        idle=idle,
        spare=spare,
    )
