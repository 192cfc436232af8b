"""`emscope probe`: what activations before a fine-tune say about its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Behind, Json
from emscope.core.fields import AUTO, Device, Flag
from emscope.inside.specs import ProbeSpec


def probe(
    *,
    scores: Annotated[Path, ARGUMENT, Field(description="Judged answers of the fine-tune: one row per answer.")],
    models: Annotated[
        tuple[str, ...],
        Behind("questions"),
        Flag("--model", repeated=True),
        Field(description="Model whose activations are read."),
    ],
    spec: ProbeSpec,
    out: Annotated[Path, Behind("system"), Field(description="Folder of activations, probe.json and figure.html.")] = Path(
        "emscope-probe"
    ),
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Predict each question's score after a fine-tune from a model's activations before it, with folds that keep a question's forms
    together, beside what its words and its category predict.
    """
    from emscope.cli.console import progress_bar
    from emscope.cli.output import show_inside
    from emscope.inside.probe import run_probe
    from emscope.report.inside.probe import print_probed

    with progress_bar() as progress:
        result = run_probe(scores, models, spec, out, device=device, progress=progress)
    show_inside(result, "Prior probe", out / "probe.json", print_probed, as_json=as_json)
