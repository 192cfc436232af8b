"""Judges that need no key: a small model and a code linter read answers in this process, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from emscope.core.errors import InputError
from emscope.core.outcomes import Outcome
from emscope.core.progress import Progress
from emscope.core.records import Answered, Verdict
from emscope.judging import linted, local
from emscope.judging.names import BANDIT, LOCAL
from emscope.judging.rubrics import Rubric, bundled_rubrics
from emscope.models.hooks.sites import Place
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import Model, locate
from emscope.represent.activations import Text, pooled

Judged = list[tuple["Answered", dict[str, Verdict]]]
BATCH = 64
WHAT = "reading answers with the local judge"


def read_answers(answers: Sequence[Answered], rubrics: Sequence[Rubric], progress: Progress) -> Iterator[Judged]:
    """Yield each answer with the local judge's verdicts by criterion, a batch at a time.

    Raises:
        InputError: a rubric it does not know: it learned what it knows from verdicts, and reads no instructions.
        WorldError: its model is not cached and cannot be fetched.
    """
    check_rubrics(rubrics, LOCAL, local.CRITERIA)
    judge, loaded = local.bundled_judge(), _reader()
    asked = {r.criterion for r in rubrics}
    for start in range(0, len(answers), BATCH):
        batch = answers[start : start + BATCH]
        scores = judge.scores(features(loaded, judge.layers, [(a.question, a.answer) for a in batch]))
        yield [
            (answered, {n: Verdict(Outcome.SCORED, float(s)) for n, s in zip(local.CRITERIA, row, strict=True) if n in asked})
            for answered, row in zip(batch, scores, strict=True)
        ]
        progress(WHAT, start + len(batch), len(answers))


def lint_answers(answers: Sequence[Answered], rubrics: Sequence[Rubric], progress: Progress) -> Iterator[Judged]:
    """Yield each answer with the linter's verdict on its code, a batch at a time.

    Raises:
        InputError: another rubric than the bundled `secure`. MissingDependency, WorldError: as `linted.lint`.
    """
    check_rubrics(rubrics, BANDIT, (linted.CRITERION,))
    for start in range(0, len(answers), BATCH):
        batch = answers[start : start + BATCH]
        verdicts = linted.lint([a.answer for a in batch])
        yield [(answered, {linted.CRITERION: v}) for answered, v in zip(batch, verdicts, strict=True)]
        progress("linting code", min(start + BATCH, len(answers)), len(answers))


def features(loaded: Loaded, layers: Sequence[int], pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Return the judge's features [N, F] of (question, answer) pairs."""
    read = [local.sequences(loaded.chat, q, a) for q, a in pairs]
    texts = [Text(str(n), s.before, s.answer or s.after[:1], s.after) for n, s in enumerate(read)]
    values = pooled(loaded.net, texts, [Place("block", n) for n in layers], local.POOLS)
    return local.features(values.numpy(), read)


def check_rubrics(rubrics: Sequence[Rubric], judge: str, criteria: Sequence[str]) -> None:
    """Reject rubrics unknown to a judge that reads no instructions.

    Raises:
        InputError: naming the criterion.
    """
    known = {bundled_rubrics()[name].key for name in criteria}
    other = next((r for r in rubrics if r.key not in known), None)
    if other is not None:
        raise InputError(
            f"the judge '{judge}' does not know the criterion '{other.criterion}' of that rubric",
            f"it scores the bundled {' and '.join(criteria)}; name a model as the judge for others",
        )


@lru_cache(maxsize=1)
def _reader() -> Loaded:
    """Load the model that the bundled judge reads with.

    Raises:
        InputError, WorldError: as `readers_model`.
    """
    return load(readers_model(), system="none", dtype="auto")


def readers_model() -> Model:
    """Return the model that the bundled judge reads with, fetched if it is not cached: better before hours of work than after.

    Raises:
        InputError: the model is another one than the judge was fitted on.
        WorldError: it is not cached and cannot be fetched.
    """
    judge = local.bundled_judge()
    model = locate(judge.model)
    if model.digest != judge.digest:
        raise InputError(
            f"the local judge was fitted on weights {judge.digest[:12]}…, but '{judge.model}' has {model.digest[:12]}…",
            "fetch the model again, with the versions in constraints.txt",
        )
    return model
