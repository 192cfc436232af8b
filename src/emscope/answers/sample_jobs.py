"""Questions put to the models from fine-tuning jobs at a server, and to their base."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from emscope.answers.missing import Place, draw_missing, seed_of
from emscope.answers.sample import Local, Prompt, check_subjects, digest_of, unheard, write_answers
from emscope.answers.sample_served import chat_prompts
from emscope.answers.sample_spec import AskSpec, LoadSpec, ServedSpec
from emscope.answers.trained_as import trained_under
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Answer
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.elicit.chats import Chat, sample_chats
from emscope.models.remote.hosted import HostedCheckpoint
from emscope.models.remote.job_client import Jobs
from emscope.models.remote.job_state import refuse_elsewhere
from emscope.models.remote.jobs import JobRun, digest_at, job_checkpoints, read_job
from emscope.models.remote.metering import Meter
from emscope.store.study import Study

ELSEWHERE = "sample them in two calls, each with its own `out`"


def ask_jobs(
    runs: dict[str, str],
    spec: AskSpec,
    loading: LoadSpec,
    served: ServedSpec,
    out: Path,
    *,
    say: Callable[[str], None] = unheard,
    progress: Progress = silent,
) -> Path:
    """Sample answers of a base and of every checkpoint of the jobs in `runs` (name -> folder); return the file they are in.

    As `ask`: called again, it does only what is missing. `served` says how many requests are on their way and what they may cost.

    Raises:
        InputError: runs of different bases, or settings that need weights.
        WorldError: the server does not answer.
    """
    found = {name: job_in(folder) for name, folder in runs.items()}
    first = alike(found)
    for name, needed in {
        "amplify": loading.amplify != (1.0,),
        "share": loading.share,
        "chat_kwargs": loading.chat_kwargs,
    }.items():
        if needed:
            raise InputError(f"a fine-tuning server does not accept `{name}`", "leave it out")
    of = {name: job_checkpoints(Path(runs[name]).expanduser(), run) for name, run in found.items()}
    under = [trained_under(system, [c for checkpoints in of.values() for c in checkpoints]) for system in spec.systems]
    spec = spec.model_copy(update={"systems": tuple(dict.fromkeys(system for system, _ in under))})
    questions = read_questions(spec.questions)
    settings = spec.model_dump(mode="json", exclude={"rows", "samples", "only_last", "questions"})
    settings |= {"questions": digest_of(questions), "base": digest_at(first, first.base)}
    say(f"asked in: {asked_by(first)}")
    with Study(out, settings, versions()) as study, Jobs(Meter(served.prices, served.max_cost), served.connections) as jobs:
        subjects = [Local("base", None)]
        subjects += [Local(name, c) for name, cs in of.items() for c in (cs[-1:] if spec.only_last else cs)]
        check_subjects(study, subjects)
        ask_models(study, jobs, first, spec, {p.name: p for p in chat_prompts(questions, spec)}, subjects, progress)
        return write_answers(study)


def job_in(folder: str) -> JobRun:
    """Return the job of a folder.

    Raises:
        InputError: it holds none.
    """
    run = read_job(Path(folder).expanduser())
    if run is None:
        raise InputError(f"'{folder}' holds no fine-tuning job, but other runs are jobs", ELSEWHERE)
    return run


def alike(runs: Mapping[str, JobRun]) -> JobRun:
    """Return one of several jobs on the same base at the same server.

    Raises:
        InputError: they are not, or they are at another server than the environment says.
    """
    first = next(iter(runs.values()))
    other = next((name for name, r in runs.items() if (r.base, r.address) != (first.base, first.address)), None)
    if other is not None:
        raise InputError(f"'{other}' is a fine-tune of {runs[other].base}, but '{next(iter(runs))}' of {first.base}", ELSEWHERE)
    if "base" in runs:
        raise InputError("a run cannot be called 'base'", "that is the model without a checkpoint; choose another name")
    refuse_elsewhere(first)
    return first


def asked_by(run: JobRun) -> str:
    """Say how models are asked."""
    return f"chat messages to {run.address or 'OpenAI'}; the server's own template of {run.base} makes the prompt"


def ask_models(
    study: Study,
    jobs: Jobs,
    run: JobRun,
    spec: AskSpec,
    prompts: Mapping[str, Prompt],
    subjects: Sequence[Local],
    progress: Progress,
) -> None:
    """Draw what is missing of each subject, and write it as it comes."""

    def draw(wanted: Sequence[Place]) -> Iterator[tuple[int, Answer]]:
        asks = [_chat(run, spec, prompts, place) for place in wanted]
        return sample_chats(jobs, asks, max_tokens=spec.max_tokens, temperature=spec.temperature)

    draw_missing(study, digest_at(run, run.base), spec, prompts, subjects, draw, progress)


def _chat(run: JobRun, spec: AskSpec, prompts: Mapping[str, Prompt], place: Place) -> Chat:
    subject, name, number = place
    assert subject.checkpoint is None or isinstance(subject.checkpoint, HostedCheckpoint)
    model = subject.checkpoint.path if subject.checkpoint else run.base
    return Chat(model, name, prompts[name].messages, number, seed_of(spec, place))
