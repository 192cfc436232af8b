"""Writing so that a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from emscope.core.digest import short
from emscope.core.errors import InputError, WorldError
from emscope.core.limits import reason
from emscope.core.plain import Json
from emscope.core.visible import json_text, whole
from emscope.store.host import this_host

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

OURS, CUT_OFF = ".emscope-", ".part"  # a temporary file's name begins and ends so
FULL_IN_WORDS = f"(os error {errno.ENOSPC})"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)` beside `path`, flush it to disk, then put it in place.

    Raises:
        InputError: no permission to write there.
        WorldError: no space left, or another fault of the disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        with _temporary(path) as temporary:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from None


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the name of a new file beside `path` that is locked while it is written, so that only leftovers of killed processes are swept."""
    while True:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{OURS}{path.name[:40]}.", suffix=f".{short(this_host())}{CUT_OFF}"
        )
        _lock(handle, wait=True)
        if os.fstat(handle).st_nlink:  # else it was swept before it was locked
            break
        os.close(handle)
    try:
        yield Path(name)
    finally:
        os.close(handle)
        Path(name).unlink(missing_ok=True)


def _lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file; return False where somebody else has, or the system knows no such locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held, or a file system without locks
        return False
    return True


@cache  # a folder of many files is not listed for each
def _sweep_once(folder: Path) -> None:
    """Delete the temporary files that killed processes of this machine left in a folder; those of running ones are locked.

    On a shared file system a lock may hold on its own machine alone, so another machine's files are left to `sweep`.
    """
    for path in folder.glob(f"{OURS}*.{short(this_host())}{CUT_OFF}"):
        with suppress(OSError), path.open("rb") as file:
            if _lock(file.fileno(), wait=False):
                path.unlink()


def sweep(root: Path) -> None:
    """Delete the temporary files that killed processes left below a folder; only for the folder's sole holder."""
    for path in root.rglob(f"{OURS}*{CUT_OFF}"):
        path.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> InputError | WorldError:
    """Return the emscope error that says what an OSError while writing `path` means for the user."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission to write '{path}'", "choose another folder with `out`")
    if error.errno in FULL:
        return WorldError(f"no space left on the disk of '{path}'", "free some, then run the same command again to continue")
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP):
        return InputError(f"'{path}' cannot be written ({error.strerror})", "choose another folder with `out`")
    return WorldError(
        f"'{path}' cannot be written ({error.strerror or error})", "check the disk, then run the same command again"
    )


def unsaved(path: Path, error: Exception) -> InputError | WorldError:
    """Return the emscope error for whatever a library raised while it saved `path`; some report a full disk only in words."""
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(path, error)
    if FULL_IN_WORDS in str(error) or shutil.disk_usage(_there(path)).free < 2**20:
        return disk_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    return WorldError(f"'{path}' cannot be saved ({reason(error)})", "check the disk, then run the same command again")


def _there(path: Path) -> Path:
    """Return the nearest folder above `path` that exists."""
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def unknown_fault(error: OSError) -> InputError | WorldError:
    """Return the emscope error for an OSError from either reading or writing."""
    place = f"'{os.fsdecode(error.filename)}'" if error.filename is not None else "a file or folder"
    said = error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        return WorldError(f"no space left on the disk of {place}", "free some, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(f"no permission for {place}", "check its permissions, or give another path")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST):
        return InputError(f"{place} cannot be used ({said})", "check the path")
    return WorldError(f"{place} cannot be used ({said})", "check the disk, then run the same command again")


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(whole(text), encoding="utf-8"))


def write_json(path: Path, value: Json) -> None:
    """Write JSON atomically; NaN is refused (missing stays null)."""
    write_text(path, json_text(value, indent=1) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Json]]) -> None:
    """Write rows as JSON lines atomically."""
    write_text(path, "".join(json_text(row) + "\n" for row in rows))
