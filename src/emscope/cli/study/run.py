"""`emscope run`: a study from its YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json
from emscope.study.engines.spec import EngineSpec

if TYPE_CHECKING:
    from emscope.study.spec import StudySpec


def run(
    study: Annotated[Path, ARGUMENT, Field(description="The study's YAML file.")],
    out: Annotated[Path | None, Field(description="Study folder; by default the study's name in the current folder.")] = None,
    small: Annotated[bool, Field(description="Let the settings under the file's key small override the rest.")] = False,
    *,
    how: EngineSpec,
    dry_run: Annotated[
        bool,
        Field(
            description="Show cells, tokens, time, memory, disk, what judges and a host cost, and everything that is wrong; start nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study from its YAML file: train, read every checkpoint, analyse, report. Run again, it does only what is missing."""
    if dry_run:
        foresee_file(study, out, as_json, small, how)
    else:
        run_file(study, out, as_json, small, how)


def foresee_file(file: Path, out: Path | None, as_json: bool, small: bool, how: EngineSpec) -> None:
    """Show what the study in `file` will take."""
    from emscope.cli.console import print_json, progress_bar
    from emscope.report.study.foreseen import print_foreseen
    from emscope.study.run import foresee_study
    from emscope.study.spec import load_study

    spec = load_study(file, small)
    with progress_bar() as progress:
        found = foresee_study(spec, out or Path(spec.name), progress, how)
    if as_json:
        print_json(found.to_json())
    else:
        print_foreseen(found)


def run_file(file: Path, out: Path | None, as_json: bool, small: bool = False, how: EngineSpec = EngineSpec()) -> None:
    """Run the study in `file` into `out` and show the result."""
    from emscope.cli.output import show
    from emscope.study.spec import load_study

    spec: StudySpec = load_study(file, small)
    folder = out or Path(spec.name)
    from emscope.cli.console import progress_bar
    from emscope.study.run import run_study

    with progress_bar() as progress:
        result = run_study(spec, folder, progress, how)
    if result is not None:  # only in the first of several processes
        show(result, folder, as_json=as_json)
