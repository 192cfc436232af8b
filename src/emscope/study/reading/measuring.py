"""Reading checkpoints into the store; anything already stored is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from time import sleep
from typing import TYPE_CHECKING

from emscope.core.digest import short
from emscope.core.errors import Diverged
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, part_of
from emscope.core.records import Answer, Item, OptionScore
from emscope.core.seeds import derive
from emscope.elicit import preference
from emscope.elicit.sampling import sample
from emscope.models.adapters.beside import beside
from emscope.models.adapters.updates import first_changed
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.prefix_cache import prefix_cached
from emscope.models.loading.checkpoints import Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.sizing.heap import give_back
from emscope.store.rows import Rows
from emscope.store.study import AGAIN
from emscope.study.measure_spec import SampleSpec
from emscope.study.reading.sets import ItemSets

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

WHAT = "reading checkpoints"


@dataclass(frozen=True, slots=True)
class Reading:
    """One checkpoint to read: `wanted` maps a set's name to the options to score (None: all).

    A `scale` other than 1 multiplies its update, or with `beyond` what it adds to the base's logits.
    """

    run: str
    step: int
    checkpoint: Checkpoint | None
    wanted: dict[str, tuple[int, ...] | None]
    scale: float = 1.0
    questions: tuple[str, ...] = ()
    beyond: bool = False

    @property
    def subject(self) -> str:
        """What determines the reading besides the base: the adapter's hash, its scale, and what is scaled where that matters."""
        if self.checkpoint is None:
            return "base"
        return f"{self.checkpoint.digest}x{self.scale:g}{' in logits' if self.beyond and self.scale != 1 else ''}"


@dataclass(frozen=True, slots=True)
class Questions:
    """What every checkpoint of a job is asked: the item sets, how samples are drawn, and how many tokens are computed at once."""

    sets: ItemSets
    samples: SampleSpec
    seed: int
    batch_tokens: int | None


@dataclass(frozen=True, slots=True)
class Todo:
    """The parts of a reading that are not in the store yet: tokenized items by set, and questions to sample answers to."""

    reading: Reading
    scores: dict[str, list[preference.Encoded]]
    questions: list[str]

    @property
    def cost(self) -> int:
        """Tokens to compute for the scores."""
        return sum(e.cost for encoded in self.scores.values() for e in encoded)


def measure(study: Rows, loaded: Loaded, readings: Sequence[Reading], asked: Questions, progress: Progress) -> int:
    """Bring the tables `preferences` and `responses` up to `readings`; each reading is written as soon as it is done. Return the tokens computed.

    In a shared folder, this waits for readings that another process is working on, and does them here if that process ends
    without them.
    """
    computed = 0
    while jobs := lacking(study, loaded, readings, asked):
        total, done = sum(job.cost for job in jobs) or 1, 0
        for lowest, found in groupby(jobs, lambda job: _lowest(loaded.net, job.reading.checkpoint)):
            group = list(found)
            # what none of these checkpoints changes is computed once for all of them
            with prefix_cached(loaded.net, lowest - 1) if lowest and len(group) > 1 else nullcontext():
                for job in group:
                    _do(study, loaded, job, asked, part_of(progress, WHAT, done, total))
                    done += job.cost
        computed += done
        if not study.shared:
            break
        sleep(AGAIN)
    progress(WHAT, 1, 1)
    return computed


def lacking(study: Rows, loaded: Loaded, readings: Sequence[Reading], asked: Questions) -> list[Todo]:
    """Return the parts of `readings` that are not in the store."""
    present = study.keys("preferences") | study.keys("responses")
    jobs = (_todo(loaded, reading, asked, present) for reading in readings)
    return [job for job in jobs if job.scores or job.questions]


def _do(study: Rows, loaded: Loaded, job: Todo, asked: Questions, progress: Progress) -> None:
    """Do a reading and write it, unless another process is doing it or did it meanwhile."""
    with study.claimed(f"{job.reading.run} {job.reading.step} {job.reading.subject}") as mine:
        wanted = lacking(study, loaded, [job.reading], asked) if mine and study.shared else [job] if mine else []
        for one in wanted:
            with with_checkpoint(loaded.net, one.reading.checkpoint, scale=one.reading.scale) as net:
                study.append("preferences", _score(net, loaded, one, asked, progress))
                study.append("responses", _sample(net, loaded, one, asked))
            give_back()


def measure_beyond(study: Rows, loaded: Loaded, readings: Sequence[Reading], asked: Questions, progress: Progress) -> None:
    """Bring the table `preferences` up to readings `beyond` of one checkpoint, all its scales from one pass of it and one of the base.

    Each set of items is written as soon as it is done.
    """
    present = study.keys("preferences")
    jobs = [job for reading in readings if (job := _todo(loaded, reading, asked, present)).scores]
    if not jobs or jobs[0].reading.checkpoint is None:
        return
    lacking: dict[str, dict[str, preference.Encoded]] = {}
    for job in jobs:
        for name, encoded in job.scores.items():
            lacking.setdefault(name, {}).update({e.item: e for e in encoded})
    total, done = sum(e.cost for items in lacking.values() for e in items.values()), 0
    with beside(loaded.net, jobs[0].reading.checkpoint) as tuned:
        for name, items in lacking.items():
            mine = {job.reading.scale: job.reading for job in jobs if name in job.scores}
            part = part_of(progress, WHAT, done, total)
            found = preference.score_beyond(
                loaded.net, tuned, list(items.values()), list(mine), batch_tokens=asked.batch_tokens, progress=part
            )
            rows = [row for scale, reading in mine.items() for row in score_rows(loaded, reading, asked, name, found[scale])]
            study.append("preferences", rows)
            done += sum(e.cost for e in items.values())


