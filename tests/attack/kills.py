"""Ends a job at one of its file-system events, lets it go on, and compares what comes out with what an undisturbed job gives.

An event is a file opened for writing, a save by a library, a rename, a deletion, a folder made or removed, a flush to disk: whatever changes what
the next start finds. The process ends right before the event takes place; with `torn`, the file that was written last is cut to a half as well.
Jobs run in processes forked from this one, which has imported everything and run nothing.

What a kill leaves is what lies on disk at that moment: one undisturbed run that copies its folder right before each event gives the same as
a run ended there for each of them, and a job of n events is run n times instead of 2 n.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ENDED = 77
SECONDS = 300.0
OTHERWISE = ("seconds",)  # columns that say how long something took
LATER = ("versions", "created")
WHOLE, TORN = "whole", "torn"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1, "os.symlink": 1}


@dataclass(frozen=True)
class Job:
    """A command that is run again until it is done: its words with OUT in place of its folder."""

    name: str
    words: tuple[str, ...]

    def into(self, out: Path) -> list[str]:
        """Return the words for one folder."""
        return [word.replace("OUT", str(out)) for word in self.words]


@dataclass(frozen=True)
class At:
    """What is done at events: the process ends at `stop` (0 for none), or the folder is copied below `copies` at those `wanted`."""

    stop: int = 0
    torn: bool = False
    copies: Path | None = None
    wanted: range = range(0)


def tear(path: Path | None) -> None:
    """Cut a file to a half, as a write that was under way leaves it."""
    if path and path.is_file():
        os.truncate(path, path.stat().st_size // 2)


def written_before(events: Sequence[str], n: int) -> bool:
    """Return whether the event before the n-th, counted from 1, wrote a file; else there is nothing to tear."""
    return n > 1 and events[n - 2].partition(" ")[0] in ("open", "save", "fsync")


class Events:
    """Counts the events below a folder, and ends the process at one of them or copies the folder at some."""

    def __init__(self, root: Path, at: At) -> None:
        self.root, self.at = root, at
        self.log: list[str] = []
        self.last: Path | None = None
        self.busy = False

    def note(self, what: str, path: Any, *, writes: bool = False) -> None:
        """Count an event on a path below the folder."""
        try:
            name = Path(os.fsdecode(path)).absolute()
        except (TypeError, ValueError):
            return
        if self.busy or not name.is_relative_to(self.root):
            return
        self.log.append(f"{what} /{name.relative_to(self.root)}")
        if len(self.log) == self.at.stop:
            if self.at.torn:
                tear(self.last)
            os._exit(ENDED)
        if self.at.copies and len(self.log) in self.at.wanted:
            self.busy = True
            self._copy(self.at.copies / str(len(self.log)))
            self.busy = False
        if writes:
            self.last = name

    def _copy(self, place: Path) -> None:
        """Keep what lies in the folder now, and the same with its last file torn."""
        place.mkdir(parents=True)
        if not self.root.exists():
            return
        shutil.copytree(self.root, place / WHOLE)
        if self.last and self.last.is_file() and written_before(self.log, len(self.log)):
            shutil.copytree(self.root, place / TORN)
            tear(place / TORN / self.last.relative_to(self.root))

    def watch(self) -> None:
        """Begin to count in this process, for good."""
        sys.addaudithook(self._audited)
        fsync = os.fsync

        def flushed(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            self.note("fsync", Path(f"/proc/self/fd/{number}").readlink())
            fsync(handle)

        os.fsync = flushed
        self._wrap()

    def _audited(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES and not isinstance(args[0], int):
            self.note("open", args[0], writes=True)
        elif event in AUDITED:
            self.note(event, args[AUDITED[event]])

    def _wrap(self) -> None:
        """Count what libraries write without Python's own `open`."""
        import pyarrow.parquet as pq
        import safetensors.torch as st
        import torch

        def wrapped(function: Callable[..., Any], place: int) -> Callable[..., Any]:
            def write(*args: Any, **kwargs: Any) -> Any:
                target = (
                    args[place] if len(args) > place else next((v for v in kwargs.values() if isinstance(v, str | Path)), None)
                )
                if isinstance(target, str | Path):
                    self.note("save", target, writes=True)
                return function(*args, **kwargs)

            return write

        for module, name, place in ((st, "save_file", 1), (torch, "save", 1), (pq, "write_table", 1)):
            old = getattr(module, name)
            new = wrapped(old, place)
            for held in list(sys.modules.values()):  # also where it was imported by name
                if getattr(held, name, None) is old:
                    setattr(held, name, new)


