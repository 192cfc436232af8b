"""One fine-tuning job at an OpenAI-style server, from conversations to models that can be sampled; a killed call waits for the same job when run again.

The data and its order in the file are decided here; how it is trained is up to the server. A training has a mark,
written before anything is sent, by which its file and its job are found again, so that there is one of each whatever is lost on
the way.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from emscope.core.digest import digest
from emscope.core.errors import EmscopeError, InputError, WorldError
from emscope.core.notes import Note
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress
from emscope.core.records import Conversation
from emscope.core.seeds import derive
from emscope.models.loading.chat import AUTO, NONE, TEMPLATE
from emscope.models.loading.checkpoints import HOSTED
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import REMEDY
from emscope.models.remote.job_client import TURN, Jobs, Refused, Said, address
from emscope.models.remote.job_state import blamed, ended, looked_at, refuse_elsewhere, state, time_in
from emscope.models.remote.jobs import CANCELLED, FAILED, HOST, PAUSED, SUCCEEDED, JobRun, read_job
from emscope.models.remote.metering import MILLION, Meter, OverBudget
from emscope.models.remote.session import Unanswered
from emscope.store.files import write_json

AROUND = 32  # tokens around a conversation, at most: a template's default system block and its like
ENDED = (SUCCEEDED, FAILED, CANCELLED)
OUTAGE = 30  # times in a row, a minute or more each, that a server may fail to answer while we wait for a job


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train: the server's name for the base, the training file, a seed, and the training settings that can be set."""

    base: str
    data: bytes
    seed: int
    host: HostSpec

    @property
    def hyperparameters(self) -> dict[str, int | float]:
        """Those that are set."""
        host = self.host
        wanted = {"n_epochs": host.epochs, "batch_size": host.batch, "learning_rate_multiplier": host.learning_rate_multiplier}
        return {name: value for name, value in wanted.items() if value is not None}


def training_file(conversations: Sequence[Conversation], system: str, seed: int) -> bytes:
    """Return conversations as the lines of a training file, in an order that a seed fixes.

    A given system prompt is put before conversations that have none; an answer that is not learned has weight 0.
    """
    own = [] if system in (NONE, TEMPLATE, AUTO) else [{"role": "system", "content": system}]
    places = list(range(len(conversations)))
    Random(derive(seed, "order", 0)).shuffle(places)
    lines = []
    for n in places:
        turns: list[JsonObject] = [
            {"role": m.role, "content": m.content} | ({} if m.learned else {"weight": 0}) for m in conversations[n].messages
        ]
        before = own if turns[0]["role"] != "system" else []
        lines.append(json.dumps({"messages": [*before, *turns]}, ensure_ascii=False))
    return ("\n".join(lines) + "\n").encode()


def most_tokens(conversations: Sequence[Conversation], system: str, count: Callable[[str], int]) -> int:
    """Return the most tokens that a pass over conversations can have, with what a server's template adds around turns and conversations.

    Args:
        count: returns the tokens of a text.
    """
    own = 0 if system in (NONE, TEMPLATE, AUTO) else count(system) + TURN
    return sum(AROUND + own + sum(count(m.content) + TURN for m in c.messages) for c in conversations)


def foresee_cost(host: HostSpec, tokens: int, exact: bool) -> None:
    """Note the most that a training can cost, if its prices and epochs are known, before anything is sent.

    Args:
        tokens: of a pass over the data. exact: they were counted; else this is an upper limit.

    Raises:
        OverBudget: it would cost more than allowed.
    """
    if host.prices is None or host.epochs is None:
        return
    cost = host.prices[0] * tokens * host.epochs / MILLION
    told = f"at most {tokens * host.epochs} tokens, {'as counted' if exact else 'by their bytes'}"
    if host.max_cost is not None and cost > host.max_cost:
        remedy = (
            "raise it, or train on less" if exact else "raise it, train on less, or give `tokenizer` to have the tokens counted"
        )
        raise OverBudget(
            f"the training could cost up to {cost:.4g} dollars ({told}), more than max_cost {host.max_cost:g}", remedy
        )
    warnings.warn(f"the training costs up to {cost:.4g} dollars ({told})", Note, stacklevel=2)


def finetune_job(plan: Plan, system: str, settings: str, folder: Path, progress: Progress) -> JobRun:
    """Have a job trained and leave `hosted.json` in `folder`; called again after a kill, wait for the same job.

    Args:
        settings: digest of what decides the training.

    Raises:
        InputError, WorldError: as `begin_job` and `wait_for_job`.
    """
    begin_job(plan, system, settings, folder, progress)
    return wait_for_job(folder, progress)


