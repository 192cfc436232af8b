"""Scores of a file's answers by group and question, single values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, asked, quoted


@dataclass(frozen=True, slots=True)
class QuestionScores:
    """Scored answers, N of them, in the order of groups and questions.

    Attributes:
        groups: values of the groups' columns; questions: identifiers, both by index. group, question: of each answer [N]; score: [N];
            beside: the second score [N], NaN where it is missing or there is none.
        lost: answers without a score of each group [G].
    """

    groups: list[tuple[str | None, ...]]
    questions: list[str]
    group: np.ndarray
    question: np.ndarray
    score: np.ndarray
    beside: np.ndarray
    lost: np.ndarray


def read_by_question(
    table: AnswerTable, score: str, *, question: str, groups: Sequence[str], beside: str | None = None
) -> QuestionScores:
    """Return the scores of a table by the values of `groups` and by question; forms of a question count as one.

    Args:
        score, question, groups, beside: columns.

    Raises:
        InputError: no answer has a score.
    """
    names = ", ".join(f"{quoted(g)}::varchar as g{n}" for n, g in enumerate(groups))
    keys = ", ".join(f"g{n}" for n in range(len(groups)))
    second = table.number(beside) if beside else "null::double"
    table.run(
        f"""create or replace temp table answers as select {names}, coalesce({asked(question)}, '') as q, {table.number(score)} as x,
            {second} as b from {table.source}"""
    )
    order = ", ".join(f"try_cast(g{n} as double) nulls last, g{n} nulls last" for n in range(len(groups)))
    table.run(
        f"""create or replace temp table ranked as select *, dense_rank() over (order by {order})::bigint - 1 as g,
            dense_rank() over (order by q)::bigint - 1 as k from answers"""
    )
    labels = table.rows(f"select distinct g, {keys}, 0 from ranked order by g")
    asked_for = table.rows("select distinct k, q from ranked order by k")
    lost = table.rows("select count(*) - count(x) from ranked group by g order by g")
    found = table.run("select g, k, x, b from ranked where x is not null order by g, k, x, b").fetchnumpy()
    if not len(found["g"]):
        raise InputError(f"column '{score}' of '{table.where}' holds no number", "name the score's column with `aligned`")
    return QuestionScores(
        groups=[tuple(row[1:-1]) for row in labels],
        questions=[q for _, q in asked_for],
        group=np.ma.getdata(found["g"]).astype(np.int64),
        question=np.ma.getdata(found["k"]).astype(np.int64),
        score=np.ma.getdata(found["x"]).astype(float),
        beside=np.ma.filled(found["b"].astype(float), np.nan),
        lost=np.array([n for (n,) in lost]),
    )
