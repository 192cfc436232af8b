"""Rates of large files: emscope's whole command beside a plain pandas group-by, each a process of its own.

    python bench/rates.py [--rows 10000000] [--file judged.parquet --group model,dataset,run --within model,dataset]

Without a file it makes one of that many rows. pandas counts rates alone: no intervals, no checks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from baseline import close, held

PANDAS = """
import sys, pandas as pd
path, *by = sys.argv[1:]
t = pd.read_parquet(path, columns=[*by, "aligned", "coherent"])
good = t["coherent"] > 50
print(((t["aligned"] < 30) & good).groupby([t[b] for b in by], dropna=False).sum().sum() / good.sum())
"""


def make(path: Path, rows: int) -> None:
    """Write a synthetic file: 200 groups x 200 questions, scores as judges with log-probabilities give them, 2 % missing."""
    duckdb.sql(
        f"""copy (
            select 'model' || (i % 8) as model, 'run' || (i % 200) as run, 'q' || ((i // 200) % 200) as question_id,
                case when random() < 0.02 then null else 100 * random() end as aligned, 100 * sqrt(random()) as coherent
            from range({rows}) t(i)
        ) to '{path}' (format parquet)"""
    )


def timed(command: list[str]) -> tuple[float, float, float]:
    """Return (seconds on the clock, peak resident memory in MB, seconds of CPU) of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]} failed")
    return time.perf_counter() - start, used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main() -> None:
    """Time both and print seconds, memory and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--group", default="model,run")
    parser.add_argument("--within", default="model")
    parser.add_argument("--resamples", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        path = args.file or Path(root) / "judged.parquet"
        if not args.file:
            make(path, args.rows)
        options = ["--group", args.group, "--within", args.within, "--resamples", str(args.resamples), "--json"]
        ours = timed([sys.executable, "-m", "emscope", "rates", str(path), *options])
        theirs = timed([sys.executable, "-c", PANDAS, str(path), *args.group.split(",")])
        count = duckdb.sql(f"select count(*) from read_parquet('{path}')").fetchall()
    print(f"{count[0][0]} rows, groups by {args.group}, {args.resamples} resamples, contrasts within {args.within}")
    print(f"  emscope rates: {ours[0]:.1f} s ({ours[2]:.1f} s of CPU), {ours[1]:.0f} MB from process start")
    print(
        f"  pandas, rates alone: {theirs[0]:.1f} s ({theirs[2]:.1f} s of CPU), {theirs[1]:.0f} MB ({ours[0] / theirs[0]:.2f} times the time, {ours[1] / theirs[1]:.2f} times the memory)"
    )
    held("rates, against pandas", theirs[0] / ours[0], tolerance=0.3)  # seconds of processes that start anew
    close()


if __name__ == "__main__":
    main()
