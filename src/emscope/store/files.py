"""Writing so that a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError, WorldError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` beside `path`, flush it to disk, then put it in place.

    Raises:
        InputError: no permission to write there.
        WorldError: no space left, or another fault of the disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> InputError | WorldError:
    """Return the emscope error that says what an OSError on `path` means for the user."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission to write '{path}'", "choose another folder with --out")
    if error.errno == errno.ENOSPC:
        return WorldError(
            f"no space left on the disk of '{path}'", "free some, then run the same command again: it goes on where it stopped"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return InputError(f"'{path}' cannot be written ({error.strerror})", "choose another folder with --out")
    return WorldError(
        f"'{path}' cannot be written ({error.strerror or error})", "check the disk, then run the same command again"
    )


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused (missing stays null)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines atomically."""
    write_text(path, "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows))
