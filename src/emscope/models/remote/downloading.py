"""Adapters that a host keeps, downloaded as PEFT folders for commands that look inside a model."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request

from emscope.core.errors import InputError, WorldError
from emscope.core.progress import Progress, silent
from emscope.models.loading.checkpoints import ADAPTER, HOSTED, WEIGHTS, Checkpoint, discover
from emscope.models.remote.hosted import hosted_checkpoints, read_hosted
from emscope.models.remote.metering import Meter
from emscope.models.remote.outcomes import LATER, PASSING
from emscope.models.remote.served import OPENER
from emscope.models.remote.session import ATTEMPTS, pause_after
from emscope.models.remote.tinker import Tinker

ADAPTERS = "adapters"
TIMEOUT = 60.0  # seconds without a byte
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def download_adapters(folder: Path, progress: Progress = silent) -> list[Checkpoint]:
    """Download the adapters of a fine-tune at a host into `adapters/checkpoint-N` of its folder; existing ones stay.

    Raises:
        InputError: it is not such a folder, or has saved nothing yet; no key.
        WorldError: the host does not provide them.
    """
    run = read_hosted(folder)
    if run is None:
        raise InputError(f"'{folder}' holds no {HOSTED}", "give the folder that emscope train wrote for a fine-tune at a host")
    checkpoints, into = hosted_checkpoints(folder, run), folder / ADAPTERS
    missing = [c for c in checkpoints if not (into / f"checkpoint-{c.step}").is_dir()]
    if missing:
        with Tinker(Meter()) as tinker:
            for done, one in enumerate(missing):
                progress("downloading adapters", done, len(missing))
                _download(tinker, one.state, into / f"checkpoint-{one.step}")
    progress("downloading adapters", 1, 1)
    return discover(str(into))


def _download(tinker: Tinker, state: str, place: Path) -> None:
    """Write the adapter in saved weights to `place`, whole or not at all."""
    path, urls = tinker.exported(state)
    lacking = next((name for name in (ADAPTER, WEIGHTS) if name not in urls), None)
    if lacking:
        raise WorldError(
            f"the export of {state} holds no {lacking} ({', '.join(sorted(urls)) or 'no files'})", "see Tinker's documentation"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=place.parent, prefix=".emscope-"))
    try:
        for name in (ADAPTER, WEIGHTS):
            _fetch(urls, name, unfinished / name)
        unfinished.chmod(0o755)
        unfinished.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        tinker.delete(path)


def _fetch(urls: Mapping[str, str], name: str, to: Path) -> None:
    """Write one file; its address is signed and contains the credentials, so it is never shown and never sent a key.

    Raises:
        WorldError: it cannot be downloaded.
    """
    parts = urlsplit(urls[name])
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise WorldError(f"the host gives {name} at an address that is not https", "see Tinker's documentation")
    last = ""
    for attempt in range(ATTEMPTS):
        try:
            with OPENER.open(Request(urls[name]), timeout=TIMEOUT) as reply, to.open("wb") as file:  # noqa: S310 (checked above)
                shutil.copyfileobj(reply, file)
                if int(reply.headers.get("content-length", to.stat().st_size)) == file.tell():
                    return
                last = "it came short"
        except HTTPError as error:
            last = f"HTTP {error.code}"
            if error.code < 500 and error.code not in PASSING:
                break
        except (OSError, HTTPException) as error:
            last = type(error).__name__
        with suppress(OSError):
            to.unlink()
        time.sleep(pause_after(attempt))
    raise WorldError(f"{name} cannot be downloaded ({last})", LATER)
