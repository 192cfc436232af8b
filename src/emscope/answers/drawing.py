"""Answers drawn at random for a judge that is too expensive for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from emscope.answers.judge_result import Design, Stratum
from emscope.answers.judge_spec import DrawSpec
from emscope.core.numbering import numbered
from emscope.core.seeds import derive
from emscope.data.answer_table import AnswerTable

ALL = "all"


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn, and how: `chosen` marks the rows of the file [N], `stratum` says what each was drawn from [N]."""

    chosen: np.ndarray
    stratum: list[str]
    design: Design


def draw(table: AnswerTable, spec: DrawSpec) -> Draw:
    """Draw from the rows of a file.

    Raises:
        InputError: a column of `by` is not there.
    """
    table.named(*spec.by)
    labels: list[str] = []
    for batch in table.batches(list(spec.by) or table.names[:1]):
        columns = [batch.column(c).to_pylist() for c in spec.by]
        labels += [" / ".join(map(str, values)) for values in zip(*columns, strict=True)] if columns else [ALL] * batch.num_rows
    names, place = numbered(labels)
    chosen = np.zeros(len(labels), bool)
    order = np.argsort(place, kind="stable")
    ends = np.cumsum(np.bincount(place))
    strata = []
    for name, rows in zip(names, np.split(order, ends[:-1]), strict=True):
        rng = np.random.default_rng(derive(spec.seed, "draw", name))
        picked = rng.permutation(rows)[: spec.count]
        chosen[picked] = True
        strata.append(Stratum(name, len(rows), len(picked)))
    return Draw(chosen, labels, Design(spec, tuple(strata)))
