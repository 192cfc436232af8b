"""Processes on this machine, one for each GPU or group of cores; they divide the cells among themselves by claims."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from emscope.core.errors import WorldError
from emscope.core.progress import Progress
from emscope.study.engines.table import Job
from emscope.study.engines.worker import end_with, work_in

POLL = 0.5  # seconds between looks at the workers
LOGS = "logs"


def run(job: Job, progress: Progress) -> None:
    """Start the workers, replace those that are killed, and wait for the last.

    Raises:
        WorldError: workers keep dying.
    """
    workers = min(job.workers, len(job.cells))
    running = {n: _start(job, n) for n in range(workers)}
    lost = 0
    try:
        while running:
            left = job.tell(progress)
            for n, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[n]
                if process.returncode == 0 or not left:
                    continue
                lost += 1
                if lost > job.how.retries + workers:
                    raise WorldError(f"workers keep dying ({_last_words(job.root, n)})", f"see '{job.root / LOGS}'")
                running[n] = _start(job, n)
            time.sleep(POLL)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
    job.tell(progress)


def _start(job: Job, number: int) -> subprocess.Popen[bytes]:
    """Start a worker; its output goes into a log of its own."""
    import torch

    log = job.root / LOGS / f"worker-{number}.log"
    log.parent.mkdir(exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
    if cards := torch.cuda.device_count():
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else None
        environment["CUDA_VISIBLE_DEVICES"] = named[number % len(named)] if named else str(number % cards)
    words = [sys.executable, "-m", "emscope.study.engines.local", str(job.root.resolve()), str(job.threads), str(os.getpid())]
    with log.open("ab") as file:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def _last_words(root: Path, number: int) -> str:
    lines = (root / LOGS / f"worker-{number}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "without a word"


def main() -> None:
    """Be a worker: `python -m emscope.study.engines.local STUDY THREADS PARENT`."""
    root, threads, parent = sys.argv[1:]
    end_with(int(parent))
    work_in(Path(root), str(Path.cwd()), int(threads))


if __name__ == "__main__":
    main()
