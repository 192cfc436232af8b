"""How a fine-tuning job stands: what its server tells of it, as rows of its log, events and checkpoints."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, WorldError
from emscope.core.visible import whole
from emscope.models.remote.address import scrubbed
from emscope.models.remote.job_client import Jobs, address
from emscope.models.remote.jobs import CANCELLED, FAILED, SUCCEEDED, JobCheckpoint, JobEvent, JobRun, JobStep, is_name

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
    from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

LONGEST_SAID = 500  # characters of an event
COLUMNS = {  # of the file of results, and in events of the kind metrics
    "accuracy": ("train_mean_token_accuracy", "train_accuracy"),
    "valid_loss": ("valid_loss", "full_valid_loss"),
    "valid_accuracy": ("valid_mean_token_accuracy", "valid_accuracy", "full_valid_mean_token_accuracy"),
}


def refuse_elsewhere(run: JobRun) -> None:
    """Refuse to ask another server than a job's own; a key goes to no address that stands in a file.

    Raises:
        InputError: the address in the environment is another one.
    """
    if run.address != address():
        raise InputError(
            f"the job {run.job or ''} is at {run.address or 'OpenAI'}, and OPENAI_BASE_URL is {address() or 'not set'}",
            f"set OPENAI_BASE_URL to {run.address}" if run.address else "unset OPENAI_BASE_URL",
        )


def state(run: JobRun) -> str:
    """Say how a job stands."""
    why = f" ({run.reason})" if run.reason else ""
    words = {CANCELLED: "was cancelled", FAILED: "failed", SUCCEEDED: "succeeded"}.get(run.status, f"is {run.status}")
    return f"the job {run.job} {words}{why}"


def looked_at(jobs: Jobs, run: JobRun, job: FineTuningJob) -> JobRun:
    """Return a run with all that a server tells of it now."""
    assert run.job is not None
    said = jobs.events(run.job, run.seen)
    rows = [row for event in said if (row := _metrics(event)) is not None]
    totals = [n for event in said if (n := _number(_data(event).get("total_steps"))) is not None and n >= 1]
    listed = jobs.checkpoints(run.job) if job.status not in ("validating_files", "queued") else []
    known = {e.id for e in run.events}
    told = [_event(event) for event in said if event.id not in known and not _data(event)]
    why = getattr(job.error, "message", None)  # OpenAI's is an empty object where nothing is wrong
    return replace(
        run,
        status=_short(job.status),
        reason=_short(f"{job.error.code}: {why}") if job.error and why else None,
        trained=job.trained_tokens,
        steps=int(totals[-1]) if totals else run.steps,
        seen=said[-1].id if said else run.seen,
        checkpoints=_listed(listed) or run.checkpoints,
        log=_joined(run.log, rows),
        events=(*run.events, *told),
    )


def ended(jobs: Jobs, run: JobRun, job: FineTuningJob) -> JobRun:
    """Return a run that has ended with what its file of results tells of each step, and the final model as its last checkpoint."""
    if job.status != SUCCEEDED:
        return run
    log = run.log
    for file in job.result_files or ():
        log = _joined(log, _results(jobs.content(file)))
    model = job.fine_tuned_model
    if model is None or not is_name(model):
        raise WorldError(f"the job {run.job} succeeded and names no model", "see what the server says of it")
    steps = max((run.steps or 0, *(c.step for c in run.checkpoints), *(row.step for row in log)), default=0) or 1
    last = next((c for c in run.checkpoints if c.model == model), JobCheckpoint(steps, model))
    before = tuple(c for c in run.checkpoints if c.step < last.step)
    return replace(run, model=model, steps=steps, log=log, checkpoints=(*before, last))


def _listed(checkpoints: Sequence[FineTuningJobCheckpoint]) -> tuple[JobCheckpoint, ...]:
    """Return checkpoints by step, of those of one step the last that was made."""
    found = {}
    for c in sorted(checkpoints, key=lambda c: c.created_at):
        name, told = c.fine_tuned_model_checkpoint, c.metrics.model_dump() if c.metrics else {}
        if isinstance(c.step_number, int) and c.step_number >= 1 and is_name(name):
            metrics = {k: v for k, raw in told.items() if k != "step" and (v := _number(raw)) is not None}
            found[c.step_number] = JobCheckpoint(c.step_number, name, metrics)
    return tuple(found[step] for step in sorted(found))


def _event(event: FineTuningJobEvent) -> JobEvent:
    return JobEvent(event.id, event.created_at, _short(event.level), _short(event.message))


def _short(text: str) -> str:
    """Return what a server says as one line, without keys."""
    return scrubbed(" ".join(whole(str(text)).split()))[:LONGEST_SAID]


def _data(event: FineTuningJobEvent) -> Mapping[str, object]:
    """Return the numbers of an event of the kind metrics; nothing of another."""
    return event.data if event.type == "metrics" and isinstance(event.data, Mapping) else {}


def _metrics(event: FineTuningJobEvent) -> JobStep | None:
    return _row(_data(event))


def _row(told: Mapping[str, object]) -> JobStep | None:
    """Return a step's row; None where step or loss is not told."""
    step, loss = _number(told.get("step")), _number(told.get("train_loss"))
    if step is None or loss is None or step < 1:
        return None
    more = {name: next((v for n in names if (v := _number(told.get(n))) is not None), None) for name, names in COLUMNS.items()}
    return JobStep(int(step), loss, **more)


def _results(content: bytes) -> list[JobStep]:
    """Return the rows of a file of results: a table with commas, which some servers pack as base64; [] where it is none."""
    text = content.decode("utf-8", "replace")
    if not text.startswith("step"):
        try:
            text = base64.b64decode(content, validate=True).decode("utf-8", "replace")
        except ValueError:
            return []
    return [row for told in csv.DictReader(io.StringIO(text)) if (row := _row(told)) is not None]


def _joined(log: Sequence[JobStep], more: Sequence[JobStep]) -> tuple[JobStep, ...]:
    rows = {row.step: row for row in (*log, *more)}
    return tuple(rows[step] for step in sorted(rows))


def _number(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if isfinite(found) else None
