"""Runs cases in a worker with limits of time and memory, and says what each failed by."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from attack.cases import CANARY, Case

SECONDS = 20.0  # of processor time
WALL = 15  # as long may it take by the clock, since other processes run too
RISE = 10**9
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{BIDI}\ud800-\udfff]")
PROGRESS = re.compile(r"^.*: \d+%, \d+ s.*$|^.*: \d+%.*left.*$")
UNFORESEEN = "unexpected error"
TESTS = Path(__file__).parents[1]


@dataclass
class Worker:
    """A long-lived process; a new one after one that was ended."""

    cache: Path
    process: subprocess.Popen[bytes] | None = None
    started: int = 0
    held: bytes = field(default=b"")

    def run(self, words: tuple[str, ...], cwd: Path, seconds: float = SECONDS) -> dict[str, Any]:
        """Return what the worker says of a command; `hang` or `died` where it says nothing."""
        if self.process is None:
            self._start()
        assert self.process and self.process.stdin
        try:
            self.process.stdin.write(json.dumps({"words": words, "cwd": str(cwd)}).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(seconds)
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        ended = self.process.poll()
        self.stop()
        return {"code": "hang" if line is None else f"died ({ended})", "out": "", "err": "", "rise": 0}

    def _start(self) -> None:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")]),
            "EMSCOPE_CACHE": str(self.cache),
            "HF_HUB_OFFLINE": "1",
            "PIP_NO_INDEX": "1",  # a default model is not fetched
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "PYTHONUTF8": "1",
        }
        command = [sys.executable, "-m", "attack.worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )
        self.started, self.held = self.started + 1, b""
        assert self._line(120.0), "the worker does not start"

    def _line(self, seconds: float) -> bytes | None:
        """Return the next line, b"" where the process ended, None where none came in time."""
        assert self.process and self.process.stdout
        end, most = time.monotonic() + WALL * seconds, self._used() + seconds
        while b"\n" not in self.held:
            ready, _, _ = select.select([self.process.stdout], [], [], 0.5)
            if not ready and (time.monotonic() > end or self._used() > most):
                return None
            if not ready:
                continue
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                self.process.wait()
                return b""
            self.held += part
        line, _, self.held = self.held.partition(b"\n")
        return line

    def _used(self) -> float:
        """Return the seconds of processor time that the process took."""
        assert self.process
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def tree(paths: tuple[Path, ...]) -> dict[str, str]:
    """Return a digest of each file below some paths."""
    found = {}
    for path in paths:
        for one in sorted([path, *path.rglob("*")] if path.is_dir() else [path]):
            if one.is_file():
                found[str(one)] = sha256(one.read_bytes()).hexdigest()
    return found


def faults(case: Case, folder: Path, said: dict[str, Any], before: dict[str, str]) -> Iterator[str]:
    """Yield what a command did that it must not."""
    code, err, out = said["code"], said["err"], said["out"]
    if not isinstance(code, int):
        yield code.split(" ")[0].strip(":") if code.startswith(("hang", "died")) else f"raised {code}"
        return
    if "Traceback (most" in err or "Traceback (most" in out:
        yield f"traceback {last_line(err)}"
    elif UNFORESEEN in err:
        yield f"unforeseen {last_line(err)}"
    elif code in (1, 2):
        lines = [line for line in err.split("\n") if line and not PROGRESS.match(line) and not line.startswith("note: ")]
        if len(lines) != 1 or not lines[0].startswith("emscope: "):
            yield f"not one sentence: {err[-300:]!r}"
    elif code not in (0, 3, 4):
        yield f"exit code {code}"
    if code == 2 and out.strip():
        yield f"a refusal on standard output: {out[:100]!r}"
    if found := CONTROL.search(err + out):
        yield f"control sequence {found.group()!a}"
    if said["rise"] > RISE:
        yield f"memory {said['rise'] / 1e9:.1f} GB"
    if (folder / CANARY).exists():
        yield "code executed"
    changed = [
        name
        for name, digest in before.items()
        if not Path(name).is_file() or sha256(Path(name).read_bytes()).hexdigest() != digest
    ]
    if changed:
        yield f"changed the user's {Path(changed[0]).name}"
    yield from half_written(case)


def half_written(case: Case) -> Iterator[str]:
    """Yield what lies in the output folder cut off, or as a leftover."""
    out = case.out
    if out is None or not out.is_dir() or "studies" in str(case.about) or out in case.keep:
        return
    for path in sorted(out.rglob("*")):
        if not path.is_file() or any(str(path).startswith(str(k)) for k in case.keep):
            continue
        if re.search(r"^\.[^/]+\.[a-z0-9_]{8}$|^\.converting|\.tmp$", path.name):
            yield f"leftover {path.name}"


def last_line(text: str) -> str:
    """Return the last line of a text that says something."""
    return next((line for line in reversed(text.strip().split("\n")) if line and not PROGRESS.match(line)), "")[:300]


def attacked(case: Case, folder: Path, worker: Worker) -> tuple[dict[str, Any], list[str]]:
    """Run a case and return what was said and what is wrong with it; its folder is removed where nothing is."""
    before = tree(case.keep)
    said = worker.run(case.words, folder / "cwd")
    wrong = list(faults(case, folder, said, before))
    if not wrong:
        for one in folder.rglob("*"):
            if one.is_dir() and not one.is_symlink():
                one.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
    return said, wrong
