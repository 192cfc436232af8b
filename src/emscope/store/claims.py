"""Which process is doing a piece of work, where several, on one or more machines, share a folder.

On one machine a claim is a file lock: it ends with the process, however that ends. Between machines, where a lock may not reach, it is a
lease: the holder counts up in a file, and whoever sees the count stand still for `LEASE` seconds of its own steady clock takes
the work over. No clock is compared with another machine's, so a clock that jumps steals nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from emscope.core.digest import short
from emscope.store.files import CUT_OFF, OURS
from emscope.store.host import this_host

BEAT = 5.0  # seconds between two counts
LEASE = 90.0  # seconds without a count after which another machine may take the work over
SETTLE = 1.0  # seconds for two machines that take over at once to see whose claim holds


@dataclass(frozen=True, slots=True)
class Holder:
    """Who is doing the work: `host` names the machine and its boot, `count` grows while the holder lives."""

    work: str
    host: str
    pid: int
    token: str
    count: int


@dataclass(slots=True)
class Claim:
    """Work that this process is doing; `lost` is set if another one took it over meanwhile."""

    path: Path
    holder: Holder
    lost: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def beat(self) -> None:
        """Count up until the claim ends or is lost."""
        count = 0
        while not self._ended.wait(BEAT):
            found = read(self.path)
            if found is not None and found.token != self.holder.token:
                self.lost.set()
                return
            count += 1
            with suppress(OSError):  # a full or absent disk: the work itself will say so
                _put(self.path, self.holder, count)

    def end(self) -> None:
        """Give the work back."""
        self._ended.set()
        found = read(self.path)
        if found is not None and found.token == self.holder.token:
            self.path.unlink(missing_ok=True)


class Claims:
    """The claims in a folder; keep one object as long as you look, because it remembers when it saw which count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[str, int, float]] = {}

    @contextmanager
    def take(self, work: str) -> Iterator[Claim | None]:
        """Yield a claim on a piece of work, or None where another process is doing it. It ends with the block, or with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(self.folder / f"{short(work)}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield None
            return
        claim: Claim | None = None
        try:
            claim = self._claim(work)
            if claim is not None:
                threading.Thread(target=claim.beat, daemon=True).start()
            yield claim
        finally:
            if claim is not None:
                claim.end()
            lock.release()

    def holder(self, work: str) -> Holder | None:
        """Return who is doing a piece of work; None where no live process is."""
        found = read(self.folder / f"{short(work)}.json")
        return found if found is not None and self._alive(found) else None

    def any_alive(self) -> bool:
        """True where a process that may be alive is doing anything."""
        return any(f is not None and self._alive(f) for f in map(read, self.folder.glob("*.json")))

    def drop_ended(self) -> None:
        """Delete what the claims of ended processes left behind, if none is alive."""
        if not self.any_alive():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _claim(self, work: str) -> Claim | None:
        """Return a claim while this machine's lock is held; None where another machine is doing the work."""
        path = self.folder / f"{short(work)}.json"
        mine = Claim(path, Holder(work, this_host(), os.getpid(), uuid4().hex, 0))
        if _put_first(path, mine.holder):
            return mine
        other = read(path)
        if other is not None and other.host != this_host():
            if not self._silent(other):
                return None
            _put(path, mine.holder, 0)
            time.sleep(SETTLE)
            now = read(path)
            return mine if now is not None and now.token == mine.holder.token else None
        _put(path, mine.holder, 0)  # its process has ended, or its file is cut off: the lock would be held otherwise
        return mine

    def _silent(self, holder: Holder) -> bool:
        """True where the count has stood still for `LEASE` seconds since it was first seen here."""
        token, count, since = self._seen.get(holder.work, ("", -1, 0.0))
        if (token, count) != (holder.token, holder.count):
            self._seen[holder.work] = (holder.token, holder.count, time.monotonic())
            return False
        return time.monotonic() - since >= LEASE

    def _alive(self, holder: Holder) -> bool:
        if holder.host != this_host():
            return not self._silent(holder)
        lock = FileLock(str(self.folder / f"{short(holder.work)}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False


def read(path: Path) -> Holder | None:
    """Return who wrote a claim; None where there is none, or it is cut off."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _written(path: Path, holder: Holder, count: int) -> Path:
    temporary = path.with_name(f"{OURS}{holder.token}{CUT_OFF}")
    fields = {"work": holder.work, "host": holder.host, "pid": holder.pid, "token": holder.token, "count": count}
    temporary.write_text(json.dumps(fields), encoding="utf-8")
    return temporary


def _put(path: Path, holder: Holder, count: int) -> None:
    _written(path, holder, count).replace(path)


def _put_first(path: Path, holder: Holder) -> bool:
    """Write a claim where there is none; True if it was written. (a link is made by one machine only, also over NFS)"""
    temporary = _written(path, holder, 0)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
