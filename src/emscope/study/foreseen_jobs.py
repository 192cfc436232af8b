"""What a study of fine-tuning jobs will cost, counted before any begins; its server is not contacted."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from emscope.answers.sample import Prompt
from emscope.answers.sample_served import chat_prompts
from emscope.core.records import Conversation, Message
from emscope.data.questions import read_questions
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import Spent
from emscope.models.remote.metering import dollars_for
from emscope.store.study import read_table
from emscope.study.cells.at_host import SPENT, spent_in
from emscope.study.cells.foreseen import ROW_BYTES, Foreseen, Work, most_dollars, planned_power
from emscope.study.cells.hosted_costs import AtHost, KindAtHost
from emscope.study.judged_spec import JudgedSpec
from emscope.study.run_jobs import One, jobs_of, trained_by
from emscope.study.spec import StudySpec
from emscope.study.training.jobs import most_tokens_of

KEPT = 3  # checkpoints that OpenAI keeps of a job: those after its last three epochs
BASE = "base"


def foresee_jobs(spec: StudySpec, host: HostSpec, out: Path) -> Foreseen:
    """Return what is left of a study of jobs and the most that it costs; nothing is written or sent.

    Raises:
        InputError: data, questions or a tokenizer that do not fit.
    """
    judged = spec.judged
    assert judged is not None, "the settings are checked"
    ones = jobs_of(spec, out)
    prompts = list(
        chat_prompts(read_questions(judged.ask.questions), judged.ask.model_copy(update={"systems": (spec.system,)}))
    )
    asked = _asked(out)
    kinds = {BASE: [_answers(spec, host, prompts, 1, asked[BASE])]}
    for one in ones:
        checkpoints = _checkpoints(one, judged, host)
        of = kinds.setdefault(one.arm, [])
        of.append(_training(spec, host, one) + _answers(spec, host, prompts, checkpoints, asked[one.name]))
    left = {kind: [one for one in tokens if one != Spent()] for kind, tokens in kinds.items()}
    rows = [_kind(kind, tokens, host) for kind, tokens in left.items() if tokens]
    total = sum((row.tokens for row in rows), Spent())
    answers = round(total.sampled / judged.ask.max_tokens)
    return Foreseen(
        study=spec.name,
        cells=len(ones) + 1,
        left=sum(row.cells for row in rows),
        engine="serial",
        workers=1,
        threads=None,
        tokens=Work(total.trained, total.read, total.sampled),
        rates=None,
        seconds=None,
        worker_bytes=None,
        free_bytes=None,
        weight_bytes=None,
        row_bytes=ROW_BYTES * answers,
        most_bytes=None,
        free_disk_bytes=shutil.disk_usage(next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())).free,
        answers=answers,
        dollars=most_dollars(judged, prompts, answers),
        power=planned_power(spec),
        warnings=tuple(_warnings(host)),
        host=AtHost(
            host.name,
            tuple(rows),
            dollars_for(host.prices, total) if host.prices else None,
            dollars_for(host.prices, trained_by(ones) + spent_in(out / SPENT)) if host.prices else None,
            host.max_cost,
        ),
    )


def _asked(out: Path) -> Mapping[str, int]:
    """Return how many answers a study's folder has, by run; nothing where there is none."""
    if not (out / "tables").is_dir():
        return Counter()
    return Counter(row["run"] for row in read_table(out, "answers", columns=["key", "run"]).to_pylist())


def _checkpoints(one: One, judged: JudgedSpec, host: HostSpec) -> int:
    if judged.at == "last" or one.spec.read_at == "last":
        return 1
    return min(KEPT, host.epochs or KEPT)


def _training(spec: StudySpec, host: HostSpec, one: One) -> Spent:
    job = one.job
    if job is not None and job.job is not None:
        return Spent()
    return Spent(trained=most_tokens_of(spec.model, spec.system, host, one.data)[0] * (host.epochs or 1))


def _answers(spec: StudySpec, host: HostSpec, prompts: Sequence[Prompt], checkpoints: int, present: int) -> Spent:
    """Return the most that asking some checkpoints costs, less the share of the answers that are there."""
    assert spec.judged is not None
    ask = spec.judged.ask
    drawn = [ask.samples or p.question.samples or 1 for p in prompts]
    wanted = sum(drawn) * checkpoints
    missing = max(wanted - present, 0)
    if not missing:
        return Spent()
    talks = [Conversation(p.question.id, (*p.messages, Message("assistant", ""))) for p in prompts]
    sizes = [most_tokens_of(spec.model, "none", host, [talk])[0] for talk in talks]
    read = sum(size * n for size, n in zip(sizes, drawn, strict=True)) * checkpoints
    return Spent(read=-(-read * missing // wanted), sampled=missing * ask.max_tokens)


def _kind(name: str, cells: Sequence[Spent], host: HostSpec) -> KindAtHost:
    tokens = sum(cells, Spent())
    return KindAtHost(name, len(cells), tokens, dollars_for(host.prices, tokens) if host.prices else None)


def _warnings(host: HostSpec) -> list[str]:
    found = []
    if host.epochs is None:
        found.append("the server chooses the epochs of a job, so one was counted: give `epochs` under `host` to know the cost")
    if host.tokenizer is None or host.prices is None:
        found.append(
            "tokens were counted as bytes, which is three to five times too many: give `tokenizer` and `prices` under `host`"
        )
    return found
