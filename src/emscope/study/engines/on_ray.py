"""A Ray cluster: a task takes a cell's key and the study's folder, and returns the key; all data goes through the shared folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from emscope.core.errors import EmscopeError, MissingDependency, WorldError
from emscope.core.limits import reason
from emscope.core.progress import Progress
from emscope.study.engines.table import Job
from emscope.study.engines.worker import work_in

if TYPE_CHECKING:
    from emscope.study.cells.planning import Cell

POLL = 1.0  # seconds between looks at the tasks


def run(job: Job, progress: Progress) -> None:
    """Give each cell to the cluster as a task; Ray gives those of a lost worker or node to another.

    It uses a cluster that Ray knows of (RAY_ADDRESS, or one running on this machine); without one, this machine becomes one.

    Raises:
        MissingDependency: Ray is not installed. EmscopeError: the error of a task that could not do its cell.
    """
    ray = _ray()
    mine = not ray.is_initialized()
    if mine:
        _join(ray, job)
    try:
        _run(ray, job, progress)
    finally:
        if mine:
            ray.shutdown()
    job.tell(progress)


def _run(ray: ModuleType, job: Job, progress: Progress) -> None:
    cards = 1 if ray.cluster_resources().get("GPU", 0) else 0
    environment = {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
    task = ray.remote(work_in).options(
        num_cpus=job.threads, num_gpus=cards, max_retries=job.how.retries, runtime_env={"env_vars": environment}
    )
    root, here, waiting = job.root.resolve(), str(Path.cwd()), list(job.cells)
    at_once = job.how.workers or len(waiting)
    running: dict[object, Cell] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            cell = waiting.pop(0)
            running[task.remote(root, here, job.threads, [cell.key])] = cell
        done, _ = ray.wait(list(running), timeout=POLL)
        for one in done:
            cell = running.pop(one)
            try:
                ray.get(one)
            except Exception as error:
                if job.planned.settled(job.root, cell) is None:
                    raise _told(error, cell) from None
        job.tell(progress)


def _told(error: Exception, cell: Cell) -> EmscopeError:
    """Return a task's own error, or that its worker was lost too often."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EmscopeError):
        return cause
    return WorldError(
        f"Ray could not finish the cell '{cell.name}' ({reason(error)})", "see Ray's logs, then run the same command again"
    )


def _join(ray: ModuleType, job: Job) -> None:
    """Join the running cluster, or make this machine one."""
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(num_cpus=job.workers * job.threads, include_dashboard=False, **quiet)


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # report nothing to anybody
    try:
        import ray
    except ImportError:
        raise MissingDependency("`engine=ray` needs Ray, which is not installed", "pip install 'emscope[ray]'") from None
    return ray
