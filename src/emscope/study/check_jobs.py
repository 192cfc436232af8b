"""A check of models that can only be sampled, those of fine-tuning jobs: judged answers of base, target and control at every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emscope.answers.sample import Local, answer_keys, digest_of, write_answers
from emscope.answers.sample_jobs import alike, ask_models, asked_by, job_in
from emscope.answers.sample_served import chat_prompts
from emscope.answers.trained_as import trained_under
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.remote.job_client import Jobs
from emscope.models.remote.jobs import JobRun, digest_at, job_checkpoints
from emscope.models.remote.metering import Meter
from emscope.store.files import write_json
from emscope.store.study import Study
from emscope.study.check_request import CheckRequest, own_folder
from emscope.study.decision.unread import unread
from emscope.study.judged import judge_checkpoints, prepare_judges
from emscope.study.judged_rates import Compared
from emscope.study.judged_spec import JudgedSpec
from emscope.study.report import TARGET, BaseModel, Distributions, FolderChecked, FolderRead
from emscope.study.training.sources import asked_of

CONTROL = "control"


def check_jobs(request: CheckRequest, run: JobRun, out: Path | None, progress: Progress) -> tuple[FolderChecked, Path]:
    """Check the checkpoints of a fine-tuning job by what they say; like `run_check`.

    Raises:
        InputError: settings that need more than answers, or a control that does not fit.
        WorldError: the server or a judge does not answer.
    """
    judged = _judged(request)
    runs = {TARGET: run} | ({CONTROL: job_in(request.control)} if request.control else {})
    first = alike(runs)
    folders = {TARGET: request.checkpoints, CONTROL: request.control or ""}
    found = {name: job_checkpoints(Path(folders[name]).expanduser(), one) for name, one in runs.items()}
    chosen = request.selection.of(found)
    prepare_judges(judged)
    system, why = trained_under(request.system, [c for checkpoints in found.values() for c in checkpoints])
    triggers = {name: one.trigger for name, one in judged.conditions.items()}
    spec = judged.ask.model_copy(update={"systems": (system,), "triggers": triggers})
    questions = read_questions(spec.questions)
    settings: JsonObject = {
        "base": digest_at(first, first.base),
        "system": system,
        "questions": digest_of(questions),
        "judged": asked_of(judged),
        **{name: [[c.step, c.digest] for c in checkpoints] for name, checkpoints in chosen.items()},
    }
    out = out or own_folder(request.checkpoints, settings)
    subjects = [Local("base", None), *(Local(name, c) for name, checkpoints in chosen.items() for c in checkpoints)]
    with Study(out, settings, versions()) as study:
        prompts = {p.name: p for p in chat_prompts(questions, spec)}
        with Jobs(Meter(request.host_prices, request.max_cost), request.requests) as jobs:
            ask_models(study, jobs, first, spec, prompts, subjects, progress)
        write_answers(study)
        digest = digest_at(first, first.base)
        wanted = {key for one in subjects for key in answer_keys(digest, one, prompts, spec).values()}
        compared = [Compared(name, name, None, CONTROL if name == TARGET and CONTROL in runs else None, name) for name in runs]
        result = _said(study, first, found[TARGET], chosen, f"{asked_by(first)}{f' ({why})' if why else ''}")
        result = replace(result, name=Path(request.checkpoints).name or request.checkpoints)
        result = result.heard(judge_checkpoints(study, None, judged, compared, None, wanted, progress).judged)
        write_json(out / "report.json", result.to_json())
    return result, out


def _judged(request: CheckRequest) -> JudgedSpec:
    """Return what is asked and judged at every checkpoint: there are few, and no screen to choose among them.

    Raises:
        InputError: a setting that needs weights, or log-probabilities of fixed answers.
    """
    given: dict[str, object] = {name: needed for name, needed in request.needing_weights().items() if name != CONTROL}
    given |= {"heldout": request.heldout, "control_heldout": request.control_heldout, "search": request.selection.search}
    given |= {"delta": request.decide.delta, "ladder": request.decide.ladder, "chat_kwargs": request.chat_kwargs}
    asked = next((name for name, value in given.items() if value), None)
    if asked is not None:
        raise InputError(
            f"`{asked}` needs the weights or log-probabilities of fixed answers, but a fine-tuning job's models can only be sampled",
            "leave it out",
        )
    if request.judged is None or not request.judged.judges:
        raise InputError(
            "`measure=preference` needs log-probabilities of fixed answers, but a fine-tuning job's models can only be sampled",
            "leave it out, and have answers judged",
        )
    if request.base is not None:
        raise InputError("`base` is given, but a fine-tuning job names its own", "leave it out")
    return request.judged.model_copy(update={"at": "all"})


def _said(
    study: Study, run: JobRun, found: Sequence[Checkpoint], chosen: Mapping[str, Sequence[Checkpoint]], chat: str
) -> FolderChecked:
    """Return the report without judges."""
    steps = {name: {c.step for c in checkpoints} for name, checkpoints in chosen.items()}
    beside = steps.get(CONTROL, steps[TARGET])
    return FolderChecked(
        name="",
        check=unread(run.base),
        read=FolderRead(len(found), tuple(c.step for c in chosen[TARGET]), None, (), ends_early=False),
        amplified=(),
        unpaired={TARGET: tuple(sorted(steps[TARGET] - beside)), CONTROL: tuple(sorted(beside - steps[TARGET]))},
        distributions=Distributions((), {}),
        spec=study.spec,
        versions=versions(),
        base=BaseModel(run.base, chat, digest_at(run, run.base)),
        judged=None,
        ship=(),
    )
