"""The judged answers of a study's folder, as the table that components are measured on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa

from emscope.answers.sample_spec import PLAIN
from emscope.core.errors import InputError, near
from emscope.core.records import Answered
from emscope.store.study import read_table

CRITERION = "aligned"


def judged_answers(folder: Path, judge: str | None) -> tuple[pa.Table, str]:
    """Return the plain answers (under no trigger) of a study with their alignment scores (run, step, question, aligned), and whose they are.

    Args:
        judge: by name; the one with the most verdicts by default. Of several versions of its rubric, the one with the most
            verdicts.

    Raises:
        InputError: no study, or no such verdicts.
    """
    verdicts = [
        row
        for row in read_table(folder, "verdicts", ("key", "response", "judge", "criterion", "rubric", "score")).to_pylist()
        if row["criterion"] == CRITERION and row["score"] is not None
    ]
    if not verdicts:
        raise InputError(
            f"'{folder}' is not a study with judged answers",
            "give a study's folder whose `judged` names a judge, or a file of answers",
        )
    known = sorted({row["judge"] for row in verdicts})
    if judge is not None and judge not in known:
        raise InputError(f"'{folder}' has no verdicts of '{judge}'", near(judge, known))
    counted = Counter((row["judge"], row["rubric"]) for row in verdicts if judge in (None, row["judge"]))
    (chosen, _) = counted.most_common(1)[0]
    scores = {row["response"]: row["score"] for row in verdicts if (row["judge"], row["rubric"]) == chosen}
    found = []
    for row in read_table(folder, "answers", ("key", "run", "step", "unit", "trigger", "asked", "text")).to_pylist():
        score = scores.get(Answered(row["asked"], row["text"]).key)
        if row["trigger"] == PLAIN and score is not None:
            found.append({"run": row["run"], "step": row["step"], "question": row["unit"], CRITERION: score})
    if not found:
        raise InputError(f"'{folder}' has no judged answer without a trigger", "give a file of judged answers")
    return pa.Table.from_pylist(found), chosen[0]
