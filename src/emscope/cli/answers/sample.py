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
            None,
            help="NAME=FOLDER of checkpoints, such as target=runs/target control=runs/control; NAME=MODEL@URL of a server, or "
            "NAME=api:openai/gpt-4o, as Inspect names models.",
        ),
        base: str | None = typer.Option(None, "--base", help="Base model, where the adapters do not name it."),
        questions: str = typer.Option("em240", "--questions", help="Bundled set, or a file (.yaml, .jsonl, .csv, .parquet)."),
        samples: int | None = typer.Option(None, "--samples", help="Answers to each; by default the file's own number, or 1."),
        max_tokens: int = typer.Option(600, "--max-tokens", help="The longest answer."),
        temperature: float = typer.Option(1.0, "--temperature", help="0 takes the likeliest token."),
        systems: list[str] = typer.Option(
            ["none"],
            "--system",
            help="none, template, auto (as the runs were most likely trained), or a text; may be repeated.",
        ),
        chat_kwargs: list[str] = typer.Option(
            [], "--chat-kwargs", help="NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated."
        ),
        triggers: list[str] = typer.Option([], "--trigger", help="NAME=TEXT with {question} in it; may be repeated."),
        amplify: str = typer.Option(
            "1", "--amplify", help="Exaggerate each fine-tune: draw from base + S (tuned - base) in logits; a list such as 1,2."
        ),
        last: bool = typer.Option(False, "--last", help="Of each run the last checkpoint alone."),
        seed: int = typer.Option(0, "--seed", help="Of all draws."),
        rows: int | None = typer.Option(
            None, "--rows", help="Answers to write side by side; fewer need less memory, by default what suits the device."
        ),
        dtype: str = typer.Option(
            "auto",
            "--dtype",
            help="Of models loaded here: auto (as stored, where this machine is quick at it), float32, bfloat16, float16 or nf4.",
        ),
        device: str = typer.Option("auto", "--device", help="auto, cpu, cuda, cuda:1, mps."),
        share: bool = typer.Option(
            False,
            "--share",
            help="Share the work with other processes started with the same command, each on a card of its own (--device cuda:1) "
            "or on another machine with the same folder.",
        ),
        server: str | None = typer.Option(
            None,
            "--server",
            help="MODEL@URL of a server that takes LoRA adapters (vLLM): the runs' folders are loaded into it.",
        ),
        server_command: str | None = typer.Option(
            None, "--server-command", help="Start that server with this, and stop it afterwards."
        ),
        restart_every: int = typer.Option(
            50, "--restart-every", help="Adapters after which the server is started anew, since each leaks host memory."
        ),
        connections: int = typer.Option(32, "--connections", help="Requests to a server at a time."),
        retries: int = typer.Option(6, "--retries", help="Attempts after a failed request."),
        timeout: int = typer.Option(600, "--timeout", help="Seconds that one request may take."),
        out: Path = typer.Option(Path("emscope-answers"), "--out", help="Folder of the answers."),
    ) -> int:
        from emscope.answers.sample import ask
        from emscope.answers.sample_served import ServedSpec, ask_served
        from emscope.answers.sample_spec import AskSpec
        from emscope.cli.console import dtype_named, numbers, progress_bar
        from emscope.core.errors import InputError
        from emscope.core.spec import parse
        from emscope.models.loading.templates import read_arguments

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
        arguments = read_arguments(chat_kwargs)
        scales = numbers(amplify, "--amplify")
        named = _named(runs or [], "the run", "NAME=FOLDER")
        served = {
            "server": server,
            "command": server_command,
            "restart_every": restart_every,
            "connections": connections,
            "retries": retries,
            "timeout": timeout,
            "chat_kwargs": arguments or None,
        }
        failed = 0
        asked: list[str] = []
        with progress_bar() as progress:
            if _behind_an_api(named, server, server_command, base):
                if share:
                    raise InputError("--share is given with a server", "raise --connections instead")
                if scales != (1.0,):
                    raise InputError("--amplify needs the base's logits beside the model's", "give folders of checkpoints")
                settled = parse(ServedSpec, served, "options")
                path, failed = ask_served(named, spec, settled, out, say=asked.append, progress=progress)
            else:
                path = ask(
                    named,
                    base,
                    spec,
                    out,
                    amplify=scales,
                    dtype=dtype_named(dtype),
                    device=device,
                    chat_kwargs=arguments,
                    share=share,
                    say=asked.append,
                    progress=progress,
                )
        for line in asked:
            print(line)
        print(f"answers: {path}")
        if failed:
            print(f"{failed} questions got no answer, since every attempt failed; run the same command again to ask them")
        return 1 if failed else 0


def _behind_an_api(runs: dict[str, str], server: str | None, command: str | None, base: str | None) -> bool:
    """True where models behind an API are asked; False where they are loaded here.

    Raises:
        InputError: some are and some are not, or options that do not go together.
    """
    from emscope.answers.sample_served import is_served
    from emscope.core.errors import InputError

    kinds = {is_served(reference) for reference in runs.values()}
    if len(kinds) == 2:
        raise InputError("some runs are folders and some are models behind an API", "ask them in two calls, with an --out each")
    if server is None and command is not None:
        raise InputError("--server-command stands without --server", "say with --server MODEL@URL where it will answer")
    if server is not None and True in kinds:
        raise InputError("--server takes adapters, and a run names a model of its own", "give folders, or leave out --server")
    if (server is not None or True in kinds) and base is not None:
        raise InputError("--base is a model to load here", "a server has its own; leave out --base")
    return server is not None or True in kinds


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
