"""A sample of `bench/attack_kills.py`: a judging ended at some of its file-system events goes on and leaves what an undisturbed one does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.models
BENCH = Path(__file__).parents[2] / "bench" / "attack_kills.py"


def table(out: Path, jobs: str, every: int, *more: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(BENCH), str(out), "--jobs", jobs, "--every", str(every), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "kills.json").read_text())


def check(rows: list[dict]) -> None:
    for row in rows:
        assert row["ended"] == row["runs"] > 0 and row["refused"] == row["other contents"] == 0, row


def test_a_judging_goes_on_from_what_a_kill_leaves_and_from_a_copy_of_it(tmp_path):
    """Ended processes are the slow twin of copies of the folder: both leave the same files, and both go on."""
    (ended,), (copied,) = table(tmp_path / "ended", "judge", 14, "--end"), table(tmp_path / "copied", "judge", 14)
    check([ended, copied])
    assert named(ended) == named(copied) and len(max(named(ended), key=len)) > 5


def named(row: dict) -> list[list[str]]:
    """Return the names of what was left each time, without the random part in those of temporary files."""
    return [[re.sub(r"\.[a-z0-9_]{8}\.(?=[0-9a-f]{16}\.part)", ".*.", name) for name in left] for left in row["left"]]


@pytest.mark.slow
def test_all_jobs_go_on(tmp_path):
    rows = table(tmp_path, "judge,sample,check,train,study", 5)
    assert [row["job"] for row in rows] == ["judge", "sample", "check", "train", "study"]
    check(rows)
