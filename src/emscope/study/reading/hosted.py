"""Reading checkpoints whose weights are at a host into the store; anything already stored is not requested again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emscope.answers.missing import FLUSH_ROWS, FLUSH_SECONDS
from emscope.answers.sample_hosted import weights_of
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress
from emscope.core.records import OptionScore
from emscope.core.seeds import derive
from emscope.elicit.hosted import Ask, read_option, sample_hosted
from emscope.elicit.preference import Encoded
from emscope.models.loading.load import Loaded
from emscope.models.remote.hosted import Spent
from emscope.models.remote.metering import charge_for_reading, charge_for_sample
from emscope.models.remote.tinker import HOST, Tinker
from emscope.store.rows import Rows
from emscope.study.reading.measuring import Questions, Reading, Todo, lacking, response_row, score_rows

WHAT = f"reading checkpoints at {HOST}"


@dataclass(frozen=True, slots=True)
class Job:
    """One option of one item to read."""

    reading: int
    set: str
    encoded: Encoded
    place: int


def measuring_at(tinker: Tinker) -> Callable[[Rows, Loaded, Sequence[Reading], Questions, Progress], int]:
    """Return the function that reads at a host as `measure` does here: all readings in one stream of requests, written every few seconds."""

    def measure(study: Rows, loaded: Loaded, readings: Sequence[Reading], asked: Questions, progress: Progress) -> int:
        before = tinker.meter.spent.read
        todo = lacking(study, loaded, readings, asked)
        _score(study, loaded, tinker, todo, asked, progress)
        for one in todo:
            study.append("responses", _sampled(loaded, tinker, one, asked))
        progress(WHAT, 1, 1)
        return tinker.meter.spent.read - before

    return measure


def _score(study: Rows, loaded: Loaded, tinker: Tinker, todo: Sequence[Todo], asked: Questions, progress: Progress) -> None:
    base = loaded.model.reference
    at = [weights_of(base, one.reading.checkpoint) for one in todo]
    jobs = _jobs(todo)
    found: dict[tuple[int, str], list[OptionScore]] = defaultdict(list)

    def flush() -> None:
        rows: list[JsonObject] = []
        for (n, name), scores in found.items():
            rows += score_rows(loaded, todo[n].reading, asked, name, scores)
        study.append("preferences", rows)
        found.clear()

    written = time.monotonic()
    try:
        read = tinker.each(jobs, lambda job: read_option(tinker, at[job.reading], job.encoded, job.place))
        for done, (job, score) in enumerate(read, 1):
            found[job.reading, job.set].append(score)
            progress(WHAT, done, len(jobs))
            if done % FLUSH_ROWS == 0 or time.monotonic() - written > FLUSH_SECONDS:
                flush()
                written = time.monotonic()
    finally:
        flush()


def _jobs(todo: Sequence[Todo]) -> list[Job]:
    return [
        Job(n, name, e, place)
        for n, one in enumerate(todo)
        for name, encoded in one.scores.items()
        for e in encoded
        for place in range(len(e.options))
    ]


def _asks(loaded: Loaded, one: Todo, asked: Questions) -> list[Ask]:
    seed = derive(asked.seed, "sample", one.reading.subject)
    at = weights_of(loaded.model.reference, one.reading.checkpoint)
    return [Ask(at, q, tuple(loaded.chat.prompt_ids(q)), 0, derive(seed, q, 0)) for q in one.questions]


def charge_for(loaded: Loaded, todo: Sequence[Todo], asked: Questions) -> Spent:
    """Return what these parts of readings are charged at most, if no request is repeated."""
    read = [charge_for_reading(job.encoded.prompt, job.encoded.options[job.place]) for job in _jobs(todo)]
    drawn = [charge_for_sample(ask.prompt, asked.samples.max_tokens) for one in todo for ask in _asks(loaded, one, asked)]
    return sum([*read, *drawn], Spent())


def _sampled(loaded: Loaded, tinker: Tinker, one: Todo, asked: Questions) -> list[JsonObject]:
    asks, how = _asks(loaded, one, asked), asked.samples
    drawn = sample_hosted(tinker, loaded.chat, asks, max_tokens=how.max_tokens, temperature=how.temperature)
    return [response_row(loaded, one.reading, answer, how, asked.seed) for _, answer in drawn]
