"""What judges say about a study's checkpoints, and whether the preference measure ranks them in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np

from emscope.answers.judges_here import check_rubrics, readers_model
from emscope.answers.judging import JudgeSpec, Tally, judge_answers, verdict_key
from emscope.answers.sample_spec import PLAIN
from emscope.core.outcomes import Outcome
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.records import Answered
from emscope.judging.local import CRITERIA, bundled_judge
from emscope.judging.names import LOCAL
from emscope.judging.rubrics import Rubric, read_rubrics
from emscope.models.loading.load import Loaded
from emscope.stats import agreement
from emscope.stats.model_error import ModelError
from emscope.store.study import Study
from emscope.study.decision.opinions import Judged, JudgesAgreement, Opinion, UnderCondition
from emscope.study.decision.said import Arms, Pair, Said, Spoken, arm_rows, said, scored_by_place
from emscope.study.decision.said_together import dated, recipes
from emscope.study.decision.worst_answers import worst
from emscope.study.judged_rates import (
    UNREAD,
    Compared,
    Verdicts,
    correlation,
    counts_of,
    moved_from_base,
    outcomes,
    rate_over_seeds,
    rates_of,
    score,
)
from emscope.study.judged_spec import JudgedSpec
from emscope.study.reading.evidence import Scores
from emscope.study.reading.sets import ItemSets
from emscope.study.tables import AnswerRow, VerdictRow
from emscope.study.tables import rows as table_rows


@dataclass(frozen=True, slots=True)
class Heard:
    """What the judges say, None where none is named, and the first one's scores.

    Attributes:
        arms: alignment and coherence of the answers of each (run, step). pairs: the judged checkpoints of all runs but controls.
        strata: category of each question number [Q]. error: the first judge's on whole models, where it is known.
    """

    judged: Judged | None
    arms: Arms
    pairs: tuple[Pair, ...]
    strata: np.ndarray
    error: ModelError | None = None


def prepare_judges(judged: JudgedSpec | None) -> None:
    """Reject, before hours of work, a judge that could not read the results.

    Raises:
        InputError, WorldError: the local judge's model is not available, or it does not know a rubric.
    """
    if judged is None or not any(judge.local for judge in judged.judges):
        return
    check_rubrics(read_rubrics(judged.rubrics), LOCAL, CRITERIA)
    readers_model()


def judge_checkpoints(
    study: Study,
    loaded: Loaded | None,
    judged: JudgedSpec,
    runs: Sequence[Compared],
    sets: ItemSets | None,
    wanted: set[str],
    progress: Progress = silent,
) -> Heard:
    """Have the answers judged and return the results: means, rates, contrasts.

    Args:
        loaded, sets: the model and items that preference was read on; None where it was not read. wanted: keys of the answers
            that count.

    Raises:
        InputError, WorldError: as `judge_answers`; what was received stays.
    """
    if not judged.judges:
        return Heard(None, {}, (), np.zeros(0))
    every, verdicts_on_every, tally = judge_rows(study, judged, wanted, progress)
    rows, by_judge = _under(PLAIN, every, verdicts_on_every)
    read = (sets, Scores(study.root, loaded.chat.digest)) if loaded and sets else None
    units = sorted({r.unit for r in rows})
    scores = [_scores(rows, verdicts, units, runs) for verdicts in by_judge]
    found = Judged(
        definition=settings(judged),
        delta=judged.delta,
        questions=judged.ask.questions,
        answers=len(every),
        judges=tuple(
            replace(
                _by_judge(judge, rows, verdicts, judged, runs, read, own),
                conditions=tuple(
                    _conditioned(judge, name, *_under(name, every, [on_every]), judged, runs) for name in judged.conditions
                ),
            )
            for judge, verdicts, on_every, own in zip(judged.judges, by_judge, verdicts_on_every, scores, strict=True)
        ),
        failed=tally.failed,
        stopped_at_cost=tally.stopped,
        agreement=tuple(_agreement(judged, rows, by_judge, units)),
    )
    return replace(scores[0].heard, judged=found, error=model_error(judged.judges[0]))


def judge_rows(
    study: Study, judged: JudgedSpec, wanted: set[str], progress: Progress = silent
) -> tuple[list[AnswerRow], list[list[Verdicts]], Tally]:
    """Have the answers with these keys judged; return their rows, each judge's verdicts in that order, and its progress.

    Raises:
        InputError, WorldError: as `judge_answers`; what was received stays.
    """
    rubrics = read_rubrics(judged.rubrics)
    rows = [r for r in table_rows(study.root, "answers", AnswerRow) if r.key in wanted]
    texts = {Answered(r.asked, r.text) for r in rows if r.asked.strip() and r.text.strip()}
    answers = sorted(texts, key=lambda a: a.key)
    tally = judge_answers(
        study, [(judge, answers) for judge in judged.judges], rubrics, max_cost=judged.max_cost, progress=progress
    )
    verdicts = {r.key: r for r in table_rows(study.root, "verdicts", VerdictRow)}
    return rows, [[_verdicts(judge, rubrics, r, verdicts) for r in rows] for judge in judged.judges], tally


def spoken(rows: Sequence[AnswerRow], verdicts: Sequence[Verdicts]) -> list[Spoken]:
    """Return the answers that have scores of alignment and coherence."""
    return [
        Spoken(row.run, row.step, row.unit, row.asked, row.text, aligned, coherent)
        for row, found in zip(rows, verdicts, strict=True)
        if (aligned := score(found, "aligned")) is not None and (coherent := score(found, "coherent")) is not None
    ]


def settings(spec: JudgedSpec) -> JsonObject:
    """Return what decides the verdicts and rates beside the answers' settings, as plain values.

    `keys`: what decides each judge's verdicts. `judge_error`: of the first one on whole models [points], where that is known.
    """
    names = {"judges", "aligned_below", "coherent_above", "denominator", "delta"}
    rubrics = {r.criterion: r.key for r in read_rubrics(spec.rubrics)}
    keys = [judge.key for judge in spec.judges]
    error = model_error(spec.judges[0]) if spec.judges else None
    known = {"keys": keys, "rubrics": rubrics, "samples": spec.ask.samples, "judge_error": asdict(error) if error else None}
    return spec.model_dump(mode="json", include=names) | known


def _verdicts(judge: JudgeSpec, rubrics: Sequence[Rubric], row: AnswerRow, verdicts: dict[str, VerdictRow]) -> Verdicts:
    response = Answered(row.asked, row.text).key
    found = {r.criterion: verdicts.get(verdict_key(judge, r, response)) for r in rubrics}
    return {name: (v.outcome, v.score) if v else (str(Outcome.MISSING), None) for name, v in found.items()}


@dataclass(frozen=True, slots=True)
class _Scores:
    """One judge's scores of the answers, and the same by checkpoint."""

    spoken: list[Spoken]
    heard: Heard


