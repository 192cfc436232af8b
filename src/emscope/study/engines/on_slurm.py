"""A SLURM site through submitit: jobs of an array, each a worker that shares the cells with the others by claims.

A job may be put back into the queue at any time: the next one continues with what is missing. A job whose code differs from the
code that the study was planned with refuses to work (`plan_file.planned_in`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, MissingDependency, WorldError
from emscope.core.progress import Progress
from emscope.study.engines.table import Job
from emscope.study.engines.worker import work_in

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.core.utils import DelayedSubmission

POLL, ARRAY_MAX = 2.0, 1000  # seconds between looks at the jobs; jobs of one array, as most sites allow
FOLDER = "slurm"


class Hand:
    """What a job does; pickled by submitit, and queued again when its time is up."""

    def __init__(self, root: Path, folder: str, threads: int) -> None:
        self.root, self.folder, self.threads = root, folder, threads

    def __call__(self, number: int) -> list[str]:
        """Work until no cell is left; return the keys of all."""
        return work_in(self.root, self.folder, self.threads)

    def checkpoint(self, number: int) -> DelayedSubmission:
        """Return what is queued when SLURM preempts the job: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, number)


def run(job: Job, progress: Progress) -> None:
    """Queue as many jobs as there are workers, in arrays no longer than the site allows, and wait for them.

    Raises:
        MissingDependency: submitit is not installed. InputError: settings that submitit does not know. WorldError: jobs end without a result.
    """
    submitit = _submitit()
    settings: dict[str, int | str] = {k: int(v) if v.lstrip("-").isdigit() else v for k, v in job.how.slurm.items()}
    most, cluster = int(settings.pop("array_max", ARRAY_MAX)), settings.pop("cluster", None)
    executor = _executor(submitit, job, settings, cluster)
    hand = Hand(job.root.resolve(), str(Path.cwd()), job.threads)
    numbers = list(range(min(job.workers, len(job.cells))))
    jobs = [one for at in range(0, len(numbers), most) for one in executor.map_array(hand, numbers[at : at + most])]
    while not all(one.done() for one in jobs):
        job.tell(progress)
        time.sleep(POLL)
    if job.tell(progress):
        said = next((error for one in jobs if (error := one.exception()) is not None), None)
        if said is not None:
            lines = str(said).strip().splitlines()
            raise WorldError(
                f"jobs ended without finishing their cells ({lines[-1][:300] if lines else said!r})",
                f"see '{job.root / FOLDER}'",
            )


def _executor(submitit: ModuleType, job: Job, settings: Mapping[str, object], cluster: object) -> AutoExecutor:
    usual: dict[str, object] = {
        "name": f"emscope-{job.planned.spec.name}",
        "cpus_per_task": job.threads,
        "timeout_min": 24 * 60,
    }
    try:
        executor = submitit.AutoExecutor(folder=job.root / FOLDER, cluster=cluster)
        executor.update_parameters(**(usual | dict(settings)))
    except (NameError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"submitit does not accept `slurm` ({error})", "see submitit's AutoExecutor") from None
    return executor


def _submitit() -> ModuleType:
    try:
        import submitit
    except ImportError:
        raise MissingDependency(
            "`engine=slurm` needs submitit, which is not installed", "pip install 'emscope[slurm]'"
        ) from None
    return submitit
