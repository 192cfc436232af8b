"""Who scored what, from a file with one row per score or one column per rater."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable, asked, quoted, text

USUAL = {
    "answer": ("key", "response_id", "answer_id", "sample_id", "item", "id"),
    "rater": ("rater", "judge", "judge_model", "annotator"),
    "score": ("score", "rating", "aligned", "alignment", "value"),
}
MARKS = (-1.0, *(sign * (10.0**digits - 1) for digits in range(1, 6) for sign in (-1, 1)))  # -1, -9, 9, -99, 99, ...
LARGEST = 1e100  # squares of larger scores overflow
FAR = 8  # spans of the other scores: 99 lies beyond scales to 10, and 999 beyond one to 100
ROLES = {"answer": "an item's name", "rater": "a rater's name", "score": "a score"}


@dataclass(frozen=True, slots=True)
class Rated:
    """Who scored what; N finite scores.

    Attributes:
        raters: names, by index. item, rater, cluster: indices from 0 [N]; score [N].
        cluster_column: what the clusters are; None where each item is its own.
        lost: (rater, the text, how often) where there is no number.
        off: (rater, value, how often) of numbers off the scale, which are not scores; see `off_scale`.
        doubtful: (value, how often) of scores that lie below all others and may be marks of failure.
    """

    raters: list[str]
    item: np.ndarray
    rater: np.ndarray
    cluster: np.ndarray
    score: np.ndarray
    cluster_column: str | None
    lost: list[tuple[str, str, int]]
    off: list[tuple[str, float, int]]
    doubtful: list[tuple[float, int]]


def off_scale(scores: np.ndarray, scale: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return which values of `scores` [N] are not ratings, and which are doubtful because they are too near the others.

    With a scale: all outside it. Without: -1 and numbers of nines with either sign, by which failed verdicts are written, where they
    are at most half of the scores and
    * below 0 where all others are 0 or more and more than the two values 0 and 1 (-1, 0, 1 is a scale), or
    * `FAR` or more spans of the others away from them.
    So 99 stays among scores up to 60 and 9 among scores up to 5; -1 is dropped among 0 to 3 and among 0.2 to 0.9. (ours)

    Returns:
        different values [K] off the scale, and [J] in doubt, ascending.
    """
    values, counts = np.unique(scores, return_counts=True)
    if scale is not None:
        return values[(values < scale[0]) | (values > scale[1])], values[:0]
    others = values[~np.isin(values, MARKS)]
    if len(others) < 2:
        return values[:0], values[:0]
    low, high = others[0], others[-1]
    far = FAR * (high - low)
    marks = np.isin(values, MARKS)
    below = marks & (values < min(low, 0.0))
    one_sided = low >= 0 and not set(others) <= {0.0, 1.0}
    off = (below & (one_sided | (low - values >= far))) | (marks & (values - high >= far))
    if counts[off].sum() > len(scores) / 2:
        off[:] = False
    return values[off], values[below & ~off]


def read_ratings(
    table: AnswerTable,
    item: str | None,
    rater: str | None,
    score: str | None,
    question: str | None,
    wide: Sequence[str],
    scale: tuple[float, float] | Literal["all"] | None = None,
) -> Rated:
    """Return who scored what: from one row per score, or with `wide` from one column per rater.

    Args:
        item, rater, score: columns of a row-a-score file; by default the field's usual ones.
        question: column of the clusters; by default the usual one where there is one, else each item is its own.
        scale: lowest and highest rating; None: `off_scale` decides which numbers are not ratings; all: every number is one.

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
                    f"name it with `{'item' if role == 'answer' else role}`, or the raters' columns with `scores`",
                )
        taken = {str(name) for name in columns.values()}
        by, who, what = (str(columns[role]) for role in ("answer", "rater", "score"))
        rows = f"{quoted(by)}::varchar as item, {quoted(who)}::varchar as rater, {table.number(what)} as x, {table.said(what)} as said"
    cluster = question or table.question(sorted(taken))
    unit = asked(cluster) if cluster else "''"
    table.run(f"create or replace temp table rated as select {rows}, {unit} as question from {table.source}")
    rated = _rated(table, cluster)
    return rated if scale == "all" else _on_scale(rated, scale)


def _rated(table: AnswerTable, cluster: str | None) -> Rated:
    twice = table.rows(
        "select item, rater from rated where x is not null group by all having count(*) > 1 order by all limit 1"
    )
    if twice:
        raise InputError(
            f"'{table.where}' holds two scores of item '{twice[0][0]}' by '{twice[0][1]}'",
            "a rater scores an item once: average the scores, or name another column with `item`",
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
    if len(x) and (most := float(np.abs(x).max())) > LARGEST:
        raise InputError(f"'{table.where}' has a score of {most:g}", "give scores in another unit, or leave it out")
    gone = [(str(r), str(w), int(n)) for r, w, n in lost]
    return Rated(raters, item, rater, question if cluster else item, x, cluster, gone, [], [])


def _on_scale(rated: Rated, scale: tuple[float, float] | None) -> Rated:
    """Return the same without the values off the scale, named with their counts; raters without a score are dropped."""
    marks, doubtful = off_scale(rated.score, scale)
    off = np.isin(rated.score, marks)
    named = [
        (name, float(mark), int(count))
        for n, name in enumerate(rated.raters)
        for mark in marks
        if (count := ((rated.rater == n) & (rated.score == mark)).sum())
    ]
    kept = np.unique(rated.rater[~off])
    return replace(
        rated,
        raters=[rated.raters[n] for n in kept],
        item=rated.item[~off],
        rater=np.searchsorted(kept, rated.rater[~off]),
        cluster=rated.cluster[~off],
        score=rated.score[~off],
        off=named,
        doubtful=[(float(v), int((rated.score == v).sum())) for v in doubtful],
    )
