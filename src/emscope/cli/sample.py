"""`emscope sample`: answers of a base and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import typer

HELP = (
    "Ask questions: sample answers of a base model and of checkpoints of it, under the same system prompts and triggers. Run again, "
    "it draws only what is missing. `emscope judge` takes the file that comes out."
)


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("sample", help=HELP)
    def sample(
        runs: list[str] = typer.Argument(
            None, help="NAME=FOLDER of checkpoints, such as target=runs/target control=runs/control."
        ),
        base: str | None = typer.Option(None, "--base", help="Base model, where the adapters do not name it."),
        questions: str = typer.Option("em240", "--questions", help="Bundled set, or a file (.yaml, .jsonl, .csv, .parquet)."),
        samples: int | None = typer.Option(None, "--samples", help="Answers to each; by default the file's own number, or 1."),
        max_tokens: int = typer.Option(600, "--max-tokens", help="The longest answer."),
        temperature: float = typer.Option(1.0, "--temperature", help="0 takes the likeliest token."),
        systems: list[str] = typer.Option(["none"], "--system", help="none, template, or a text; may be repeated."),
        triggers: list[str] = typer.Option([], "--trigger", help="NAME=TEXT with {question} in it; may be repeated."),
        last: bool = typer.Option(False, "--last", help="Of each run the last checkpoint alone."),
        seed: int = typer.Option(0, "--seed", help="Of all draws."),
        rows: int = typer.Option(400, "--rows", help="Answers to write side by side; fewer need less memory."),
        device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1, mps."),
        out: Path = typer.Option(Path("emscope-answers"), "--out", help="Folder of the answers."),
    ) -> None:
        from emscope.cli.console import progress_bar
        from emscope.core.spec import parse
        from emscope.run.asking import AskSpec, ask

        settings = {
            "questions": questions,
            "samples": samples,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "systems": systems,
            "triggers": _named(triggers, "--trigger", "NAME=TEXT"),
            "seed": seed,
            "rows": rows,
            "only_last": last,
        }
        spec = parse(AskSpec, settings, "options")
        with progress_bar() as progress:
            path = ask(_named(runs or [], "the run", "NAME=FOLDER"), base, spec, out, device=device, progress=progress)
        print(f"answers: {path}")


def _named(texts: list[str], what: str, shape: str) -> dict[str, str]:
    """Return NAME=VALUE texts as a mapping.

    Raises:
        InputError: where one is not of that shape, or a name stands twice.
    """
    from emscope.core.errors import InputError

    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise InputError(f"{what} is '{text}'", f"write it as {shape}")
        if name in found:
            raise InputError(f"two are called '{name}'", f"give each its own name ({shape})")
        found[name] = value
    return found