def _lowest(net: CausalLM, checkpoint: Checkpoint | None) -> int:
    return first_changed(net, checkpoint) if checkpoint else 0


def _score(net: CausalLM, loaded: Loaded, job: Todo, asked: Questions, progress: Progress) -> list[JsonObject]:
    rows, before = [], 0
    for name, encoded in job.scores.items():
        part = part_of(progress, WHAT, before, job.cost)
        scores = preference.score(net, encoded, batch_tokens=asked.batch_tokens, progress=part)
        rows += score_rows(loaded, job.reading, asked, name, scores)
        before += sum(e.cost for e in encoded)
    return rows


def score_rows(
    loaded: Loaded, reading: Reading, asked: Questions, name: str, scores: Sequence[OptionScore]
) -> list[JsonObject]:
    """Return the scores of a set as rows of the table.

    Raises:
        Diverged: a score is not a number.
    """
    items = {item.id: item for item in asked.sets.of(name)}
    broken = next((s for s in scores if not isfinite(s.logprob)), None)
    if broken is not None:
        raise Diverged(
            f"{reading.run} at step {reading.step} gives item '{broken.item}' the log-probability {broken.logprob}",
            "its weights diverged, or exceed this dtype's range: try float32",
        )
    return [_preference_row(loaded, reading, name, items[s.item], s) for s in scores]


def _sample(net: CausalLM, loaded: Loaded, job: Todo, asked: Questions) -> list[JsonObject]:
    if not job.questions:
        return []
    how, seed = asked.samples, derive(asked.seed, "sample", job.reading.subject)
    answers = sample(
        net, loaded.chat, job.questions, samples=1, max_tokens=how.max_tokens, seed=seed, temperature=how.temperature
    )
    return [response_row(loaded, job.reading, a, how, asked.seed) for a in answers]


def _todo(loaded: Loaded, reading: Reading, asked: Questions, present: set[str]) -> Todo:
    scores = {}
    for name, which in reading.wanted.items():
        missing = _missing(loaded, reading, name, asked.sets.of(name), which, present)
        if missing:
            scores[name] = missing
    questions = [q for q in reading.questions if response_key(loaded, reading, q, asked.samples, asked.seed) not in present]
    return Todo(reading, scores, questions)


def _missing(
    loaded: Loaded, reading: Reading, name: str, items: Sequence[Item], which: tuple[int, ...] | None, present: set[str]
) -> list[preference.Encoded]:
    """Return the items of a set with an option that is not in the store, tokenized."""
    found = []
    for item in items:
        options = tuple(range(len(item.options))) if which is None else which
        if any(preference_key(loaded, reading, name, item, k) not in present for k in options):
            found += (
                preference.encode(loaded.chat, [item], context=loaded.context, which=options)
                if item.question
                else preference.encode_texts(loaded.tokenizer, [item], context=loaded.context)
            )
    return found


def preference_key(loaded: Loaded, reading: Reading, name: str, item: Item, option: int) -> str:
    """Return the content key of one score: model, adapter and scale, format, set, texts."""
    return short(
        [
            loaded.model.digest,
            reading.subject,
            reading.run,
            reading.step,
            loaded.chat.digest,
            name,
            item.id,
            item.question,
            item.options[option],
        ]
    )


def response_key(loaded: Loaded, reading: Reading, question: str, samples: SampleSpec, seed: int) -> str:
    """Return the content key of one sampled answer."""
    return short(
        [
            loaded.model.digest,
            reading.subject,
            reading.run,
            reading.step,
            loaded.chat.digest,
            question,
            samples.model_dump(mode="json"),
            seed,
        ]
    )


def _preference_row(loaded: Loaded, reading: Reading, name: str, item: Item, score: OptionScore) -> JsonObject:
    return {
        "key": preference_key(loaded, reading, name, item, score.option),
        "run": reading.run,
        "step": reading.step,
        "scale": reading.scale,
        "set": name,
        "item": item.id,
        "category": item.category,
        "half": item.half,
        "option": score.option,
        "logprob": score.logprob,
        "tokens": score.tokens,
        "chat": loaded.chat.digest,
    }


def response_row(loaded: Loaded, reading: Reading, answer: Answer, samples: SampleSpec, seed: int) -> JsonObject:
    return {
        "key": response_key(loaded, reading, answer.question, samples, seed),
        "run": reading.run,
        "step": reading.step,
        "scale": reading.scale,
        "question": answer.question,
        "sample": answer.sample,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": str(answer.finish),
        "seed": answer.seed,
        "chat": loaded.chat.digest,
    }
