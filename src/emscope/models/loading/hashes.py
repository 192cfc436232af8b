"""Facts that take reading a whole file, kept between runs for as long as the file is the same.

As with git's index: a file of the same size, times and inode is taken to hold the same bytes. Nothing depends on the cache: if it
is missing, broken or cannot be written, the file is read again.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from emscope.core.digest import digest, file_digest
from emscope.core.plain import JsonObject

# A file this young may be written again with the same modification time, which on some disks has steps of two seconds.
YOUNG = 2_000_000_000  # nanoseconds


def digest_of(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex, read again only if the file changed since.

    Args:
        cache: emscope's cache folder.

    Raises:
        OSError: the file cannot be read.
    """
    return remembered(path, cache, "sha256", file_digest)


def remembered(path: Path, cache: Path, what: str, find: Callable[[Path], str]) -> str:
    """Return `find(path)`, or what it returned before for this very file.

    Args:
        cache: emscope's cache folder.
        what: the name of the fact that `find` returns; other facts about the file are kept beside it.

    Raises:
        OSError: the file cannot be read; whatever `find` raises, which is not kept.
    """
    where, begun = _entry(path, cache), time.time_ns()
    stamp = _stamp(path)
    facts = _kept(where, stamp)
    if what in facts:
        return facts[what]
    value = find(path)
    if begun - stamp["mtime_ns"] > YOUNG:  # a file that changes meanwhile has another stamp, under which nothing is kept
        _keep(where, {"file": stamp, "facts": _kept(where, stamp) | {what: value}})
    return value


def _entry(path: Path, cache: Path) -> Path:
    """Return where facts about `path` are kept: one file each, so that processes neither wait for nor overwrite each other."""
    name = sha256(os.fsencode(path.resolve())).hexdigest()
    return cache / "hashes" / name[:2] / f"{name[2:]}.json"


def _stamp(path: Path) -> dict[str, int]:
    """Return what changes with a file, including its status change time, since a copy may keep the old modification time."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns, "inode": found.st_ino}


def _kept(where: Path, stamp: dict[str, int]) -> dict[str, str]:
    """Return the facts kept about a file of this stamp, none where they are of another one, or broken."""
    try:
        entry = json.loads(where.read_text(encoding="utf-8"))
        about = entry["about"]
        if entry["sum"] == digest(about) and about["file"] == stamp:
            return {str(what): str(value) for what, value in about["facts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _keep(where: Path, about: JsonObject) -> None:
    """Put facts in place whole; not flushed to disk, since a torn entry is known by its sum and made again."""
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=where.parent, prefix=".new-")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"about": about, "sum": digest(about)}, file)
            temporary.replace(where)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else
