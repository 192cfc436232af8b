"""Answers drawn at random to be judged by a judge too dear for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from emscope.core.numbering import numbered
from emscope.core.seeds import derive
from emscope.core.spec import Spec
from emscope.data.answer_table import AnswerTable

ALL = "all"


class DrawSpec(Spec):
    """`count` answers of each group that the columns `by` make, drawn without replacement; `judge` None: for every judge.

    More of the same seed keep those that were drawn before.
    """

    count: int = Field(ge=2)
    judge: str | None = None
    by: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)


@dataclass(frozen=True, slots=True)
class Draw:
    """What was drawn: `chosen` says it of each row of the file [N], `stratum` what each was drawn from [N].

    `design` records it: seed, count, and of each stratum how many rows it holds and how many were drawn.
    """

    chosen: np.ndarray
    stratum: list[str]
    design: dict[str, Any]


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
    design = []
    for name, rows in zip(names, np.split(order, ends[:-1]), strict=True):
        rng = np.random.default_rng(derive(spec.seed, "draw", name))
        picked = rng.permutation(rows)[: spec.count]
        chosen[picked] = True
        design.append({"of": name, "rows": len(rows), "drawn": len(picked)})
    return Draw(chosen, labels, spec.model_dump(mode="json") | {"strata": design})
