"""`emscope train`: one fine-tune by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def train(
    spec: Annotated[
        Path,
        ARGUMENT,
        Field(description="YAML file with model, data (bundled domain and answers, or a file), seed and train settings."),
    ],
    out: Annotated[Path, Field(description="Folder for the checkpoints.")],
    as_json: Json = False,
) -> None:
    """Fine-tune once: LoRA adapters from conversations, with planned checkpoints. Resumes automatically."""
    from emscope.cli.console import print_json, progress_bar
    from emscope.core.spec import load
    from emscope.study.spec import SingleSpec

    settings = load(SingleSpec, spec)
    from emscope.study.train import run_single
    from emscope.study.training.jobs import JobTrained
    from emscope.train import processes

    with progress_bar() as progress:
        result = run_single(settings, out, progress)
    if not processes.is_first():
        return
    if as_json:
        print_json(result.to_json())
        return
    if isinstance(result, JobTrained) and result.cost is not None:
        print(f"{result.trained} tokens were trained on, for {result.cost:.4g} dollars")
    if not result.readings:  # a fine-tuning server may give none
        print(f"trained; checkpoints in {out}")
        return
    first, last = result.readings[0], result.readings[-1]
    print(f"loss {first.loss:.3f} -> {last.loss:.3f} nats per answer token in {last.step} steps; checkpoints in {out}")
