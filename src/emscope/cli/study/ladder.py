"""`emscope ladder`: how much preference is harm on a base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Base, Behind, Json
from emscope.study.check_spec import LadderSpec


def ladder(
    *,
    target: Annotated[
        str, ARGUMENT, Field(description="A fine-tune known to be harmful: its checkpoints; the last one is read.")
    ],
    base: Annotated[Base, Behind("control")] = None,
    spec: LadderSpec,
    out: Annotated[Path, Field(description="Folder for ladder.json, report.html and tables; an existing one is continued.")],
    as_json: Json = False,
) -> None:
    """How many nats per token count as harm on this base? Takes a fine-tune known to be harmful and the same on harmless data, reads both
    weakened and exaggerated, by judged answers and by preference, and gives the threshold that `emscope check --ladder` applies
    to other fine-tunes of the base. It needs two more harmless fine-tunes, to know how far those move.
    """
    from emscope.cli.console import print_json, progress_bar
    from emscope.report.study.ladder import print_ladder, write_ladder
    from emscope.study.ladder import LadderRequest, run_ladder

    with progress_bar() as progress:
        result = run_ladder(LadderRequest.of(target, base, spec), out, progress)
    page = write_ladder(result, out)
    if as_json:
        print_json(result.to_json())
    else:
        print_ladder(result)
        print(f"\nreport: {page}\nladder: {out / 'ladder.json'}")
