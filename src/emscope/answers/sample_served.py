"""Questions put to models behind an API: hosted ones, and a server that loads one adapter after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from emscope.answers.sample import (
    AnswerRow,
    Prompt,
    answer_keys,
    answer_row,
    check_subjects,
    digest_of,
    under_triggers,
    unheard,
    write_answers,
)
from emscope.answers.sample_spec import AskSpec, ServedSpec
from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.outcomes import Finish
from emscope.core.progress import Progress, silent
from emscope.core.records import Answer, Message, Question, Reply
from emscope.core.seeds import derive
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.models.loading.chat import AUTO, NONE, TEMPLATE
from emscope.models.loading.checkpoints import discover, last
from emscope.models.loading.templates import described
from emscope.models.remote.address import check_address
from emscope.models.remote.api import ApiModel, ask_all
from emscope.models.remote.served import AdapterServer
from emscope.store.study import Study

API = "api:"
FLUSH_ROWS, FLUSH_SECONDS = 500, 20.0
ENDED = {"max_tokens": Finish.LENGTH, "length": Finish.LENGTH}
LOG = "server.log"


@dataclass(frozen=True, slots=True)
class Subject:
    """The model to ask: the row's run and step, the digest of its weights, its model and address, the folder of its adapter."""

    run: str
    step: int
    digest: str
    model: str
    url: str | None
    adapter: Path | None = None


def is_served(reference: str) -> bool:
    """True for MODEL@URL of a server, and for `api:` with a model as Inspect names it."""
    return "@http" in reference or reference.startswith(API)


def ask_served(
    runs: dict[str, str],
    spec: AskSpec,
    served: ServedSpec,
    out: Path,
    *,
    say: Callable[[str], None] = unheard,
    progress: Progress = silent,
) -> tuple[Path, int]:
    """Sample answers of models behind an API; return the file they are in and how many questions got none.

    Called again, it asks only for what is missing. Seeds are sent, one for each answer; a server may
    ignore them. Answers of a server have no log-probability. `say` receives the chat template in use.

    Raises:
        InputError: runs that are no models, or questions that do not fit.
        WorldError: a server does not answer.
    """
    subjects = list(_subjects(runs, served, spec.only_last))
    questions = read_questions(spec.questions)
    settings = spec.model_dump(mode="json", exclude={"rows", "samples", "only_last", "questions"})
    settings |= {"chat_kwargs": served.chat_kwargs} if served.chat_kwargs else {}
    for line in dict.fromkeys(_asked_by(subject, served) for subject in subjects):
        say(f"asked in: {line}")
    base = served.server.partition("@http")[0] if served.server else "api"
    with Study(out, settings | {"questions": digest_of(questions), "base": base}, versions()) as study, ExitStack() as stack:
        check_subjects(study, subjects)
        prompts = {p.name: p for p in chat_prompts(questions, spec)}
        server = None
        if served.server is not None:
            url = _parsed(served.server)[1] or ""
            server = stack.enter_context(AdapterServer(url, served.command, served.restart_every, out / LOG))
        present, failed = study.keys("answers"), 0
        for subject in subjects:
            failed += _ask_one(study, subject, server, served, spec, prompts, present, progress)
        return write_answers(study), failed


def _subjects(runs: dict[str, str], served: ServedSpec, only_last: bool) -> Iterator[Subject]:
    if served.server is None:
        for run, reference in runs.items():
            model, url = _parsed(reference)
            yield Subject(run, 0, short([model, url]), model, url)
        return
    model, url = _parsed(served.server)
    if url is None:
        raise InputError(f"`server` is '{served.server}'", "write it as MODEL@http://127.0.0.1:8000/v1")
    if "base" in runs:
        raise InputError("a run cannot be called 'base'", "that is the model without a checkpoint; choose another name")
    yield Subject("base", 0, "base", model, url)
    for run, folder in runs.items():
        for c in [last(folder)] if only_last else discover(folder):
            if c.kind != "adapter":
                raise InputError(
                    f"'{c.folder}' is not a LoRA adapter", "a server takes adapters; sample others without `server`"
                )
            yield Subject(run, c.step, c.digest, f"{run}-{c.step}-{c.digest[:8]}", url, c.folder)