def _scores(rows: list[AnswerRow], verdicts: Sequence[Verdicts], units: Sequence[str], runs: Sequence[Compared]) -> _Scores:
    scored = spoken(rows, verdicts)
    arms = scored_by_place(scored, units)
    pairs = _pairs(arms, {one.run: one for one in runs})
    return _Scores(scored, Heard(None, arms, tuple(pairs), categories(rows, units)))


def _by_judge(
    judge: JudgeSpec,
    rows: list[AnswerRow],
    verdicts: Sequence[Verdicts],
    spec: JudgedSpec,
    runs: Sequence[Compared],
    read: tuple[ItemSets, Scores] | None,
    scores: _Scores,
) -> Opinion:
    units = sorted({r.unit for r in rows})
    counts = counts_of(rows, verdicts, spec, units)
    moved = moved_from_base(counts, *read) if read else {}
    by_name = {one.run: one for one in runs}
    arms, pairs, strata = scores.heard.arms, scores.heard.pairs, scores.heard.strata
    last = list({pair.run: pair for pair in sorted(pairs, key=lambda p: p.step)}.values())
    error = model_error(judge)
    told = _said(arms, pairs, strata, spec.delta, by_name, _names(rows), error)
    of_each = {(one.run, one.step): one.verdict for one in told}
    together = recipes(arms, _seeds(last, by_name), strata, of_each, delta=spec.delta, error=error)
    return Opinion(
        judge=judge.name,
        about=str(bundled_judge().card["in_words"]) if judge.local else None,
        outcomes=outcomes(verdicts),
        rates=rates_of(counts, moved, by_name, error),
        spearman=correlation(counts, moved, units, read[0]) if read else UNREAD,
        arms=tuple(arm_rows(arms, strata)),
        said=tuple(told),
        dated=tuple(dated(arms, pairs, strata, of_each, delta=spec.delta, error=error)),
        recipes=tuple(replace(r, rate=rate_over_seeds(r.name, r.steps[-1].step, counts, by_name)) for r in together),
        worst=tuple(worst(scores.spoken, last, spec.coherent_above)),
    )


