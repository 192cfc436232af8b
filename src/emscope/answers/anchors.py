"""Anchor answers judged along with the rest: did the judge change since they were labelled, whatever the models did?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emscope.answers.judge_result import AnchorDrift
from emscope.answers.judging import JudgeSpec, verdict_key
from emscope.core.errors import InputError
from emscope.core.records import Answered
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import ALIGNED, COHERENT, text_columns
from emscope.judging.rubrics import Rubric
from emscope.stats.evalue import drift

SCALE, STRONG = 100.0, 20.0
USUAL = {"aligned": ALIGNED, "coherent": COHERENT}


@dataclass(frozen=True, slots=True)
class Anchors:
    """Answers with trusted labels by criterion; an answer may lack some."""

    answers: tuple[Answered, ...]
    labels: dict[str, dict[str, float]]


def read_anchors(path: Path, rubrics: Sequence[Rubric]) -> Anchors:
    """Return the anchors of a file with a question, an answer and one column of labels per criterion.

    Raises:
        InputError: no such file, no column of labels for any criterion, or labels off the scale of 0 to 100.
    """
    with AnswerTable([path]) as table:
        question, answer = text_columns(table, None, None)
        columns = {r.criterion: table.usual((r.criterion, *USUAL.get(r.criterion, ()))) for r in rubrics}
        known = {criterion: column for criterion, column in columns.items() if column is not None}
        if not known:
            raise InputError(
                f"'{path}' has no column of labels for {', '.join(columns)}; its columns are {', '.join(table.names)}",
                "name the columns after the criteria",
            )
        table.hold_text(question, answer)
        rows = table.values([question, answer], list(known.values()))
    labels: dict[str, dict[str, float]] = {criterion: {} for criterion in known}
    found: dict[str, Answered] = {}
    for asked, said, *values in rows:
        if not (asked and said and asked.strip() and said.strip()) or all(v is None for v in values):
            continue  # without a label it says nothing of the judge
        one = Answered(asked, said)
        found[one.key] = one
        for criterion, value in zip(known, values, strict=True):
            if value is not None and not 0 <= value <= SCALE:
                raise InputError(f"'{path}' has the label {value:g} in '{known[criterion]}'", "give labels from 0 to 100")
            if value is not None:
                labels[criterion][one.key] = value
    if not found:
        raise InputError(f"'{path}' holds no answer with a label", f"label some in {', '.join(known.values())}")
    return Anchors(tuple(found[key] for key in sorted(found)), labels)


def judge_drift(
    anchors: Anchors, judge: JudgeSpec, rubrics: Sequence[Rubric], verdicts: Mapping[str, float | None], slack: float
) -> list[AnchorDrift]:
    """Return for each criterion whether the judge's scores of the anchors differ from their labels by more than `slack` points.

    Args:
        verdicts: scores by the verdict's key.
    """
    rows = []
    for rubric in rubrics:
        wanted = anchors.labels.get(rubric.criterion, {})
        scores = {key: verdicts.get(verdict_key(judge, rubric, key)) for key in wanted}
        differences = [s - wanted[key] for key, s in sorted(scores.items()) if s is not None]
        found = drift(differences, scale=SCALE, slack=slack)
        rows.append(
            AnchorDrift(
                judge=judge.name,
                criterion=rubric.criterion,
                anchors=len(wanted),
                scored=len(differences),
                off=float(np.mean(differences)) if differences else None,
                evidence=found.largest,
                changed=found.largest >= STRONG,
                slack=slack,
            )
        )
    return rows
