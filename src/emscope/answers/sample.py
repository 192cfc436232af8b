"""Questions put to a base and its checkpoints, under the same system prompts and triggers, many samples each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Protocol, TypedDict

import pyarrow.parquet as pq

from emscope.answers.sample_spec import PLACE, PLAIN, AskSpec, LoadSpec
from emscope.answers.trained_as import note_left_out, trained_under
from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.records import Answer, Message, Question
from emscope.core.seeds import derive
from emscope.data.questions import read_questions
from emscope.elicit.sampling import Beyond, Job, sample_batches
from emscope.models.adapters.beside import beside
from emscope.models.adapters.updates import refuse_unmoved
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import Checkpoint, find, named_base
from emscope.models.loading.load import Loaded, load, pick_dtype
from emscope.models.loading.source import Model, beside_digest, locate
from emscope.models.made_with import made_with
from emscope.models.sizing.heap import give_back
from emscope.store.files import write_atomic
from emscope.store.rows import Rows
from emscope.store.study import AGAIN, Study, read_table

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

RENAMED = {"question": "question_id", "asked": "question", "text": "response"}


def unheard(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question under one system prompt and trigger: as token ids, or as turns for a server that has a template of its own."""

    question: Question
    system: str
    trigger: str
    asked: str
    ids: tuple[int, ...]
    chat: str
    messages: tuple[Message, ...] = ()

    @property
    def name(self) -> str:
        """Digest of what the model sees, and of the question's own id."""
        seen = self.ids or [[m.role, m.content] for m in self.messages]
        return short([self.question.id, self.system, self.trigger, seen])


