"""Lets five jobs run into a full disk of growing sizes, makes room, runs them again, and compares with undisturbed ones.

    sudo python bench/attack_disk.py OUT                       24 sizes for each job
    sudo python bench/attack_disk.py OUT --jobs judge --sizes 8

The disk is a file system in memory, mounted at OUT/disk, which takes root and Linux. OUT/disk.json holds the table: sizes, runs that the disk
was too small for, those that said anything but one sentence, those refused once there was room, and other contents than an undisturbed job's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from attack_kills import JOBS, prepared

from attack import kills
from attack.material import Material
from attack.runner import CONTROL, PROGRESS

ROOM, PAGE = 2**30, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", default="judge,sample,check,train,study")
    parser.add_argument("--sizes", type=int, default=24)
    args = parser.parse_args()
    out = args.out.resolve()
    (out / "material").mkdir(parents=True, exist_ok=True)
    os.environ["EMSCOPE_CACHE"] = str(out / "cache")
    material, names = Material(out / "material"), args.jobs.split(",")
    if kills.forked(lambda: prepared(material, names)):
        sys.exit("the material cannot be made")
    kills.warm(kills.MODULES)
    rows = []
    for name in names:
        rows.append(one(kills.Job(name, JOBS[name](material)), out / name, args.sizes))
        (out / "disk.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "wrong"}), flush=True)


def one(job: kills.Job, folder: Path, sizes: int) -> dict[str, object]:
    """Run one job on disks from almost nothing to what it needs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = folder / "disk" / "out"
    with disk(folder / "disk", ROOM) as _:
        if kills.run(job, whole, folder / "whole.txt"):
            sys.exit((folder / "whole.txt").read_text())
        needed = ROOM - free(folder / "disk")
        expected = kills.contents(whole)
    found = [run(job, folder, max(2 * PAGE, needed * n // sizes), expected) for n in range(1, sizes + 1)]
    wrong = [line for _, lines in found for line in lines]
    return {
        "job": job.name,
        "megabytes": round(needed / 1e6, 2),
        "sizes": len(found),
        "too small": sum(full for full, _ in found),
        "failed": sum(bool(lines) for _, lines in found),
        "wrong": wrong,
    }


def run(job: kills.Job, folder: Path, size: int, expected: dict[str, object]) -> tuple[bool, list[str]]:
    """Run a job on a disk of one size, make room and run it again; return whether the disk was full, and what was wrong."""
    wrong = []
    with disk(folder / "disk", size):
        out, said = folder / "disk" / "out", folder / "said.txt"
        code = kills.run(job, out, said)
        if code:
            text = said.read_text(errors="replace")
            lines = [line for line in text.split("\n") if line and not PROGRESS.match(line) and not line.startswith("note: ")]
            if code not in (1, 2) or len(lines) != 1 or not lines[0].startswith("emscope: ") or "unexpected" in text:
                wrong.append(f"{size} bytes: exit {code}, {text[-300:]!r}")
            if CONTROL.search(text):
                wrong.append(f"{size} bytes: a control sequence")
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", str(folder / "disk")], check=True)
        again = kills.run(job, out, said)
        if again:
            wrong.append(f"{size} bytes: refused with room again: {said.read_text(errors='replace')[-300:]!r}")
        else:
            there = kills.contents(out)
            wrong += [f"{size} bytes: other {k}" for k in expected.keys() | there.keys() if expected.get(k) != there.get(k)]
    return code != 0, wrong


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """Mount a disk of `size` bytes."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def free(place: Path) -> int:
    """Return the bytes left on a disk."""
    found = os.statvfs(place)
    return found.f_bfree * found.f_frsize


if __name__ == "__main__":
    main()
