"""`emscope distil`: a cheap proxy from a reference judge's verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.distil_spec import DistilSpec
from emscope.cli.options import Files, Json


def distil(
    *,
    files: Annotated[Files, Field(description="Answers, all or some of them judged.")],
    out: Annotated[
        Path | None,
        Field(
            description="Folder of the classifier and predicted.parquet; by default emscope-distilled, with `use` the file's name with -predicted."
        ),
    ] = None,
    use: Annotated[
        Path | None,
        Field(description="Folder of a classifier distilled before: score the file with it, and learn nothing."),
    ] = None,
    spec: DistilSpec,
    as_json: Json = False,
) -> None:
    """Learn a judge's verdicts: fit a small text classifier on the judged answers of a file, say how well it agrees on what it has not
    seen, and score every answer with it. `emscope rates --cheap predicted` corrects those scores by the verdicts.
    """
    from emscope.answers.distil import distil as learn
    from emscope.answers.distil import predict
    from emscope.cli.console import print_json, progress_bar
    from emscope.report.answers.distil import print_distilled
    from emscope.report.figures import write_figures

    if use is not None:
        out = out or Path(f"{files[0].name.split('.')[0]}-predicted")
        path = predict(files, use, out, question=spec.question, answer=spec.answer)
        if as_json:
            print_json({"schema": 1, "predicted": str(path), "judge": str(use)})
        else:
            print(f"rows: {path}")
        return
    out = out or Path("emscope-distilled")
    with progress_bar() as progress:
        result = learn(files, spec, out, progress=progress)
    write_figures(list(result.figures().values()), out / "calibration.html", "Distilled judge")
    if as_json:
        print_json(result.to_json())
    else:
        print_distilled(result)