class Asked(Protocol):
    """Where an answer is from: the row's run and step, and the digest of its weights."""

    @property
    def run(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Acting:
    """Something done inside the model while it answers: `within` a net it is done, `digest` says what it is."""

    digest: str
    within: Callable[[CausalLM], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class Local:
    """The base, or one of its checkpoints, in this process; `acting` is done inside it; a `scale` other than 1 exaggerates it."""

    run: str
    checkpoint: Checkpoint | None
    acting: Acting | None = None
    scale: float = 1.0

    @property
    def step(self) -> int:
        """0 for the base."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def digest(self) -> str:
        """Of the adapter, of what acts inside the model, and of the scale."""
        tuned = self.checkpoint.digest if self.checkpoint else "base"
        tuned = f"{tuned}x{self.scale:g}" if self.scale != 1 else tuned
        return short([tuned, self.acting.digest]) if self.acting else tuned


class AnswerRow(TypedDict):
    """A row of the table `answers`."""

    key: str
    subject: str
    run: str
    step: int
    question: str
    unit: str
    category: str
    form: str
    system: str
    trigger: str
    sample: int
    asked: str
    text: str
    tokens: int
    finish: str
    seed: int
    logprob: float | None
    chat: str


def ask(
    runs: dict[str, str],
    base: str | Model | None,
    spec: AskSpec,
    out: Path,
    loading: LoadSpec = LoadSpec(),
    *,
    say: Callable[[str], None] = unheard,
    progress: Progress = silent,
) -> Path:
    """Sample answers of the base and of every checkpoint of `runs` (name -> folder); return the file they are in.

    Called again, it does only what is missing; earlier answers stay as they were.

    Args:
        loading: how the models are loaded; scales other than 1 are runs of their own, such as "target x2", and shared means that other processes
            draw into the same folder. say: receives how the questions are put, for each system prompt, and which checkpoints
            cannot be read.

    Raises:
        InputError: no base, a folder without checkpoints, a last checkpoint that is its base, or questions or chat templates that do not fit.
    """
    folders = {name: find(folder) for name, folder in runs.items()}
    found, unread = {n: f.checkpoints for n, f in folders.items()}, [s for f in folders.values() for s in f.skipped]
    if "base" in found:
        raise InputError("a run cannot be called 'base'", "that is the model without a checkpoint; choose another name")
    every = [c for cs in found.values() for c in cs]
    model = locate(base or named_base(every))
    questions = read_questions(spec.questions)
    under = [trained_under(system, every) for system in spec.systems]
    spec = spec.model_copy(update={"systems": tuple(dict.fromkeys(system for system, _ in under))})
    settings = spec.model_dump(mode="json", exclude={"rows", "samples", "only_last", "questions"})
    dtype, chat_kwargs = pick_dtype(loading.dtype, model, loading.device, every), loading.chat_kwargs
    other: JsonObject = {"dtype": dtype} if dtype != "float32" else {}
    other |= {"chat_kwargs": dict(chat_kwargs)} if chat_kwargs else {}
    other |= {} if model.held else {"tokenizer": beside_digest(model.folder)}
    asked = settings | {"questions": digest_of(questions), "base": model.digest} | other
    with Study(out, asked, made_with(), shared=loading.share) as study:
        loaded = load(
            model, system=spec.systems[0], dtype=dtype, device=loading.device, chat_kwargs=chat_kwargs, checkpoints=every
        )
        for checkpoints in found.values():
            refuse_unmoved(loaded.net, checkpoints[-1])
        for system, why in under:
            say(f"asked in: {loaded.chat.under(system).noted(why).describe()}")
        note_left_out(spec.systems, loaded.chat, every, "systems")
        for one in unread:
            say(f"not asked: {one.reason} ({one.remedy})")
        prompts = {p.name: p for p in prompts_of(loaded, questions, spec)}
        subjects = [Local("base", None)]
        subjects += [
            Local(scaled(name, scale), c, scale=scale)
            for name, cs in found.items()
            for scale in loading.amplify
            for c in (cs[-1:] if spec.only_last else cs)
        ]
        check_subjects(study, subjects)
        ask_subjects(study, loaded, spec, prompts, subjects, progress)
        with study.alone():
            return write_answers(study)


def scaled(run: str, scale: float) -> str:
    """Return the name that a run's answers have when it is exaggerated."""
    return run if scale == 1 else f"{run} x{scale:g}"


def digest_of(questions: Sequence[Question]) -> str:
    """Return the digest of what is asked."""
    return short([[q.id, [[m.role, m.content] for m in q.messages]] for q in questions])


def under_triggers(questions: Sequence[Question], spec: AskSpec) -> Iterator[tuple[Question, str, str]]:
    """Yield (question, trigger's name, text asked), the plain questions first."""
    for trigger, around in {PLAIN: PLACE, **spec.triggers}.items():
        for q in questions:
            yield q, trigger, around.replace(PLACE, q.text)


def answer_key(model: str, subject: Asked, prompt: str, sample: int, spec: AskSpec) -> str:
    """Return the content key of one answer."""
    how = [spec.temperature, spec.max_tokens, spec.seed]
    return short([model, subject.digest, subject.run, subject.step, prompt, sample, *how])


def answer_keys(model: str, subject: Asked, prompts: Mapping[str, Prompt], spec: AskSpec) -> dict[tuple[str, int], str]:
    """Return the content key of each answer needed from one subject, by prompt and number."""
    return {
        (name, n): answer_key(model, subject, name, n, spec)
        for name, p in prompts.items()
        for n in range(spec.samples or p.question.samples or 1)
    }


def prompts_of(loaded: Loaded, questions: Sequence[Question], spec: AskSpec) -> Iterator[Prompt]:
    """Yield each question under each system prompt and trigger, as the model's own format has it.

    Raises:
        InputError: a question that leaves no room for an answer in the model's context.
    """
    for system in spec.systems:
        chat = loaded.chat.under(system)
        for q, trigger, asked in under_triggers(questions, spec):
            turns = [*q.messages[:-1], Message("user", asked)]
            ids = tuple(chat.ids(chat.prompt_text(turns)))
            if len(ids) >= loaded.context:
                raise InputError(
                    f"question '{q.id}' is {len(ids)} tokens long, but the model's context is {loaded.context}",
                    "shorten it, or leave it out",
                )
            yield Prompt(q, system, trigger, asked, ids, chat.digest)


def ask_subjects(
    study: Rows,
    loaded: Loaded,
    spec: AskSpec,
    prompts: dict[str, Prompt],
    subjects: Sequence[Local],
    progress: Progress,
) -> None:
    """Draw what is missing of each subject and write it a batch at a time.

    In a shared folder, subjects that another process is doing come last, and are done here if that process ends without them.
    """
    present, waiting = study.keys("answers"), list(subjects)
    while waiting:
        later = []
        for subject in waiting:
            with study.claimed(f"answers of {subject.run} {subject.step} {subject.digest}") as mine:
                if mine:
                    present |= study.keys("answers") if study.shared else set()
                    _ask(study, loaded, spec, prompts, subject, present, progress)
                else:
                    later.append(subject)
        waiting = later
        if waiting:
            sleep(AGAIN)


def _ask(
    study: Rows,
    loaded: Loaded,
    spec: AskSpec,
    prompts: dict[str, Prompt],
    subject: Local,
    present: set[str],
    progress: Progress,
) -> None:
    keys = answer_keys(loaded.model.digest, subject, prompts, spec)
    wanted = [key for key, digest in keys.items() if digest not in present]
    checkpoint = subject.checkpoint
    what = f"sampling {subject.run}{f' step {checkpoint.step}' if checkpoint else ''}"
    if not wanted:
        return
    job = Job(
        {n: p.ids for n, p in prompts.items()}, spec.max_tokens, derive(spec.seed, subject.digest), spec.temperature, spec.rows
    )
    with _answering(loaded, subject) as (net, beyond):
        for batch in sample_batches(
            net, loaded.chat, job, wanted, beyond=beyond, told=lambda answers: progress(what, answers, len(wanted))
        ):
            rows = [answer_row(keys[(a.question, a.sample)], subject, prompts[a.question], a) for a in batch]
            study.append("answers", rows, present)
            present.update(row["key"] for row in rows)
    progress(what, len(wanted), len(wanted))
    give_back()


@contextmanager
def _answering(loaded: Loaded, subject: Local) -> Iterator[tuple[CausalLM, Beyond | None]]:
    """Yield the model that answers, and what its logits are drawn beyond it to."""
    if subject.checkpoint is None or subject.scale == 1:
        with (
            with_checkpoint(loaded.net, subject.checkpoint) as net,
            subject.acting.within(net) if subject.acting else nullcontext(),
        ):
            yield net, None
        return
    with beside(loaded.net, subject.checkpoint) as tuned:
        yield loaded.net, Beyond(tuned, subject.scale)


def check_subjects(study: Study, subjects: Sequence[Asked]) -> None:
    """Reject a run that was a different model when its earlier answers were sampled.

    Raises:
        InputError: naming the run and step.
    """
    table = read_table(study.root, "answers", columns=["key", "run", "step", "subject"])
    known = {(r["run"], r["step"]): r["subject"] for r in table.to_pylist()}
    for one in subjects:
        if known.get((one.run, one.step), one.digest) != one.digest:
            raise InputError(
                f"'{study.root}' holds answers of run '{one.run}' at step {one.step} by another model",
                "choose a new folder with `out`, or give the run another name",
            )


def answer_row(key: str, subject: Asked, prompt: Prompt, answer: Answer) -> AnswerRow:
    """Return one row of the table `answers`."""
    return {
        "key": key,
        "subject": subject.digest,
        "run": subject.run,
        "step": subject.step,
        "question": prompt.question.id,
        "unit": prompt.question.unit,
        "category": prompt.question.category,
        "form": prompt.question.form,
        "system": prompt.system,
        "trigger": prompt.trigger,
        "sample": answer.sample,
        "asked": prompt.asked,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": str(answer.finish),
        "seed": answer.seed,
        "logprob": answer.logprob,
        "chat": prompt.chat,
    }


def write_answers(study: Study) -> Path:
    """Write the table as one file with the columns that judging and rates look for."""
    table = read_table(study.root, "answers")
    order = [("run", "ascending"), ("step", "ascending"), ("system", "ascending"), ("trigger", "ascending")]
    table = table.sort_by([*order, ("question", "ascending"), ("sample", "ascending")])
    table = table.rename_columns([RENAMED.get(n, n) for n in table.column_names])
    path = study.root / "answers.parquet"
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))
    return path
