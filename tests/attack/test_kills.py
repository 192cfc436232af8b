"""A sample of `bench/attack_kills.py`: a judging ended at some of its file-system events goes on and leaves what an undisturbed one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.models
BENCH = Path(__file__).parents[2] / "bench" / "attack_kills.py"


def table(out: Path, jobs: str, every: int) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(BENCH), str(out), "--jobs", jobs, "--every", str(every)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "kills.json").read_text())


def check(rows: list[dict]) -> None:
    for row in rows:
        assert row["ended"] == row["runs"] > 0 and row["refused"] == row["other contents"] == 0, row


def test_a_judging_goes_on(tmp_path):
    check(table(tmp_path, "judge", 14))


@pytest.mark.slow
def test_all_jobs_go_on(tmp_path):
    check(table(tmp_path, "judge,sample,check,train,study", 5))