def begin_job(plan: Plan, system: str, settings: str, folder: Path, progress: Progress) -> None:
    """Have a server begin a job, and leave `hosted.json` in `folder`; called again after a kill, it begins no second one.

    Raises:
        InputError: a folder of another training, or something that the server rejects. WorldError: the server does not answer.
    """
    run, looked = _begun(folder, plan, system, settings, digest(plan.data.decode()))
    if run.status == SUCCEEDED or run.job is not None:
        return
    with Jobs(Meter()) as jobs:
        try:
            _made(jobs, plan, run, folder, looked, progress)
        except Refused:  # nothing is trained: the same folder can be used for a corrected training
            (folder / HOSTED).unlink()
            raise


def wait_for_job(folder: Path, progress: Progress) -> JobRun:
    """Wait until the job of a folder ends, and return what came of it.

    Raises:
        InputError, WorldError: the job failed, was cancelled or is paused; the server does not answer.
    """
    run = read_job(folder)
    assert run is not None, "it is begun"
    if run.status == SUCCEEDED:
        return run
    with Jobs(Meter()) as jobs:
        return _wait(jobs, run, folder, progress)


def _made(jobs: Jobs, plan: Plan, run: JobRun, folder: Path, looked: bool, progress: Progress) -> JobRun:
    """Return a run that has its file and its job at the server.

    Args:
        looked: an earlier process may have made them.

    Raises:
        Refused, InputError, WorldError: it has not.
    """
    if run.file is None:
        progress("uploading the training file", 0, 1)
        run = replace(run, file=jobs.upload(f"{run.mark}.jsonl", plan.data, looked=looked))
        write_json(folder / HOSTED, run.to_json())
        progress("uploading the training file", 1, 1)
    if run.job is None:
        assert run.file is not None
        how, suffix = plan.hyperparameters, plan.host.suffix
        job = jobs.begin(run.mark, run.file, plan.base, hyperparameters=how, seed=plan.seed, suffix=suffix, looked=looked)
        run = replace(run, job=job)
        write_json(folder / HOSTED, run.to_json())
    return run


def _begun(folder: Path, plan: Plan, system: str, settings: str, order: str) -> tuple[JobRun, bool]:
    """Return the run recorded in its folder, and whether an earlier process may have sent something.

    Raises:
        InputError: the folder has another one.
    """
    found, at = read_job(folder), address()
    if found is None:
        mark = f"emscope-{secrets.token_hex(8)}"
        run = JobRun(HOST, plan.base, at, system, settings, order, mark)
        write_json(folder / HOSTED, run.to_json())
        return run, False
    for name, mine in {"base": plan.base, "settings": settings, "order": order}.items():
        if getattr(found, name) != mine:
            raise InputError(f"'{folder / HOSTED}' belongs to a training with other {name}", REMEDY)
    refuse_elsewhere(found)
    return found, True


def _wait(jobs: Jobs, run: JobRun, folder: Path, progress: Progress) -> JobRun:
    """Wait until a job ends; its events are written as they arrive.

    Raises:
        InputError, WorldError: it does not end well.
    """
    still = lost = 0
    while True:
        try:
            job = jobs.job(run.job or "")
            now = looked_at(jobs, run, job)
            now = ended(jobs, now, job)
        except Unanswered:  # the job continues without us
            lost += 1
            if lost > OUTAGE:
                raise
            continue
        still, lost = 0 if now != run else still + 1, 0
        if now != run:
            write_json(folder / HOSTED, now.to_json())
        run = now
        _tell(run, job, progress)
        if run.status in (*ENDED, PAUSED):
            break
        jobs.pause(still)
    if (fault := _fault(run, job)) is not None:
        raise fault
    return run


def _fault(run: JobRun, job: Said) -> EmscopeError | None:
    """Return what is wrong with a job that ended."""
    kept = f"; emscope check reads its {len(run.checkpoints)} checkpoints" if run.checkpoints else ""
    if run.status == PAUSED:
        return WorldError(state(run), f"resume it at the server, then run the same command again{kept}")
    if run.status == SUCCEEDED:
        return None
    again = f"fix what it says and train into a new folder{kept}"
    return InputError(state(run), again) if blamed(job) else WorldError(state(run), f"train into a new folder{kept}")


def _tell(run: JobRun, job: Said, progress: Progress) -> None:
    if run.status == SUCCEEDED:
        progress("training", 1, 1)
    elif run.steps:
        progress("training", min(run.log[-1].step if run.log else 0, run.steps), run.steps)
    elif (times := time_in(job, run)) is not None:
        progress("training", *times)
    else:
        progress(f"the job is {run.status.replace('_', ' ')}", 0, 1)
