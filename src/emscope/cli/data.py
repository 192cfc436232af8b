"""`emscope data`: the bundled sets, and a look at a file of your own."""

from __future__ import annotations

from pathlib import Path

import typer

group = typer.Typer(help="Bundled data sets, and checks of your own files.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(group, name="data")


@group.command("list", help="List the bundled sets.")
def list_sets(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    from emscope.cli.console import print_json
    from emscope.data.bundled import SETS, load_rows

    rows = [{"name": s.name, "kind": s.kind, "rows": len(load_rows(s.name)), "about": s.about} for s in SETS.values()]
    if json:
        print_json(rows)
    for row in [] if json else rows:
        print(f"{row['name']:9} {row['rows']:4} rows  {row['kind']:7} {row['about']}")


@group.command("show", help="Print rows of a bundled set as JSON lines.")
def show(
    name: str = typer.Argument(..., help="Name of the set."), rows: int = typer.Option(3, "--rows", min=1, help="How many.")
) -> None:
    import json as codec

    from emscope.data.bundled import load_rows

    for row in load_rows(name)[:rows]:
        print(codec.dumps(row, ensure_ascii=False))


@group.command(
    "check",
    help="Read a file of conversations (or of items, with --items) and say what is in it; with --model, also which tokens carry loss "
    "when it is trained on, and warn of faults that no trainer reports.",
)
def check(
    file: Path = typer.Argument(
        ...,
        help="JSONL, JSON, CSV or Parquet; with --model also rendered rows (text) and tokenised ones (input_ids and labels).",
    ),
    items: bool = typer.Option(False, "--items", help="The file holds items: question, aligned, misaligned."),
    model: str | None = typer.Option(
        None, "--model", help="The model that is to be trained; of a folder only tokenizer and chat template are read."
    ),
    show: int = typer.Option(3, "--show", min=0, help="With --model: show so many examples token by token."),
    system: str = typer.Option("none", "--system", help="With --model: system prompt, none, template or a text."),
    chat_kwargs: list[str] = typer.Option(
        [], "--chat-kwargs", help="NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated."
    ),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    from emscope.cli.console import print_json
    from emscope.core.errors import InputError
    from emscope.data.conversations import read_conversations
    from emscope.data.items import read_items

    if items and model is not None:
        raise InputError("--items and --model are both given", "items are asked, not trained on: leave one out")
    if model is not None:
        _audit(file, model, system, chat_kwargs, show, json)
        return
    if items:
        found = read_items(file)
        categories = len({i.category for i in found})
        if json:
            print_json({"items": len(found), "categories": categories})
        else:
            print(f"{len(found)} items in {categories} categories")
        return
    talks = read_conversations(file)
    words = sorted(len(c.messages[-1].content.split()) for c in talks)
    if json:
        lengths = {"shortest": words[0], "median": words[len(words) // 2], "longest": words[-1]}
        print_json({"conversations": len(talks), "answer_words": lengths})
    else:
        print(f"{len(talks)} conversations; answers of {words[0]} to {words[-1]} words, median {words[len(words) // 2]}")


def _audit(file: Path, model: str, system: str, chat_kwargs: list[str], show: int, as_json: bool) -> None:
    """Print which tokens of a file carry loss."""
    from emscope.cli.console import print_json
    from emscope.models.loading.carried import chat_of
    from emscope.models.loading.quiet import quiet
    from emscope.models.loading.source import Model, locate
    from emscope.models.loading.templates import read_arguments
    from emscope.report.answers.tokens import print_audit
    from emscope.train.audit import audit, context_in
    from emscope.train.audit_rows import from_file

    quiet()
    # A folder's weights would be hashed by `locate`, and are not needed.
    folder = Path(model).expanduser()
    found = Model(model, folder, "") if folder.is_dir() else locate(model)
    chat = chat_of(found, system, read_arguments(chat_kwargs))
    kind, examples = from_file(file, chat)
    result = audit(examples, chat, kind=kind, context=context_in(found.folder), show=show).to_json()
    if as_json:
        print_json(result)
    else:
        print_audit(result)


@group.command(
    "risk",
    help="Before training: rank the samples of a training set by how far each would push a model along a direction (data projection).",
)
def risk(
    source: str = typer.Argument(
        ..., help="File of conversations, or bundled data as DOMAIN/ANSWERS, such as finance/reckless."
    ),
    model: str = typer.Option(..., "--model", help="The model that is to be trained."),
    direction: str = typer.Option(..., "--direction", help="Direction file, or a run that trained a steering vector."),
    layer: int | None = typer.Option(None, "--layer", help="Layer of the direction; needed where it has several."),
    against: str = typer.Option(
        "own", "--against", help="own: less the model's own answers; nothing: the training answers alone."
    ),
    max_tokens: int = typer.Option(64, "--max-tokens", help="The most tokens the model's own answers may have."),
    count: int | None = typer.Option(None, "--count", help="Weigh a random part of so many samples."),
    top: int = typer.Option(5, "--top", min=1, help="Print so many samples from either end."),
    out: Path | None = typer.Option(None, "--out", help="Write all samples with their projections as JSON lines."),
    system: str = typer.Option("none", "--system", help="System prompt: none, template, or a text."),
    seed: int = typer.Option(0, "--seed", help="Random seed."),
    device: str = typer.Option("auto", "--device", help="cpu, cuda, mps or auto."),
    json: bool = typer.Option(False, "--json", help="Print the result object instead of a table."),
) -> None:
    from emscope.cli.console import print_json, progress_bar
    from emscope.core.spec import parse
    from emscope.inside.data_risk import RiskSpec
    from emscope.inside.data_risk import risk as weigh
    from emscope.report.inside.directions import print_risk
    from emscope.store.files import write_jsonl

    settings = {
        "layer": layer,
        "against": against,
        "max_tokens": max_tokens,
        "count": count,
        "system": system,
        "seed": seed,
    }
    with progress_bar() as progress:
        result = weigh(source, model, direction, parse(RiskSpec, settings, "options"), device=device, progress=progress)
    if out is not None:
        write_jsonl(out, [sample.to_json() for sample in result.samples])
    if json:
        print_json(result.to_json())
    else:
        print_risk(result.to_json(), top)
