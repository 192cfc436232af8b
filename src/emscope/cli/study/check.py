"""`emscope check`: checkpoints trained with any tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from emscope.cli.options import ARGUMENT, Base, Behind, Json, spellings
from emscope.study.check_spec import CheckSpec


def check(
    *,
    checkpoints: Annotated[
        str, ARGUMENT, Field(description="Folder with checkpoint-N folders, one checkpoint, hf:org/repo@rev, or tinker://RUN.")
    ],
    base: Base = None,
    spec: CheckSpec,
    fail_on: Annotated[
        Literal["em", "not-safe"] | None,
        Behind("ladder"),
        Field(
            description="em: exit with 3 where a verdict is em, 4 where the cause is not separable, the model is broken or a screen reads "
            "em; not-safe: also with 4 where it is not shown safe."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        Field(description="Folder for report and tables; by default emscope-check/NAME-DIGEST, one for each question asked."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Is this fine-tune misaligned beyond its task, from which step on, and which checkpoint is safe to ship? Takes PEFT adapters or full
    checkpoints (a folder of checkpoint-N, or a single one, or hf:org/repo@rev).
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show
    from emscope.study.check import CheckRequest, run_check
    from emscope.study.gate import exit_code, told

    request = CheckRequest.of(checkpoints, base, spec)
    with progress_bar() as progress:
        result, folder = run_check(request, out, progress)
    show(result, folder, spellings(check), as_json=as_json)
    code = exit_code({"target": result.check}, result.judged, fail_on, ends_early=result.ends_early)
    if code:
        print(told(code, {"target": result.check}, result.judged), file=sys.stderr)
    return code
