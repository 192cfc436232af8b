"""Answers that a folder lacks, sampled at a host in one stream of requests and written as they arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from emscope.answers.sample import AnswerRow, Local, Prompt, answer_keys, answer_row
from emscope.answers.sample_spec import AskSpec
from emscope.core.progress import Progress
from emscope.core.records import Answer
from emscope.core.seeds import derive
from emscope.store.rows import Rows

FLUSH_ROWS, FLUSH_SECONDS = 200, 20.0
Place = tuple[Local, str, int]  # who is asked, the prompt's name, the number of the sample


def draw_missing(
    study: Rows,
    model: str,
    spec: AskSpec,
    prompts: Mapping[str, Prompt],
    subjects: Sequence[Local],
    draw: Callable[[Sequence[Place]], Iterator[tuple[int, Answer]]],
    progress: Progress,
) -> None:
    """Bring the table `answers` up to date.

    Args:
        model: digest of the base. draw: yields answers as they come, each with its place among those that it is given.
    """
    present = study.keys("answers")
    keys = {(one, *place): key for one in subjects for place, key in answer_keys(model, one, prompts, spec).items()}
    wanted = [place for place, key in keys.items() if key not in present]
    rows, done, written = list[AnswerRow](), 0, time.monotonic()
    try:
        for n, answer in draw(wanted):
            subject, name, _ = place = wanted[n]
            rows.append(answer_row(keys[place], subject, prompts[name], answer))
            done += 1
            progress("sampling", done, len(wanted))
            if len(rows) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
                study.append("answers", rows, present)
                rows, written = [], time.monotonic()
    finally:
        study.append("answers", rows, present)


def seed_of(spec: AskSpec, place: Place) -> int:
    """Return the seed of one answer."""
    subject, name, number = place
    return derive(derive(spec.seed, subject.digest), name, number)
