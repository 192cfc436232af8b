"""`emscope export`: judged answers as Inspect logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Files
from emscope.core.fields import AnswerText, QuestionText


def export(
    files: Annotated[Files, Field(description="Judged answers (.csv, .jsonl, .parquet).")],
    out: Annotated[Path, Field(description="Folder of the logs.")] = Path("emscope-logs"),
    by: Annotated[tuple[str, ...], Field(description="Columns whose values define one log each, such as run,step.")] = (),
    scores: Annotated[
        tuple[str, ...],
        Field(description="Columns of scores; by default those with a NAME_outcome column."),
    ] = (),
    question: QuestionText = None,
    answer: AnswerText = None,
    task: Annotated[str, Field(description="Name of the task in the logs.")] = "emscope",
) -> None:
    """Write judged answers as Inspect logs, one for each group, to look through them with `inspect view`. `emscope rates`, `agreement` and
    `distil` read Inspect's logs in turn, these and any other.
    """
    from emscope.answers.export import export_logs
    from emscope.cli.console import progress_bar

    with progress_bar() as progress:
        written = export_logs(files, out, by=by, scores=scores, question=question, answer=answer, task=task, progress=progress)
    print(f"{len(written)} logs in {out}; look at them with: inspect view --log-dir {out}")
