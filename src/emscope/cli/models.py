"""`emscope models`: models with a short name, fetched and converted ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import ARGUMENT, Json


def list_models(as_json: Json = False) -> None:
    """List the short names and whether each is in the cache."""
    from emscope.cli.console import print_json
    from emscope.models.loading.aliases import ALIASES, cached
    from emscope.models.loading.source import cache_folder

    sources = {n: w.wheels[0] if len(w.wheels) == 1 else f"{w.wheels[0]} to {w.wheels[-1]}" for n, w in ALIASES.items()}
    kept = {name: cached(name, cache_folder()) for name in ALIASES}
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "source": sources[name],
                    "sha256": w.gguf_sha256,
                    "licence": w.licence,
                    "parameters": w.parameters,
                    "cached": kept[name],
                }
                for name, w in ALIASES.items()
            ]
        )
        return
    for name, w in ALIASES.items():
        size, here = f"{w.parameters / 1e6:.0f}M parameters", "cached" if kept[name] else "not fetched"
        print(f"{name}  {size}  {w.licence}  {sources[name]}  {here}")


def fetch(
    name: Annotated[
        str, ARGUMENT, Field(description="Short name, hub id, folder or gguf:FILE; or the folder of a fine-tune at a host.")
    ],
) -> None:
    """Fetch and convert a model, so that everything works offline afterwards; or download the adapters of a fine-tune at a host."""
    from emscope.models.loading.checkpoints import HOSTED
    from emscope.models.loading.quiet import quiet
    from emscope.models.loading.source import locate

    if (folder := Path(name).expanduser() / HOSTED).is_file():
        from emscope.cli.console import progress_bar
        from emscope.models.remote.downloading import download_adapters

        with progress_bar() as progress:
            found = download_adapters(folder.parent, progress)
        print("\n".join(str(one.folder) for one in found))
        return

    quiet()
    model = locate(name)
    print(f"{model.folder}\nweights {model.digest[:16]}")


def import_job(
    job: Annotated[str, ARGUMENT, Field(description="Id of a fine-tuning job, such as ftjob-abc123.")],
    out: Annotated[Path, Field(description="Folder for its record; emscope check takes it like any other.")],
) -> None:
    """Import a fine-tuning job at OpenAI, or at the server in OPENAI_BASE_URL, into a folder: its base, its checkpoints, its log."""
    from emscope.cli.console import progress_bar
    from emscope.study.training.jobs import import_job

    with progress_bar() as progress:
        run = import_job(job, out, progress)
    for one in run.checkpoints:
        print(f"step {one.step}  {one.model}")
    print(f"{run.job} {run.status}, a fine-tune of {run.base}: {out}")


COMMANDS = {"list": list_models, "fetch": fetch, "import": import_job}
