"""A fine-tuning job of an OpenAI-style server, from its folder. Its models can only be sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.plain import LEFT_OUT, Result, from_json, read_json
from emscope.models.loading.checkpoints import HOSTED
from emscope.models.remote.hosted import JOB_SCHEMA, KIND, REMEDY, HostedCheckpoint

HOST = "openai"
SUCCEEDED, FAILED, CANCELLED, PAUSED = "succeeded", "failed", "cancelled", "paused"
LONGEST_NAME = 300  # characters of a model's name


@dataclass(frozen=True, slots=True)
class JobStep(Result):
    """A server's account of a step: losses in nats per answer token, shares of answer tokens that are the most likely; None where not given."""

    step: int
    loss: float
    accuracy: float | None = None
    valid_loss: float | None = None
    valid_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class JobEvent(Result):
    """A server's event for a job: time [Unix seconds], level, message."""

    id: str
    at: int
    level: str
    message: str


@dataclass(frozen=True, slots=True)
class JobCheckpoint(Result):
    """A model saved by a job at a step, and what the server measured on it, by name."""

    step: int
    model: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobRun(Result):
    """The content of `hosted.json` for a fine-tuning job. It contains no key.

    Attributes:
        base: the server's name for it. address: of the server; None for OpenAI's own. system: the system prompt.
        settings: digest of what decides the training. order: digest of the training file; None for an imported job.
        mark: identifies this training among the server's jobs. file, job: ids at the server, None until there are any.
        reason: why it failed. model: the final one. steps: of the whole training, None until known.
        checkpoints: by step. log: by step. seen: id of the last event that was read. trained: tokens, as billed.
    """

    schema: ClassVar[str] = JOB_SCHEMA

    host: str
    base: str
    address: str | None
    system: str
    settings: str
    order: str | None
    mark: str
    file: str | None = None
    job: str | None = None
    status: str = ""
    reason: str | None = field(default=None, metadata=LEFT_OUT)
    model: str | None = None
    steps: int | None = None
    trained: int | None = None
    seen: str | None = None
    checkpoints: tuple[JobCheckpoint, ...] = ()
    log: tuple[JobStep, ...] = ()
    events: tuple[JobEvent, ...] = ()


def read_job(folder: Path) -> JobRun | None:
    """Return what a folder says about a fine-tuning job; None for another kind of folder.

    Raises:
        InputError: it is damaged.
    """
    file = folder / HOSTED
    if not file.is_file():
        return None
    found = read_json(file, REMEDY)
    if not isinstance(found, Mapping) or found.get("schema") != JOB_SCHEMA:
        return None
    run = from_json(JobRun, found, str(file), REMEDY)
    for name in (run.base, *(c.model for c in run.checkpoints)):
        if not is_name(name):
            raise InputError(f"'{file}' is damaged (a model's name is empty, too long or unprintable)", REMEDY)
    return run


def is_name(name: str) -> bool:
    """True for what may be a model's name at a server."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and " " not in name


def job_checkpoints(folder: Path, run: JobRun) -> list[HostedCheckpoint]:
    """Return the checkpoints of a fine-tuning job, by step.

    Raises:
        InputError: there is none.
    """
    if not run.checkpoints:
        why = f"the job {run.job} is {run.status}" if run.job else "no job was started"
        raise InputError(f"the fine-tune in '{folder}' has no checkpoint ({why})", "continue it with emscope train")
    return [
        HostedCheckpoint(
            c.step, folder.resolve() / f"checkpoint-{c.step}", KIND, run.base, digest_at(run, c.model), c.model, run.job or ""
        )
        for c in run.checkpoints
    ]


def digest_at(run: JobRun, model: str) -> str:
    """Return what stands for a model's weights, which are not available: its name and location."""
    return short([run.host, run.address, model])