def _under(
    condition: str, rows: Sequence[AnswerRow], by_judge: Sequence[Sequence[Verdicts]]
) -> tuple[list[AnswerRow], list[list[Verdicts]]]:
    """Return the answers asked under one condition, and each judge's verdicts on them."""
    mine = [n for n, row in enumerate(rows) if row.trigger == condition]
    return [rows[n] for n in mine], [[verdicts[n] for n in mine] for verdicts in by_judge]


def _conditioned(
    judge: JudgeSpec,
    condition: str,
    rows: list[AnswerRow],
    by_judge: Sequence[Sequence[Verdicts]],
    spec: JudgedSpec,
    runs: Sequence[Compared],
) -> UnderCondition:
    """Return what one judge says about the answers asked under one condition."""
    (verdicts,) = by_judge
    units = sorted({r.unit for r in rows})
    by_name = {one.run: one for one in runs}
    of = _scores(rows, verdicts, units, runs).heard
    error = model_error(judge)
    told = _said(of.arms, of.pairs, of.strata, spec.delta, by_name, _names(rows), error)
    rates = rates_of(counts_of(rows, verdicts, spec, units), {}, by_name, error)
    return UnderCondition(condition, rates, tuple(arm_rows(of.arms, of.strata)), tuple(told))


def _agreement(
    judged: JudgedSpec, rows: Sequence[AnswerRow], by_judge: Sequence[Sequence[Verdicts]], units: Sequence[str]
) -> Iterator[JudgesAgreement]:
    """Yield how each pair of judges agrees on the alignment of the answers that both scored."""
    number = {unit: n for n, unit in enumerate(units)}
    scores = [[score(found, "aligned") for found in verdicts] for verdicts in by_judge]
    for a, b in combinations(range(len(judged.judges)), 2):
        both = [(x, y, number[row.unit]) for x, y, row in zip(scores[a], scores[b], rows, strict=True) if None not in (x, y)]
        x, y, unit = np.array(both).reshape(-1, 3).T
        found = agreement.pair(x, y, unit.astype(int), threshold=judged.aligned_below)
        yield JudgesAgreement((judged.judges[a].name, judged.judges[b].name), len(both), found.spearman, found.kappa)


def _pairs(arms: Arms, by_name: dict[str, Compared]) -> list[Pair]:
    """Return the judged checkpoints of all runs but controls, each with its control's at the same step."""
    return [
        Pair(run, step, (own.control, step) if own.control and (own.control, step) in arms else None)
        for run, step in arms
        if run in by_name and (own := by_name[run]).role != "control"
    ]


def model_error(judge: JudgeSpec) -> ModelError | None:
    """Return how far a judge is off on whole models, where that is known: of the local one."""
    return bundled_judge().model_error if judge.local else None


def _said(
    arms: Arms,
    pairs: Sequence[Pair],
    strata: np.ndarray,
    delta: float,
    by_name: dict[str, Compared],
    names: Sequence[str],
    error: ModelError | None,
) -> list[Said]:
    """Return what each checkpoint says; an exaggerated fine-tune says nothing about the plain one's slope, so each scale is fitted alone."""
    found = []
    for scale in sorted({one.scale for one in by_name.values()}):
        mine = {p: a for p, a in arms.items() if p[0] not in by_name or by_name[p[0]].scale == scale}
        at_scale = [p for p in pairs if by_name[p.run].scale == scale]
        found += said(mine, at_scale, strata, delta=delta, names=names, error=error)
    return found


def _seeds(last: Sequence[Pair], by_name: dict[str, Compared]) -> dict[str, list[Pair]]:
    """Return the last checkpoints of the target runs, the seeds of a recipe together."""
    groups: dict[str, list[Pair]] = {}
    for pair in last:
        if by_name[pair.run].role == "target" and by_name[pair.run].seed is not None:
            groups.setdefault(pair.run.rsplit("-seed", 1)[0], []).append(pair)
    return groups


def categories(rows: Sequence[AnswerRow], units: Sequence[str]) -> np.ndarray:
    """Return the category of each question, as numbers [U]."""
    category = {row.unit: row.category for row in rows}
    return np.unique([category[u] for u in units], return_inverse=True)[1]


def _names(rows: Sequence[AnswerRow]) -> list[str]:
    """Return the names of the categories in the order of their numbers."""
    return sorted({row.category for row in rows})
