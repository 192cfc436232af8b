"""Who scored what, from a file with a row a score or a column a rater."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, asked, quoted, text

USUAL = {
    "answer": ("key", "response_id", "answer_id", "sample_id", "item", "id"),
    "rater": ("rater", "judge", "judge_model", "annotator"),
    "score": ("score", "rating", "aligned", "alignment", "value"),
}
ROLES = {"answer": "an item's name", "rater": "a rater's name", "score": "a score"}


@dataclass(frozen=True, slots=True)
class Rated:
    """Who scored what; N finite scores.

    Attributes:
        raters: names, by index. item, rater, cluster: indices from 0 [N]; score [N].
        cluster_column: what the clusters are; None where each item is its own.
        lost: (rater, what stood there, how often) of what is no number.
    """

    raters: list[str]
    item: np.ndarray
    rater: np.ndarray
    cluster: np.ndarray
    score: np.ndarray
    cluster_column: str | None
    lost: list[tuple[str, str, int]]


def read_ratings(
    table: AnswerTable, item: str | None, rater: str | None, score: str | None, question: str | None, wide: Sequence[str]
) -> Rated:
    """Return who scored what: from a row a score, or with `wide` from columns of which each is a rater's.

    Args:
        item, rater, score: columns of a row-a-score file; by default the field's usual ones.
        question: column of the clusters; by default the usual one where there is one, else each item is its own.

    Raises:
        InputError: a column is not there, or a rater scored an item twice.
    """
    table.named(item, rater, score, question, *wide)
    if wide:
        taken = set(wide)
        names = "[" + ", ".join(text(w) for w in wide) + "]"
        values = "[" + ", ".join(table.number(w) for w in wide) + "]"
        said = "[" + ", ".join(table.said(w) for w in wide) + "]"
        rows = f"row_number() over () as item, unnest({names}) as rater, unnest({values}) as x, unnest({said}) as said"
    else:
        columns = {
            role: given or table.usual(USUAL[role]) for role, given in (("answer", item), ("rater", rater), ("score", score))
        }
        for role, name in columns.items():
            if name is None:
                raise InputError(
                    f"no column of '{table.where}' looks like {ROLES[role]}; its columns are {', '.join(table.names)}",
                    f"name it with --{'item' if role == 'answer' else role}, or the raters' columns with --scores",
                )
        taken = {str(name) for name in columns.values()}
        by, who, what = (str(columns[role]) for role in ("answer", "rater", "score"))
        rows = f"{quoted(by)}::varchar as item, {quoted(who)}::varchar as rater, {table.number(what)} as x, {table.said(what)} as said"
    cluster = question or table.question(sorted(taken))
    unit = asked(cluster) if cluster else "''"
    table.run(f"create or replace temp table rated as select {rows}, {unit} as question from {table.source}")
    return _rated(table, cluster)


def _rated(table: AnswerTable, cluster: str | None) -> Rated:
    twice = table.rows(
        "select item, rater from rated where x is not null group by all having count(*) > 1 order by all limit 1"
    )
    if twice:
        raise InputError(
            f"'{table.where}' holds two scores of item '{twice[0][0]}' by '{twice[0][1]}'",
            "a rater scores an item once: average the scores, or name another column with --item",
        )
    lost = table.rows("select rater, coalesce(said, 'missing'), count(*) from rated where x is null group by all order by all")
    found = table.run(
        """
        select dense_rank() over (order by item)::bigint - 1 as item, dense_rank() over (order by rater)::bigint - 1 as rater,
            dense_rank() over (order by question nulls first)::bigint - 1 as question, x from rated where x is not null order by all
        """
    ).fetchnumpy()
    raters = [str(row[0]) for row in table.rows("select distinct rater from rated where x is not null order by 1")]
    item, rater, question, x = (np.ma.getdata(found[k]) for k in ("item", "rater", "question", "x"))
    return Rated(raters, item, rater, question if cluster else item, x, cluster, [(str(r), str(w), int(n)) for r, w, n in lost])
