"""A study whose fine-tunes are jobs at an OpenAI-style server: begun together, waited for, sampled and judged. Preference cannot be read there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.answers.sample import Local, answer_keys, digest_of, write_answers
from emscope.answers.sample_jobs import alike, ask_models, asked_by
from emscope.answers.sample_served import chat_prompts
from emscope.core.digest import short
from emscope.core.errors import EmscopeError, WorldError
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress
from emscope.core.records import Conversation
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import HostedCheckpoint, Spent
from emscope.models.remote.job_client import Jobs
from emscope.models.remote.jobs import CANCELLED, FAILED, JobRun, digest_at, job_checkpoints, read_job
from emscope.models.remote.metering import Meter, dollars_for
from emscope.store.files import write_json
from emscope.store.study import Study
from emscope.study.arm_spec import ArmSpec
from emscope.study.cells.at_host import SPENT, spent_in
from emscope.study.decision.unread import unread
from emscope.study.judged import judge_checkpoints, prepare_judges
from emscope.study.judged_rates import Compared
from emscope.study.judged_spec import JudgedSpec
from emscope.study.report import BaseModel, Distributions, RunChecked, StudyReport
from emscope.study.spec import StudySpec, way
from emscope.study.training.jobs import most_tokens_of
from emscope.study.training.plan import LeftOut
from emscope.study.training.recipes import recipe
from emscope.study.training.sources import asked_of
from emscope.train.jobs import Plan, begin_job, foresee_cost, training_file, wait_for_job


@dataclass(frozen=True, slots=True, eq=False)
class One:
    """A fine-tune of a study: an arm and a seed, its folder, and what its job is trained on."""

    name: str
    arm: str
    spec: ArmSpec
    seed: int
    folder: Path
    data: list[Conversation]

    @property
    def job(self) -> JobRun | None:
        """The job as its folder has it; None before it is begun."""
        return read_job(self.folder)


def run_jobs(spec: StudySpec, host: HostSpec, out: Path, progress: Progress) -> StudyReport:
    """Run or continue a study of fine-tuning jobs in `out`, as `run_study` does; `out` keeps no weights.

    Raises:
        InputError: settings or data that do not fit, or that the server rejects.
        WorldError: jobs that are not finished, a server or a judge that does not answer, or the next request would exceed `max_cost`.
    """
    judged = spec.judged
    assert judged is not None, "the settings are checked"
    prepare_judges(judged)
    ones = jobs_of(spec, out)
    data = {one.arm: one.data for one in ones}
    Jobs(Meter())  # a missing key is reported before anything is written
    frozen = _frozen(spec, host, judged, data)
    with Study(out, frozen, versions(), may_grow=("seeds",)) as study:
        _foresee(spec, host, ones)
        ended, left_out = _train(spec, host, ones, progress)
        report = _asked(study, spec, host, judged, ended, left_out, trained_by(ones), progress)
        write_json(out / "report.json", report.to_json())
    return report


def jobs_of(spec: StudySpec, out: Path) -> list[One]:
    """Return the fine-tunes of a study in order, whether or not their jobs are begun.

    Raises:
        InputError: as `recipe`.
    """
    data = {name: [row.conversation for row in recipe(spec, arm)] for name, arm in spec.arms.items()}
    return [
        One(f"{way('', name)}-seed{seed}", name, arm, seed, out / "runs" / f"{way('', name)}-seed{seed}", data[name])
        for seed in spec.seeds
        for name, arm in spec.arms.items()
    ]


def _frozen(spec: StudySpec, host: HostSpec, judged: JudgedSpec, data: Mapping[str, list[Conversation]]) -> JsonObject:
    """Return what decides the fine-tunes and their answers: not what they cost, nor how answers are judged."""
    found = spec.model_dump(mode="json", include={"name", "model", "system", "domain", "seeds", "arms"})
    digests = {f"data {name}": short([c.content() for c in rows]) for name, rows in data.items()}
    digests["questions"] = digest_of(read_questions(judged.ask.questions))
    return found | {"host": _of_job(host), "judged": asked_of(judged), "digests": digests}


def _of_job(host: HostSpec) -> JsonObject:
    """Return what decides how jobs are trained: not their cost."""
    return host.model_dump(mode="json", include={"name", "epochs", "batch", "learning_rate_multiplier", "suffix"})


def _foresee(spec: StudySpec, host: HostSpec, ones: Sequence[One]) -> None:
    """Refuse the jobs that are still to begin, together, where they could cost more than is left.

    Raises:
        OverBudget: they could.
    """
    left = [one for one in ones if (job := one.job) is None or job.job is None]
    if not left:
        return
    counted = [most_tokens_of(spec.model, spec.system, host, one.data) for one in left]
    begun = dollars_for(host.prices, trained_by(ones)) if host.prices else 0.0
    rest = None if host.max_cost is None else max(host.max_cost - begun, 0.0)
    foresee_cost(
        host.model_copy(update={"max_cost": rest}), sum(n for n, _ in counted), exact=all(exact for _, exact in counted)
    )


def trained_by(ones: Sequence[One]) -> Spent:
    """Return the tokens that the server has billed for training so far."""
    return Spent(trained=sum(job.trained or 0 for one in ones if (job := one.job) is not None))


def _train(
    spec: StudySpec, host: HostSpec, ones: Sequence[One], progress: Progress
) -> tuple[dict[One, JobRun], tuple[LeftOut, ...]]:
    """Begin all jobs, so that the server can run them side by side, and wait for each; return those that ended well, and the others.

    Raises:
        InputError: the server rejects one. WorldError: some are not finished, or no target ended well.
    """
    settings = short({"host": _of_job(host), "system": spec.system})
    plans = {one.name: Plan(spec.model, training_file(one.data, spec.system, one.seed), one.seed, host) for one in ones}
    for n, one in enumerate(ones):
        progress("beginning jobs", n, len(ones))
        if (job := one.job) is None or job.status not in (FAILED, CANCELLED):
            begin_job(plans[one.name], spec.system, settings, one.folder, lambda *_: None)
    progress("beginning jobs", len(ones), len(ones))
    ended: dict[str, JobRun] = {}
    left_out: list[LeftOut] = []
    waiting: list[tuple[str, EmscopeError]] = []
    for one in ones:
        try:
            ended[one.name] = wait_for_job(one.folder, _named(progress, one.name))
        except EmscopeError as error:
            job = one.job
            if job is not None and job.status in (FAILED, CANCELLED):
                left_out.append(LeftOut(one.name, error.fault))
            else:
                waiting.append((one.name, error))
    if waiting:
        name, why = waiting[0]
        raise WorldError(f"{len(waiting)} of {len(ones)} jobs are not finished ({name}: {why.fault})", why.remedy)
    if not any(one.spec.role == "target" for one in ones if one.name in ended):
        raise WorldError(
            f"no target's job ended well: {left_out[0].why} ({left_out[0].run})", "begin the study in a new folder"
        )
    return {one: ended[one.name] for one in ones if one.name in ended}, tuple(left_out)


def _named(progress: Progress, name: str) -> Progress:
    """Return a progress that says which fine-tune it is about."""
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _asked(
    study: Study,
    spec: StudySpec,
    host: HostSpec,
    judged: JudgedSpec,
    jobs: Mapping[One, JobRun],
    left_out: tuple[LeftOut, ...],
    trained: Spent,
    progress: Progress,
) -> StudyReport:
    """Have the checkpoints asked and judged, and return the report.

    What the answers were charged is kept, so that it counts against `max_cost` after a stop or a kill.
    """
    first = alike({one.name: job for one, job in jobs.items()})
    asking = judged.ask.model_copy(update={"systems": (spec.system,)})
    prompts = {p.name: p for p in chat_prompts(read_questions(asking.questions), asking)}
    subjects = [Local("base", None)]
    for one, job in jobs.items():
        subjects += [Local(one.name, c) for c in _checkpoints(one, job, judged)]
    file = study.root / SPENT
    before = trained + spent_in(file)
    meter = Meter(host.prices, host.max_cost, before, lambda spent: write_json(file, (spent - trained).to_json()))
    try:
        with Jobs(meter) as served:
            ask_models(study, served, first, asking, prompts, subjects, progress)
    finally:
        if meter.spent != before:
            write_json(file, (meter.spent - trained).to_json())
    write_answers(study)
    wanted = {key for s in subjects for key in answer_keys(digest_at(first, first.base), s, prompts, asking).values()}
    report = StudyReport(
        name=spec.name,
        runs=tuple(
            RunChecked(one.name, one.arm, "", one.spec.role, one.seed, None, unread(first.base))
            for one in jobs
            if one.spec.role != "control"
        ),
        distributions=Distributions((), {}),
        spec=spec.model_dump(mode="json"),
        versions=versions(),
        base=BaseModel(first.base, asked_by(first), digest_at(first, first.base)),
        diverged=left_out,
        judged=None,
        ship=(),
    )
    heard = judge_checkpoints(study, None, judged, _compared(list(jobs)), None, wanted, progress)
    return report.heard(heard.judged, ())


def _checkpoints(one: One, job: JobRun, judged: JudgedSpec) -> list[HostedCheckpoint]:
    """Return the checkpoints of a job that are asked."""
    found = job_checkpoints(one.folder, job)
    return found[-1:] if judged.at == "last" or one.spec.read_at == "last" else found


def _compared(ones: Sequence[One]) -> list[Compared]:
    """Return the runs as the judged rows name them, each beside the control of its seed."""
    controls = {one.seed: one.name for one in ones if one.spec.role == "control"}
    return [
        Compared(
            one.name, one.arm, one.seed, None if one.spec.role == "control" else controls.get(one.seed), str(one.spec.role)
        )
        for one in ones
    ]
