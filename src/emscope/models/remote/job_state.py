"""The state of a fine-tuning job: its server's account, as rows of its log, events and checkpoints."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

from emscope.core.errors import InputError, WorldError
from emscope.core.plain import finite
from emscope.core.visible import whole
from emscope.models.remote.address import scrubbed
from emscope.models.remote.job_client import Jobs, Said, address
from emscope.models.remote.jobs import CANCELLED, FAILED, SUCCEEDED, JobCheckpoint, JobEvent, JobRun, JobStep, is_name

WAITING = ("validating_files", "queued")
MOST = 2**53
LONGEST_SAID = 500  # characters of an event
COLUMNS = {  # of the file of results, and in events of the kind metrics
    "accuracy": ("train_mean_token_accuracy", "train_accuracy"),
    "valid_loss": ("valid_loss", "full_valid_loss"),
    "valid_accuracy": ("valid_mean_token_accuracy", "valid_accuracy", "full_valid_mean_token_accuracy"),
}


def refuse_elsewhere(run: JobRun) -> None:
    """Reject a server other than the job's own; a key is never sent to an address from a file.

    Raises:
        InputError: the address in the environment differs.
    """
    if run.address != address():
        raise InputError(
            f"the job {run.job or ''} is at {run.address or 'OpenAI'}, but OPENAI_BASE_URL is {address() or 'not set'}",
            f"set OPENAI_BASE_URL to {run.address}" if run.address else "unset OPENAI_BASE_URL",
        )


def state(run: JobRun) -> str:
    """Say what state a job is in."""
    why = f" ({run.reason})" if run.reason else ""
    words = {CANCELLED: "was cancelled", FAILED: "failed", SUCCEEDED: "succeeded"}.get(run.status, f"is {run.status}")
    return f"the job {run.job} {words}{why}"


def looked_at(jobs: Jobs, run: JobRun, job: Said) -> JobRun:
    """Return a run updated from the server."""
    assert run.job is not None
    said = jobs.events(run.job, run.seen)
    rows = [row for event in said if (row := _row(_data(event))) is not None]
    totals = [n for event in said if (n := _whole(_data(event).get("total_steps"))) is not None]
    status = _short(job.get("status"))
    listed = jobs.checkpoints(run.job) if status not in WAITING else []
    known = {e.id for e in run.events}
    told = [one for event in said if not _data(event) and (one := _event(event)).id not in known]
    return replace(
        run,
        status=status,
        reason=_reason(job),
        trained=_whole(job.get("trained_tokens")),
        steps=totals[-1] if totals else run.steps,
        seen=_short(said[-1].get("id")) if said else run.seen,
        checkpoints=_listed(listed) or run.checkpoints,
        log=_joined(run.log, rows),
        events=(*run.events, *told),
    )


def ended(jobs: Jobs, run: JobRun, job: Said) -> JobRun:
    """Return a finished run with each step from its results file, and the final model as its last checkpoint.

    Raises:
        WorldError: it succeeded but names no model.
    """
    if run.status != SUCCEEDED:
        return run
    log, files = run.log, job.get("result_files")
    for file in files if isinstance(files, list) else ():
        log = _joined(log, _results(jobs.content(str(file))))
    model = job.get("fine_tuned_model")
    if not isinstance(model, str) or not is_name(model):
        raise WorldError(f"the job {run.job} succeeded but names no model", "check the job on the server")
    steps = max((run.steps or 0, *(c.step for c in run.checkpoints), *(row.step for row in log))) or 1
    last = next((c for c in run.checkpoints if c.model == model), JobCheckpoint(steps, model))
    before = tuple(c for c in run.checkpoints if c.step < last.step)
    return replace(run, model=model, steps=steps, log=log, checkpoints=(*before, last))


def blamed(job: Said) -> bool:
    """True where a job failed because of its input, which its server then names."""
    error = job.get("error")
    return isinstance(error, Mapping) and error.get("param") is not None


def time_in(job: Said, run: JobRun) -> tuple[int, int] | None:
    """Return a job's elapsed and estimated time from its server [seconds]; None where not given."""
    begun, end = _whole(job.get("created_at")), _whole(job.get("estimated_finish"))
    if begun is None or end is None or end <= begun:
        return None
    return min(max(0, max((e.at for e in run.events), default=begun) - begun), end - begun), end - begun


def _reason(job: Said) -> str | None:
    error = job.get("error")  # OpenAI's is an empty object where nothing is wrong
    why = error.get("message") if isinstance(error, Mapping) else None
    return _short(f"{error.get('code')}: {why}") if isinstance(error, Mapping) and why else None


def _listed(checkpoints: Sequence[Said]) -> tuple[JobCheckpoint, ...]:
    """Return checkpoints by step; the newest where a step has several."""
    found = {}
    for c in sorted(checkpoints, key=lambda c: finite(c.get("created_at")) or 0):
        step, name, told = _whole(c.get("step_number")), c.get("fine_tuned_model_checkpoint"), c.get("metrics")
        if step is not None and isinstance(name, str) and is_name(name):
            numbers = {k: finite(v) for k, v in told.items() if k != "step"} if isinstance(told, Mapping) else {}
            found[step] = JobCheckpoint(step, name, {_short(k): v for k, v in numbers.items() if v is not None})
    return tuple(found[step] for step in sorted(found))


def _event(event: Said) -> JobEvent:
    at = _whole(event.get("created_at")) or 0
    return JobEvent(_short(event.get("id")), at, _short(event.get("level")), _short(event.get("message")))


def _short(text: object) -> str:
    """Return a server's text as one line, without keys."""
    return scrubbed(" ".join(whole(str(text)).split()))[:LONGEST_SAID]


def _data(event: Said) -> Said:
    """Return the numbers of an event of the kind metrics; nothing for another."""
    data = event.get("data")
    return data if event.get("type") == "metrics" and isinstance(data, Mapping) else {}


def _row(told: Said) -> JobStep | None:
    """Return a step's row; None without step or loss."""
    step, loss = _whole(told.get("step")), finite(told.get("train_loss"))
    if step is None or loss is None:
        return None
    more = {name: next((v for n in names if (v := finite(told.get(n))) is not None), None) for name, names in COLUMNS.items()}
    return JobStep(step, loss, **more)


def _results(content: bytes) -> list[JobStep]:
    """Return the rows of a file of results: a CSV table, which some servers encode as base64; [] where it is not one."""
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


def _whole(value: object) -> int | None:
    """Return a number from 1 on, as steps, tokens and times are; None for anything else."""
    found = finite(value)
    return int(found) if found is not None and 1 <= found < MOST else None
