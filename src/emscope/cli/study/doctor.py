"""`emscope doctor`: what this machine has, how fast it is, and whether emscope works on one model."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import Field

from emscope.cli.options import Json
from emscope.core.errors import InputError
from emscope.core.fields import AUTO, Device
from emscope.core.plain import Json as JsonValue


def doctor(
    model: Annotated[
        str | None,
        Field(description="The model to examine: folder, hub id, alias, or a folder with config.json and tokenizer alone."),
    ] = None,
    adapter: Annotated[str | None, Field(description="Folder of a PEFT adapter on it; its last checkpoint.")] = None,
    tiny: Annotated[bool, Field(description="Examine a tiny random copy of the model, even if its weights fit.")] = False,
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Show versions, device, cache, and the machine's matrix-multiplication rate. With `model`: test whether reading, sampling, edits at
    every site and the chat template work for it, and how much memory it needs. Exit code 1 where a check fails.
    """
    if model is not None:
        _examine(model, adapter, device, tiny=tiny, as_json=as_json)
        return
    if adapter is not None or tiny:
        raise InputError(f"`{'adapter' if adapter is not None else 'tiny'}` is given without `model`", "name the model too")
    _machine(as_json=as_json)


def _examine(model: str, adapter: str | None, device: str, *, tiny: bool, as_json: bool) -> None:
    from emscope.cli.console import print_json, progress_bar
    from emscope.models.loading.quiet import quiet
    from emscope.report.study.doctor import print_diagnosis
    from emscope.study.doctor import diagnose

    quiet()
    with progress_bar() as progress:
        found = diagnose(model, adapter=adapter, tiny=tiny, device=device, progress=progress)
    if as_json:
        print_json(found.to_json())
    else:
        print_diagnosis(found)
    if found.failed:
        raise typer.Exit(1)


def _machine(*, as_json: bool) -> None:
    import torch

    from emscope.cli.console import print_json
    from emscope.models.fast.matmul_rate import matmul_gflops
    from emscope.models.loading.aliases import ALIASES, cached
    from emscope.models.loading.load import HALVES, is_quick, pick_device
    from emscope.models.loading.source import cache_folder
    from emscope.models.made_with import made_with

    found: dict[str, JsonValue] = {
        "versions": made_with(),
        "device": pick_device("auto"),
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(matmul_gflops(), 1),
        "quick_16_bit": [d for d in HALVES if is_quick(d, pick_device("auto"))],
        "cache": str(cache_folder()),
        "cached_models": [n for n in ALIASES if cached(n, cache_folder())],
    }
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        listed = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        print(f"{name:14} {', '.join(listed) or 'none' if isinstance(listed, list) else value}")
