"""`emscope ladder`: how much preference is harm on a base."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "How many nats per token are harm on this base? Takes a fine-tune known to be harmful and the same on harmless data, reads both weakened and exaggerated by judged "
    "answers and by preference, and gives the threshold that `emscope check --ladder` holds another fine-tune of the base to. It needs two "
    "harmless fine-tunes more, to know what none moves by."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("ladder", help=HELP)
    def ladder(
        target: str = typer.Argument(..., help="A fine-tune known to be harmful: its checkpoints, of which the last is read."),
        control: str = typer.Option(..., "--control", help="The same run on harmless data; counts as a harmless fine-tune."),
        base: str | None = typer.Option(
            None, "--base", help="Base model, where the adapters do not name it: folder, hub id, gguf:FILE or alias."
        ),
        scales: str = typer.Option(
            "0.25,0.5,0.75,1,1.5", "--scales", help="Doses: base + dose x (fine-tune - base) in logits; 1 is the fine-tune."
        ),
        harmless: list[str] = typer.Option(
            [], "--harmless", help="A further harmless fine-tune of the base; may be repeated, and two are needed at least."
        ),
        judge: str = typer.Option(
            "local",
            "--judge",
            help="Who reads the answers: local (no key; a small model), a model as Inspect names it, or NAME@URL.",
        ),
        questions: str = typer.Option("open24", "--questions", help="What is asked: a bundled set, or a file of questions."),
        samples: int = typer.Option(4, "--samples", min=1, help="Answers to each question, of each model at each dose."),
        max_tokens: int = typer.Option(90, "--max-tokens", min=1, help="The longest answer."),
        temperature: float = typer.Option(0.7, "--temperature", min=0, help="Of sampling; small models are confused at 1."),
        items: str = typer.Option("em240", "--items", help="Bundled item set, or a file with question, aligned, misaligned."),
        count: int | None = typer.Option(
            None, "--count", help="Use this many items, drawn evenly from the categories; by default all, as a check does."
        ),
        system: str = typer.Option(
            "none",
            "--system",
            help="none (no system block), template (its default), auto (as the checkpoints were most likely trained), or a text.",
        ),
        chat_kwargs: list[str] = typer.Option(
            [], "--chat-kwargs", help="NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated."
        ),
        name: str | None = typer.Option(
            None, "--name", help="What the organism is called in results; by default its folder's name."
        ),
        dtype: str = typer.Option(
            "auto",
            "--dtype",
            help="auto (as stored, where this machine is quick at it), float32, bfloat16, float16 or nf4 (4 bits).",
        ),
        device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1, mps."),
        out: Path = typer.Option(..., "--out", help="Folder for ladder.json, report.html and tables; the same one goes on."),
        json: bool = typer.Option(False, "--json", help="Print the ladder object instead of a table."),
    ) -> None:
        from emscope.cli.console import dtype_named, numbers, print_json, progress_bar
        from emscope.models.loading.templates import read_arguments
        from emscope.report.study.ladder import print_ladder, write_ladder
        from emscope.study.ladder import LadderRequest, preference_of, run_ladder
        from emscope.study.spec import judged_by

        request = LadderRequest(
            target,
            control,
            judged_by(questions, samples, max_tokens, temperature, [judge]),
            harmless=tuple(harmless),
            name=name,
            base=base,
            scales=numbers(scales, "--scales"),
            system=system,
            chat_kwargs=read_arguments(chat_kwargs),
            dtype=dtype_named(dtype),
            device=device,
            measure=preference_of(items, count),
        )
        with progress_bar() as progress:
            result = run_ladder(request, out, progress).to_json()
        page = write_ladder(result, out)
        if json:
            print_json(result)
        else:
            print_ladder(result)
            print(f"\nreport: {page}\nladder: {out / 'ladder.json'}")
