"""`emscope sample`: answers of a base and its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.answers.sample_spec import AskSpec, LoadSpec, ServedSpec
from emscope.cli.options import ARGUMENT, Without, pairs
from emscope.core.errors import InputError


def sample(
    *,
    runs: Annotated[
        tuple[str, ...],
        ARGUMENT,
        Field(
            description="NAME=FOLDER of checkpoints, here or at a host, such as target=runs/target control=runs/control; "
            "NAME=MODEL@URL of a server, or NAME=api:openai/gpt-4o, as Inspect names models."
        ),
    ] = (),
    base: Annotated[str | None, Field(description="Base model, if the adapters do not name it.")] = None,
    spec: AskSpec,
    loading: LoadSpec,
    serving: Annotated[ServedSpec, Without(("chat_kwargs",))],
    out: Annotated[Path, Field(description="Folder of the answers.")] = Path("emscope-answers"),
) -> int:
    """Ask questions: sample answers of a base model and its checkpoints, under the same system prompts and triggers. Run again, it
    samples only what is missing. `emscope judge` takes the resulting file.
    """
    from emscope.answers.sample import ask
    from emscope.answers.sample_hosted import ask_hosted, is_hosted
    from emscope.answers.sample_served import ask_served
    from emscope.cli.console import progress_bar

    named = pairs(list(runs), "the run", "NAME=FOLDER")
    failed = 0
    asked: list[str] = []
    with progress_bar() as progress:
        if _behind_an_api(named, serving, loading, base):
            served = serving.model_copy(update={"chat_kwargs": loading.chat_kwargs})
            path, failed = ask_served(named, spec, served, out, say=asked.append, progress=progress)
        elif any(is_hosted(folder) for folder in named.values()):
            if base is not None:
                raise InputError("`base` is a model to load here, but these runs are at a host", "leave it out")
            path = ask_hosted(named, spec, loading, serving, out, say=asked.append, progress=progress)
        else:
            path = ask(named, base, spec, out, loading, say=asked.append, progress=progress)
    for line in asked:
        print(line)
    print(f"answers: {path}")
    if failed:
        print(f"{failed} questions got no answer, since every attempt failed; run the same command again to retry")
    return 1 if failed else 0


def _behind_an_api(runs: dict[str, str], serving: ServedSpec, loading: LoadSpec, base: str | None) -> bool:
    """True where models behind an API are asked; False where they are loaded here.

    Raises:
        InputError: some are and some are not, or options that exclude each other.
    """
    from emscope.answers.sample_served import is_served

    kinds = {is_served(reference) for reference in runs.values()}
    if len(kinds) == 2:
        raise InputError(
            "some runs are folders and some are models behind an API", "sample them in two calls, each with its own `out`"
        )
    if serving.server is None and serving.command is not None:
        raise InputError("`command` is given without `server`", "give its address with `server=MODEL@URL`")
    if serving.server is not None and True in kinds:
        raise InputError("`server` takes adapters, but a run names its own model", "give folders, or leave out `server`")
    served = serving.server is not None or True in kinds
    if served and base is not None:
        raise InputError("`base` is a model to load here", "a server has its own; leave out `base`")
    if served and loading.share:
        raise InputError("`share` is given with a server", "raise `connections` instead")
    if served and loading.amplify != (1.0,):
        raise InputError("`amplify` needs the base's logits beside the model's", "give folders of checkpoints")
    return served
