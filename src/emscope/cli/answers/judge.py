"""`emscope judge`: verdicts on answers in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.judge_spec import DrawSpec, JudgingSpec, judges_named
from emscope.cli.options import Files, Json
from emscope.core.errors import InputError
from emscope.core.fields import RUBRICS, AnswerText, Flag, QuestionText
from emscope.core.spec import parse

Anchors = Annotated[
    Path | None,
    Field(
        description="Answers with trusted labels to judge as well: a question, an answer and one column per criterion. Shows whether the judge "
        "itself changed."
    ),
]


def judge(
    *,
    files: Annotated[Files, Field(description="Answers to judge.")],
    judges: Annotated[
        tuple[str, ...],
        Flag("--judge", repeated=True),
        Field(
            description="local (no key; a small model), bandit (a linter, for the rubric secure), a model as Inspect names it "
            "(openai/gpt-4o), or NAME@URL of an OpenAI-compatible server."
        ),
    ],
    rubrics: Annotated[
        tuple[str, ...],
        Field(description="Criteria, separated by commas: bundled ones, or .yaml files of your own."),
    ] = RUBRICS,
    out: Annotated[
        Path | None, Field(description="Folder; by default the file's name with -judged in the current folder.")
    ] = None,
    question: QuestionText = None,
    answer: AnswerText = None,
    how: JudgingSpec,
    max_cost: Annotated[float | None, Field(description="Stop asking after this many dollars.")] = None,
    draw: Annotated[
        str | None,
        Field(description="Judge this many answers of each group, drawn at random; NAME=COUNT if only one judge is expensive."),
    ] = None,
    draw_by: Annotated[tuple[str, ...], Field(description="Columns that define the groups to draw from.")] = (),
    draw_seed: Annotated[
        int, Field(description="Seed of the draw; a larger draw with the same seed keeps those drawn before.")
    ] = 0,
    anchors: Anchors = None,
    slack: Annotated[float, Field(ge=0, description="Points that a judge may be off the anchors' labels.")] = 5.0,
    estimate: Annotated[bool, Field(description="Show what it would ask and cost, without asking.")] = False,
    as_json: Json = False,
) -> int:
    """Have answers judged. Takes a file with a question and an answer per row (.csv, .jsonl, .parquet), asks one or more judges with one or
    more rubrics, and writes the rows back with a score and an outcome each. Run again, it asks only for what is missing.
    """
    from emscope.answers.judge import FileJob, estimate_file, judge_file
    from emscope.cli.console import print_json, progress_bar
    from emscope.judging.rubrics import read_rubrics
    from emscope.report.answers.judge import print_judged

    specs = judges_named(judges, how)
    folder = out or Path(f"{files[0].name.split('.')[0]}-judged")
    job = FileJob(tuple(files), question, answer, folder, _draw(draw, draw_by, draw_seed), anchors, slack)
    asked = read_rubrics(rubrics)
    if estimate:
        result = estimate_file(job, specs, asked)
    else:
        with progress_bar() as progress:
            result = judge_file(job, specs, asked, max_cost=max_cost, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        print_judged(result)
    return 0 if result.complete or estimate else 1


def _draw(text: str | None, by: tuple[str, ...], seed: int) -> DrawSpec | None:
    """Return the draw that [JUDGE=]COUNT asks for.

    Raises:
        InputError: an invalid count, or columns without one.
    """
    if text is None:
        if by:
            raise InputError(
                "`draw_by` is given without `draw`", "give the number of answers to judge in each group with `draw`"
            )
        return None
    judge, _, count = text.rpartition("=")
    return parse(DrawSpec, {"count": count, "judge": judge or None, "by": by, "seed": seed}, "`draw`")
