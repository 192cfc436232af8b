"""Fine-tuning jobs at an OpenAI-style server: one trained into a folder of its own, or an existing one imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from emscope.core.digest import short
from emscope.core.errors import InputError, WorldError
from emscope.core.plain import LEFT_OUT, JsonObject, Result
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation
from emscope.core.versions import versions
from emscope.models.loading.chat import NONE
from emscope.models.loading.checkpoints import HOSTED
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import hosted_base
from emscope.models.remote.job_client import Jobs, address
from emscope.models.remote.job_state import ended, looked_at, refuse_elsewhere, state
from emscope.models.remote.jobs import HOST, JobCheckpoint, JobRun, JobStep, is_name, read_job
from emscope.models.remote.metering import MILLION, Meter
from emscope.store.files import write_json
from emscope.store.study import Study
from emscope.study.spec import SingleSpec
from emscope.study.training.sources import conversations, frozen
from emscope.train.jobs import Plan, finetune_job, foresee_cost, most_tokens, training_file

SCHEMA = "emscope.train-job/1"


@dataclass(frozen=True, slots=True)
class JobTrained(Result):
    """A finished fine-tuning job: its settings and id, the server's readings of each step, and the resulting models.

    Attributes:
        trained: tokens, as billed. cost: dollars, if the prices are known.
    """

    schema: ClassVar[str] = SCHEMA

    spec: SingleSpec
    job: str
    readings: tuple[JobStep, ...]
    checkpoints: tuple[JobCheckpoint, ...]
    trained: int | None
    cost: float | None = field(default=None, metadata=LEFT_OUT)


def run_job(spec: SingleSpec, host: HostSpec, out: Path, progress: Progress) -> JobTrained:
    """Have a job trained; `out` keeps `hosted.json`, the settings and no weights.

    Raises:
        InputError, WorldError: as `finetune_job`.
    """
    _check(spec)
    data = conversations(spec.file, spec.domain, spec.answers)
    found = read_job(out)
    if found is None or found.job is None:
        foresee_cost(host, *most_tokens_of(spec.model, spec.system, host, data))
    plan = Plan(spec.model, training_file(data, spec.system, spec.seed), spec.seed, host)
    Jobs(Meter())  # a missing key is reported before anything is written
    settings = _settings(spec)
    with Study(out, settings | {"digests": {"data trained on": short([c.content() for c in data])}}, versions()):
        run = finetune_job(plan, spec.system, short(settings), out, progress)
    cost = host.prices[0] * run.trained / MILLION if host.prices and run.trained is not None else None
    return JobTrained(spec, run.job or "", run.log, run.checkpoints, run.trained, cost)


def _check(spec: SingleSpec) -> None:
    """Reject settings that a job does not support.

    Raises:
        InputError: naming the first.
    """
    for name in ("train", "dtype", "chat_kwargs"):
        if getattr(spec, name) != SingleSpec.model_fields[name].default:
            raise InputError(
                f"{name} is set, but a fine-tuning job trains in its server's own way",
                "give epochs, batch and learning_rate_multiplier under host" if name == "train" else "leave it out",
            )


def most_tokens_of(model: str, system: str, host: HostSpec, data: list[Conversation]) -> tuple[int, bool]:
    """Return the most tokens that a pass over the data can have, and whether they were counted; otherwise a token counts as one byte."""
    if host.prices is None or host.tokenizer is None:
        return most_tokens(data, system, lambda text: len(text.encode())), False
    tokenizer = hosted_base(HOST, model, host.tokenizer, system=NONE).tokenizer
    return most_tokens(data, system, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])), True


def _settings(spec: SingleSpec) -> JsonObject:
    """Return what decides the training: not its cost."""
    assert spec.host is not None
    of_job = spec.host.model_dump(mode="json", include={"name", "epochs", "batch", "learning_rate_multiplier", "suffix"})
    return frozen(spec.model_copy(update={"host": None}), {}) | {"host": of_job}


def import_job(id: str, folder: Path, progress: Progress = silent) -> JobRun:
    """Write a server's account of a job, as of now, into `hosted.json` of `folder`.

    Raises:
        InputError: no such job, one without a checkpoint, or a folder of another training.
        WorldError: the server does not answer.
    """
    found = read_job(folder)
    if found is not None and found.job != id:
        raise InputError(f"'{folder / HOSTED}' belongs to the job {found.job}", "choose another folder with `out`")
    if found is None and (folder / HOSTED).is_file():
        raise InputError(f"'{folder}' holds another fine-tune", "choose another folder with `out`")
    if found is not None:
        refuse_elsewhere(found)
    with Jobs(Meter()) as jobs:
        progress("importing", 0, 1)
        job = jobs.job(id)
        base, file = job.get("model"), job.get("training_file")
        if not isinstance(base, str) or not is_name(base):
            raise WorldError(f"the job {id} does not name its base", "check the job on the server")
        fresh = JobRun(HOST, base, address(), NONE, "", None, "", file=str(file) if file else None, job=id)
        run = ended(jobs, looked_at(jobs, found or fresh, job), job)
        progress("importing", 1, 1)
    if not run.checkpoints:
        raise InputError(f"the job {id} has no checkpoint: {state(run)}", "import it again once it has one")
    write_json(folder / HOSTED, run.to_json())
    return run
