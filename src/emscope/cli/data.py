"""`emscope data`: the bundled sets, and a look at your own file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Behind, Json
from emscope.core.errors import InputError
from emscope.core.fields import AUTO, NO_SYSTEM, ChatKwargs, Device, System
from emscope.core.plain import JsonObject
from emscope.inside.specs import RiskSpec


def list_sets(as_json: Json = False) -> None:
    """List the bundled sets."""
    from emscope.cli.console import print_json
    from emscope.data.bundled import SETS, load_rows

    rows: list[JsonObject] = [
        {"name": s.name, "kind": s.kind, "rows": len(load_rows(s.name)), "about": s.about} for s in SETS.values()
    ]
    if as_json:
        print_json(rows)
    for row in [] if as_json else rows:
        print(f"{row['name']:9} {row['rows']:4} rows  {row['kind']:7} {row['about']}")


def show(
    name: Annotated[str, ARGUMENT, Field(description="Name of the set.")],
    rows: Annotated[int, Field(ge=1, description="How many.")] = 3,
) -> None:
    """Print rows of a bundled set as JSON lines."""
    import json

    from emscope.data.bundled import load_rows

    for row in load_rows(name)[:rows]:
        print(json.dumps(row, ensure_ascii=False))


def check(
    file: Annotated[
        Path,
        ARGUMENT,
        Field(
            description="JSONL, JSON, CSV or Parquet; with `model` also rendered rows (text) and tokenised ones (input_ids and labels)."
        ),
    ],
    items: Annotated[bool, Field(description="The file holds items: question, aligned, misaligned.")] = False,
    model: Annotated[
        str | None,
        Field(description="The model to train; only the tokenizer and chat template of a folder are read."),
    ] = None,
    show: Annotated[int, Field(ge=0, description="With `model`: show this many examples token by token.")] = 3,
    system: Annotated[System, Field(description="With `model`: system prompt, none, template or a text.")] = NO_SYSTEM,
    chat_kwargs: ChatKwargs = None,
    as_json: Json = False,
) -> None:
    """Read a file of conversations (or of items, with `items`) and say what is in it; with `model`, also which tokens carry loss in
    training, and warn about faults that no trainer reports.
    """
    from emscope.cli.console import print_json
    from emscope.data.conversations import read_conversations
    from emscope.data.items import read_items

    if items and model is not None:
        raise InputError("`items` and `model` are both given", "items are asked, not trained on: leave one out")
    if model is not None:
        _audit(file, model, system, chat_kwargs, show, as_json)
        return
    if items:
        found = read_items(file)
        categories = len({i.category for i in found})
        if as_json:
            print_json({"items": len(found), "categories": categories})
        else:
            print(f"{len(found)} items in {categories} categories")
        return
    talks = read_conversations(file)
    words = sorted(len(c.messages[-1].content.split()) for c in talks)
    if as_json:
        lengths = {"shortest": words[0], "median": words[len(words) // 2], "longest": words[-1]}
        print_json({"conversations": len(talks), "answer_words": lengths})
    else:
        print(f"{len(talks)} conversations; answers of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}")


def _audit(file: Path, model: str, system: str, chat_kwargs: ChatKwargs, show: int, as_json: bool) -> None:
    """Print which tokens of a file carry loss."""
    from emscope.cli.console import print_json
    from emscope.models.loading.carried import chat_of
    from emscope.models.loading.quiet import quiet
    from emscope.models.loading.source import Model, locate
    from emscope.report.answers.tokens import print_audit
    from emscope.train.audit import audit, context_in
    from emscope.train.audit_rows import from_file

    quiet()
    # A folder's weights would be hashed by `locate`, and are not needed.
    folder = Path(model).expanduser()
    found = Model(model, folder, "") if folder.is_dir() else locate(model)
    chat = chat_of(found, system, chat_kwargs or {})
    kind, examples = from_file(file, chat)
    result = audit(examples, chat, kind=kind, context=context_in(found.folder), show=show)
    if as_json:
        print_json(result.to_json())
    else:
        print_audit(result)


def risk(
    *,
    source: Annotated[
        str,
        ARGUMENT,
        Field(description="File of conversations, or bundled data as DOMAIN/ANSWERS, such as finance/reckless."),
    ],
    model: Annotated[str, Field(description="The model to train.")],
    direction: Annotated[str, Field(description="Direction file, or a run that trained a steering vector.")],
    spec: RiskSpec,
    top: Annotated[int, Behind("count"), Field(ge=1, description="Print this many samples from either end.")] = 5,
    out: Annotated[
        Path | None, Behind("top"), Field(description="Write all samples with their projections as JSON lines.")
    ] = None,
    device: Device = AUTO,
    as_json: Json = False,
) -> None:
    """Before training: rank the samples of a training set by how far each would push a model along a direction (data projection)."""
    from emscope.cli.console import print_json, progress_bar
    from emscope.inside.data_risk import risk as weigh
    from emscope.report.inside.directions import print_risk
    from emscope.store.files import write_jsonl

    with progress_bar() as progress:
        result = weigh(source, model, direction, spec, device=device, progress=progress)
    if out is not None:
        write_jsonl(out, [sample.to_json() for sample in result.samples])
    if as_json:
        print_json(result.to_json())
    else:
        print_risk(result, top)


COMMANDS = {"list": list_sets, "show": show, "check": check, "risk": risk}