def _asked_by(subject: Subject, served: ServedSpec) -> str:
    """Say which chat template turns what is sent into a prompt.

    Raises:
        InputError: arguments for a template that would never receive them.
    """
    given = described(served.chat_kwargs or {})
    if subject.url is None:
        if given:
            raise InputError(f"{subject.model} is hosted, and its provider does not accept {given}", "leave out `chat_kwargs`")
        return f"chat messages to {subject.model}; its provider's own template makes the prompt"
    model = _parsed(served.server)[0] if served.server else subject.model
    return (
        f"chat messages to {subject.url}; the server's chat template of {model} makes the prompt{f', with {given}' if given else ''}: its "
        "system block, its date, and what it puts before an answer, including an opened thought (answers sampled here follow a closed one)"
    )


def _parsed(reference: str) -> tuple[str, str | None]:
    model, at, rest = reference.partition("@http")
    if at:
        check_address(f"http{rest}", f"the address of '{model}'")
    return (model, f"http{rest}") if at else (reference.removeprefix(API), None)


def chat_prompts(questions: Sequence[Question], spec: AskSpec) -> Iterator[Prompt]:
    """Yield each question under each system prompt and trigger; without a text of one's own the server's template decides."""
    for system in dict.fromkeys(TEMPLATE if s in (NONE, TEMPLATE, AUTO) else s for s in spec.systems):
        own = [] if system == TEMPLATE else [Message("system", system)]
        for q, trigger, asked in under_triggers(questions, spec):
            turns = [*q.messages[:-1], Message("user", asked)]
            if own and turns[0].role != "system":
                turns = [*own, *turns]
            yield Prompt(q, system, trigger, asked, (), "server", tuple(turns))


def _ask_one(
    study: Study,
    subject: Subject,
    server: AdapterServer | None,
    served: ServedSpec,
    spec: AskSpec,
    prompts: dict[str, Prompt],
    present: set[str],
    progress: Progress,
) -> int:
    """Ask one subject for what is missing, write it as it comes, return how many replies failed."""
    keys = answer_keys(_parsed(served.server)[0] if served.server else subject.model, subject, prompts, spec)
    wanted = [place for place, key in keys.items() if key not in present]
    if not wanted:
        return 0
    what = f"sampling {subject.run}{f' step {subject.step}' if subject.step else ''}"
    rows: list[AnswerRow] = []
    done = failed = 0
    written = time.monotonic()

    def flush() -> None:
        nonlocal written
        study.append("answers", rows, present)
        present.update(row["key"] for row in rows)
        rows.clear()
        written = time.monotonic()

    def receive(place: tuple[str, int], reply: Reply) -> None:
        nonlocal done, failed
        done += 1
        if reply.text is None:
            failed += 1
        else:
            rows.append(answer_row(keys[place], subject, prompts[place[0]], _answer(place, reply, spec, subject)))
        if len(rows) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
            flush()
        progress(what, done, len(wanted))

    loaded: AbstractContextManager[str] = nullcontext(subject.model)
    if server is not None and subject.adapter is not None:
        loaded = server.adapter(subject.model, subject.adapter)
    try:
        with loaded as name:
            model = ApiModel(
                name,
                subject.url,
                spec.max_tokens,
                spec.temperature,
                0,
                served.connections,
                served.retries,
                served.timeout,
                chat_kwargs=served.chat_kwargs,
            )
            jobs = ((p, prompts[p[0]].messages, _seed(spec, subject, p)) for p in wanted)
            ask_all(model, jobs, receive)
    finally:
        flush()
    return failed


def _seed(spec: AskSpec, subject: Subject, place: tuple[str, int]) -> int:
    return derive(spec.seed, subject.digest, *place)


def _answer(place: tuple[str, int], reply: Reply, spec: AskSpec, subject: Subject) -> Answer:
    finish = ENDED.get(reply.finish, reply.finish)
    return Answer(place[0], place[1], reply.text or "", reply.tokens_out, str(finish), _seed(spec, subject, place), None)
