"""One study folder: who may write, which spec it belongs to, its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from emscope.core.digest import digest
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.store.changed import changed
from emscope.store.claims import Claims
from emscope.store.files import CUT_OFF, OURS, disk_error, sweep, write_json, write_text
from emscope.store.rows import Rows
from emscope.store.rows import read_table as read_table  # others take it from here
from emscope.store.schemas import VERSION

LEDGER = "ledger.json"
CLAIMS = "claims"
AT_HOST = "hosted.json"  # of a training at a host
AGAIN = 3.0  # seconds until a shared folder is looked at again
OPENING = 60  # seconds to wait for another process that opens the same shared folder


class Study(Rows):
    """A study folder opened for writing; use as a context manager, which holds the folder's lock.

    Args:
        root: the folder; made where it does not exist.
        spec: the settings as plain values; frozen in the ledger. A folder with other settings is rejected.
        versions: of the packages used, for the record.
        may_grow: settings that may grow later, lists (seeds) at their end and objects (arms) by further names; what is there stays.
        shared: other processes work on the same folder: the lock is held while the ledger is opened and in `alone`, and each piece of work is
            done by whoever claims it first (`claimed`).

    Raises:
        InputError: the folder belongs to another spec or table version, is in use by another process, or cannot be written.
    """

    def __init__(
        self,
        root: Path,
        spec: JsonObject,
        versions: dict[str, str],
        *,
        may_grow: Sequence[str] = (),
        shared: bool = False,
    ) -> None:
        super().__init__(root)
        self.spec, self.versions, self._may_grow, self.shared = spec, versions, may_grow, shared
        self._lock, self._claims = FileLock(str(root / ".lock")), Claims(root / CLAIMS)

    def __enter__(self) -> Study:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=OPENING if self.shared else 0)
        except Timeout:
            raise InputError(
                f"'{self.root}' is in use by another emscope process",
                "wait for it, choose another folder with `out`, or start all of them with `share`",
            ) from None
        except OSError as error:
            raise disk_error(self.root, error) from None
        try:
            self._open_ledger()
            if not self.shared and not self._claims.any_alive():
                sweep(self.root)
        except BaseException:
            self._lock.release()
            raise
        if self.shared:
            self._lock.release()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def claimed(self, work: str) -> Iterator[bool]:
        """Yield whether this process may do a piece of work: no other process that shares the folder is doing it.

        A claim ends with the block, and with the process. Check what a shared folder lacks after claiming, not before.
        """
        if not self.shared:
            yield True
            return
        with self._claims.take(work) as claim:
            yield claim is not None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process is in this block, for what is derived from all tables."""
        if not self.shared:
            yield
            return
        with self._lock:
            yield

    def runs_folder(self, run: str) -> Path:
        """Return where a run's checkpoints are kept."""
        return self.root / "runs" / run

    def drop_ended_claims(self) -> None:
        """Delete what claims left behind, once nothing is left to claim."""
        self._claims.drop_ended()

    def _open_ledger(self) -> None:
        path = self.root / LEDGER
        if path.is_file():
            self._check_ledger(path)
            return
        others = [p.name for p in self.root.iterdir() if p.name not in (".lock", "study.yaml", CLAIMS) and not _cut_off(p)]
        if others:
            raise InputError(f"'{self.root}' is not empty ({others[0]}) and is not a study", "choose a new folder with `out`")
        self._write_ledger(path)

    def _write_ledger(self, path: Path) -> None:
        write_text(self.root / "study.yaml", _yaml(self.spec))
        write_json(path, {"tables": VERSION, "digest": digest(self.spec), "spec": self.spec, "versions": self.versions})

    def _begun(self) -> bool:
        """True where anything was computed; until then other settings may take the folder over."""
        return (
            any(self.root.glob("checkpoint-*"))
            or (self.root / AT_HOST).is_file()
            or any(
                any(p.is_file() for p in (self.root / name).rglob("*"))
                for name in ("runs", "tables")
                if (self.root / name).is_dir()
            )
        )

    def _check_ledger(self, path: Path) -> None:
        try:
            ledger = json.loads(path.read_text(encoding="utf-8"))
            frozen, version = ledger["spec"], ledger["tables"]
            if not isinstance(frozen, dict):
                raise ValueError("its settings are not an object")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"'{path}' is damaged ({type(error).__name__}: {error})", "choose a new folder with `out`"
            ) from None
        if version != VERSION:
            raise InputError(
                f"'{self.root}' has tables of version {version}, but this emscope writes version {VERSION}",
                "choose a new folder with `out`",
            )
        grown = frozen | {k: self.spec[k] for k in self._may_grow if extends(self.spec.get(k), frozen.get(k))}
        differing = changed(grown, self.spec)
        if differing and self._begun():
            raise InputError(
                f"'{self.root}' holds a study with other settings ({differing})",
                "choose another folder with `out`, or restore the settings",
            )
        if differing or grown != frozen:
            self._write_ledger(path)


def _cut_off(path: Path) -> bool:
    return path.name.startswith(OURS) and path.name.endswith(CUT_OFF)


def extends(new: object, old: object) -> bool:
    """True where both are lists and the new one begins with the old one, or both are objects and the new one names all that the old one does.

    What an object names stays as it was, but for a list of `methods` in it, which may grow as well; an empty object does not grow.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        return bool(old) and all(name in new and _stays(new[name], value) for name, value in old.items())
    return isinstance(new, list) and isinstance(old, list) and new[: len(old)] == old


def _stays(new: object, old: object) -> bool:
    if isinstance(new, dict) and isinstance(old, dict) and old.get("methods") and extends(new.get("methods"), old["methods"]):
        return {**new, "methods": None} == {**old, "methods": None}
    return new == old


def _yaml(spec: JsonObject) -> str:
    import yaml

    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