def forked(run: Callable[[], int]) -> int:
    """Return the exit code of a function in a process of its own; 124 where it takes too long."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = run()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 124


def run(job: Job, out: Path, said: Path, at: At = At(), *, log: Path | None = None) -> int:
    """Run a job in a forked process; return its exit code, `ENDED` where it was ended.

    Args:
        said: file for what it prints. log: file for the names of all events.
    """

    def work() -> int:
        from emscope.cli.app import run_arguments

        events = Events(out, at)
        sys.stdout = sys.stderr = said.open("w", encoding="utf-8")
        if at.stop or log:
            events.watch()
        code = run_arguments(job.into(out))
        if log:
            log.write_text("\n".join(events.log))
        return code

    return forked(work)


def contents(out: Path) -> dict[str, Any]:
    """Return every table of a job's folder, its files of rows and its report, without what differs from run to run."""
    import pyarrow.parquet as pq

    from emscope.store.schemas import TABLES
    from emscope.store.study import read_table

    found: dict[str, Any] = {}
    for name in TABLES:
        rows = read_table(out, name).to_pylist()
        found[name] = [{k: v for k, v in row.items() if k not in OTHERWISE} for row in rows]
    for path in sorted(out.glob("*.parquet")):
        found[path.name] = pq.read_table(path).to_pylist()
    for path in sorted(out.rglob("*.json")):
        if path.name in ("report.json", "tokens.json"):
            read = json.loads(path.read_text(encoding="utf-8"))
            found[str(path.relative_to(out))] = {k: v for k, v in read.items() if k not in LATER}
    for path in sorted(out.rglob("adapter_model.safetensors")):
        found[str(path.relative_to(out))] = path.read_bytes()
    found["names"] = sorted(str(p.relative_to(out)) for p in out.rglob("*") if not p.name.endswith(".lock"))
    return json.loads(json.dumps(found, default=lambda b: b.hex()).replace(str(out), "OUT"))


@dataclass(frozen=True)
class Outcome:
    """What came of ending a job at one event: the files it left, whether it was refused when run again, and which contents were other."""

    event: int
    torn: bool
    ended: bool
    left: tuple[str, ...] = ()
    refused: str = ""
    other: tuple[str, ...] = ()


def followed(job: Job, folder: Path, copies: Path | None = None, wanted: range = range(0)) -> tuple[list[str], dict[str, Any]]:
    """Return the events of an undisturbed job and what it leaves; copies of its folder at the events wanted are kept."""
    out, log, said = folder / "out", folder / "events.txt", folder / "whole.txt"
    code = run(job, out, said, At(copies=copies, wanted=wanted), log=log)
    assert code == 0, said.read_text()
    found = contents(out)
    shutil.rmtree(out)
    return log.read_text().split("\n"), found


def ended_at(job: Job, folder: Path, event: int, whole: dict[str, Any], *, torn: bool) -> Outcome:
    """End a job at one event, run it again, and compare."""
    ended = run(job, folder / "out", folder / "said.txt", At(event, torn)) == ENDED
    return gone_on(job, folder, whole, Outcome(event, torn, ended))


def copied_at(job: Job, folder: Path, copy: Path, whole: dict[str, Any], *, torn: bool) -> Outcome:
    """Take up a copy of a job's folder where the job was, run it again, and compare."""
    if (state := copy / (TORN if torn else WHOLE)).exists():
        state.rename(folder / "out")
    return gone_on(job, folder, whole, Outcome(int(copy.name), torn, ended=True))


def gone_on(job: Job, folder: Path, whole: dict[str, Any], outcome: Outcome) -> Outcome:
    """Return the outcome of running an ended job again; its folder is gone then."""
    out, said = folder / "out", folder / "said.txt"
    outcome = replace(outcome, left=tuple(sorted(str(p.relative_to(out)) for p in out.rglob("*"))))
    code = run(job, out, said)
    if code != 0:
        outcome = replace(outcome, refused=said.read_text()[-400:] or f"exit code {code}")
    else:
        found = contents(out)
        outcome = replace(outcome, other=tuple(k for k in whole.keys() | found.keys() if whole.get(k) != found.get(k)))
    shutil.rmtree(out, ignore_errors=True)
    return outcome


def warm(modules: Sequence[str]) -> None:
    """Import what jobs will need, so that forked processes need not."""
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    for name in modules:
        import_module(name)


JUDGING = (
    "emscope.answers.judge",
    "emscope.cli.app",
    "safetensors.torch",
    "pyarrow.parquet",
    "duckdb",
)  # all that a judging needs
MODULES = (
    *("emscope.study.run", "emscope.study.check", "emscope.study.train", "emscope.answers.sample", "emscope.answers.judge"),
    *("emscope.cli.app", "emscope.train.trainer", "emscope.report.study.page", "emscope.report.study.terminal", "plotly.io"),
    *("transformers.models.llama.modeling_llama", "peft", "safetensors.torch", "torch", "pyarrow.parquet", "duckdb"),
)
