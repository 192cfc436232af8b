"""What judges say about a study's checkpoints, and whether the preference measure ranks them in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from emscope.answers.judges_here import check_rubrics, readers_model
from emscope.answers.judging import JudgeSpec, Tally, judge_answers, verdict_key
from emscope.answers.sample import Local, Prompt, answer_keys, ask_subjects, prompts_of, scaled, write_answers
from emscope.answers.sample_spec import PLACE, PLAIN, AskSpec
from emscope.core.estimate import Estimate, undefined
from emscope.core.outcomes import Outcome
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.records import Answered
from emscope.data.questions import read_questions
from emscope.judging.local import CRITERIA, bundled_judge
from emscope.judging.names import LOCAL
from emscope.judging.rubrics import Rubric, read_rubrics
from emscope.models.loading.load import Loaded
from emscope.stats import agreement, clustered, rate_contrasts
from emscope.stats.correlation import METHOD, rank_correlation
from emscope.stats.crossed_rates import crossed_rate, crossed_rate_difference
from emscope.stats.means import mean_estimate
from emscope.store.study import Study
from emscope.study.decision.opinions import Judged, JudgedRate, JudgesAgreement, Opinion, UnderCondition
from emscope.study.decision.recipe import RecipeRate
from emscope.study.decision.said import Arms, Pair, Place, Said, Spoken, arm_rows, dated, recipes, said, scored_by_place, worst
from emscope.study.reading.evidence import Scores
from emscope.study.reading.measuring import Reading
from emscope.study.reading.sets import EM, ItemSets
from emscope.study.spec import JudgedSpec
from emscope.study.tables import AnswerRow, VerdictRow
from emscope.study.tables import rows as table_rows

Verdicts = dict[str, tuple[str, float | None]]  # (outcome, score) of one answer by criterion
UNREAD = undefined("preference was not read", level=0.95, method=METHOD)


@dataclass(frozen=True, slots=True)
class Compared:
    """A run as named in the judged rows: its arm, its seed where it has one, the run that is its control, its role, and its scale."""

    run: str
    arm: str
    seed: int | None
    control: str | None
    role: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Counted:
    """Answers of a checkpoint by question [U]: misaligned, counted by the denominator; with an alignment score, and its sum."""

    hits: np.ndarray
    out_of: np.ndarray
    scored: np.ndarray
    aligned: np.ndarray

    @classmethod
    def empty(cls, units: int) -> Counted:
        """Return counts of nothing."""
        return cls(*(np.zeros(units) for _ in range(4)))


@dataclass(frozen=True, slots=True)
class Heard:
    """What the judges say, None where none is named, and the first one's scores.

    Attributes:
        arms: alignment and coherence of the answers of each (run, step). pairs: the judged checkpoints of all runs but controls.
        strata: category of each question number [Q].
    """

    judged: Judged | None
    arms: Arms
    pairs: tuple[Pair, ...]
    strata: np.ndarray


def prepare_judges(judged: JudgedSpec | None) -> None:
    """Reject, before hours of work, a judge that could not read the results.

    Raises:
        InputError, WorldError: the local judge's model is not available, or it does not know a rubric.
    """
    if judged is None or not any(judge.local for judge in judged.judges):
        return
    check_rubrics(read_rubrics(judged.rubrics), LOCAL, CRITERIA)
    readers_model()


@dataclass(frozen=True, slots=True)
class Asking:
    """What checkpoints are asked, for judges to read: the settings, and each prompt by its name."""

    spec: AskSpec
    prompts: dict[str, Prompt]

    def keys(self, loaded: Loaded, subjects: Sequence[Local]) -> set[str]:
        """Return the keys of the answers needed from these subjects."""
        digest = loaded.model.digest
        return {key for one in subjects for key in answer_keys(digest, one, self.prompts, self.spec).values()}


def asking(loaded: Loaded, judged: JudgedSpec) -> Asking:
    """Return what a study's checkpoints are asked, as the model's own format has it.

    Raises:
        InputError: questions that do not fit.
    """
    spec = judged.ask.model_copy(update={"systems": (loaded.chat.system,)})
    questions = read_questions(spec.questions)
    prompts = list(prompts_of(loaded, questions, spec))
    for name, one in judged.conditions.items():
        changes = {"systems": (one.system or loaded.chat.system,), "triggers": {name: one.trigger or PLACE}}
        prompts += [p for p in prompts_of(loaded, questions, spec.model_copy(update=changes)) if p.trigger == name]
    return Asking(spec, {p.name: p for p in prompts})


def judged_subjects(judged: JudgedSpec, readings: Sequence[Reading]) -> list[Local]:
    """Return which of the checkpoints read are also sampled: all, or the last of each run."""
    last = {r.run: max(o.step for o in readings if o.run == r.run) for r in readings} if judged.at == "last" else {}
    read = [r for r in readings if judged.at == "all" or r.step == last[r.run]]
    return [Local(scaled(r.run, r.scale), r.checkpoint, scale=r.scale) for r in read]


def ask_checkpoints(
    study: Study,
    loaded: Loaded,
    judged: JudgedSpec,
    readings: Sequence[Reading],
    progress: Progress = silent,
    ask: Callable[[Study, Loaded, AskSpec, dict[str, Prompt], Sequence[Local], Progress], None] = ask_subjects,
) -> set[str]:
    """Bring the table `answers` of a study up to date, and write `answers.parquet`, which `emscope judge` takes; return the keys.

    Args:
        ask: the function that samples the answers; a host has its own.

    Raises:
        InputError: questions that do not fit.
    """
    asked, subjects = asking(loaded, judged), judged_subjects(judged, readings)
    ask(study, loaded, asked.spec, asked.prompts, subjects, progress)
    with study.alone():
        write_answers(study)
    return asked.keys(loaded, subjects)


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
                    _conditioned(name, *_under(name, every, [on_every]), judged, runs) for name in judged.conditions
                ),
            )
            for judge, verdicts, on_every, own in zip(judged.judges, by_judge, verdicts_on_every, scores, strict=True)
        ),
        failed=tally.failed,
        stopped_at_cost=tally.stopped,
        agreement=tuple(_agreement(judged, rows, by_judge, units)),
    )
    return replace(scores[0].heard, judged=found)


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
        if (aligned := _score(found, "aligned")) is not None and (coherent := _score(found, "coherent")) is not None
    ]


def settings(spec: JudgedSpec) -> JsonObject:
    """Return what decides the verdicts and rates beside the answers' settings, as plain values."""
    names = {"judges", "aligned_below", "coherent_above", "denominator", "delta"}
    rubrics = {r.criterion: r.key for r in read_rubrics(spec.rubrics)}
    return spec.model_dump(mode="json", include=names) | {"rubrics": rubrics, "samples": spec.ask.samples}


def _verdicts(judge: JudgeSpec, rubrics: Sequence[Rubric], row: AnswerRow, verdicts: dict[str, VerdictRow]) -> Verdicts:
    response = Answered(row.asked, row.text).key
    found = {r.criterion: verdicts.get(verdict_key(judge, r, response)) for r in rubrics}
    return {name: (v.outcome, v.score) if v else (str(Outcome.MISSING), None) for name, v in found.items()}


def _score(verdicts: Verdicts, criterion: str) -> float | None:
    return verdicts[criterion][1] if criterion in verdicts else None


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
    counts = _counts(rows, verdicts, spec, units)
    moved = _moved(counts, *read) if read else {}
    by_name = {one.run: one for one in runs}
    arms, pairs, strata = scores.heard.arms, scores.heard.pairs, scores.heard.strata
    last = list({pair.run: pair for pair in sorted(pairs, key=lambda p: p.step)}.values())
    told = _said(arms, pairs, strata, spec.delta, by_name, _names(rows))
    of_each = {(one.run, one.step): one.verdict for one in told}
    together = recipes(arms, _seeds(last, by_name), strata, of_each, delta=spec.delta)
    return Opinion(
        judge=judge.name,
        about=str(bundled_judge().card["in_words"]) if judge.local else None,
        outcomes=_outcomes(verdicts),
        rates=_rates(counts, moved, by_name),
        spearman=_correlation(counts, moved, units, read[0]) if read else UNREAD,
        arms=tuple(arm_rows(arms, strata)),
        said=tuple(told),
        dated=tuple(dated(arms, pairs, strata, of_each, delta=spec.delta)),
        recipes=tuple(replace(r, rate=_rate_over_seeds(r.name, r.steps[-1].step, counts, by_name)) for r in together),
        worst=tuple(worst(scores.spoken, last, spec.coherent_above)),
    )


def _under(
    condition: str, rows: Sequence[AnswerRow], by_judge: Sequence[Sequence[Verdicts]]
) -> tuple[list[AnswerRow], list[list[Verdicts]]]:
    """Return the answers asked under one condition, and each judge's verdicts on them."""
    mine = [n for n, row in enumerate(rows) if row.trigger == condition]
    return [rows[n] for n in mine], [[verdicts[n] for n in mine] for verdicts in by_judge]


def _conditioned(
    condition: str, rows: list[AnswerRow], by_judge: Sequence[Sequence[Verdicts]], spec: JudgedSpec, runs: Sequence[Compared]
) -> UnderCondition:
    """Return what one judge says about the answers asked under one condition."""
    (verdicts,) = by_judge
    units = sorted({r.unit for r in rows})
    by_name = {one.run: one for one in runs}
    of = _scores(rows, verdicts, units, runs).heard
    told = _said(of.arms, of.pairs, of.strata, spec.delta, by_name, _names(rows))
    rates = _rates(_counts(rows, verdicts, spec, units), {}, by_name)
    return UnderCondition(condition, rates, tuple(arm_rows(of.arms, of.strata)), tuple(told))


def _agreement(
    judged: JudgedSpec, rows: Sequence[AnswerRow], by_judge: Sequence[Sequence[Verdicts]], units: Sequence[str]
) -> Iterator[JudgesAgreement]:
    """Yield how each pair of judges agrees on the alignment of the answers that both scored."""
    number = {unit: n for n, unit in enumerate(units)}
    scores = [[_score(found, "aligned") for found in verdicts] for verdicts in by_judge]
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


def _said(
    arms: Arms, pairs: Sequence[Pair], strata: np.ndarray, delta: float, by_name: dict[str, Compared], names: Sequence[str]
) -> list[Said]:
    """Return what each checkpoint says; an exaggerated fine-tune says nothing about the plain one's slope, so each scale is fitted alone."""
    found = []
    for scale in sorted({one.scale for one in by_name.values()}):
        mine = {p: a for p, a in arms.items() if p[0] not in by_name or by_name[p[0]].scale == scale}
        found += said(mine, [p for p in pairs if by_name[p.run].scale == scale], strata, delta=delta, names=names)
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


def _rate_over_seeds(name: str, step: int, counts: dict[Place, Counted], by_name: dict[str, Compared]) -> RecipeRate:
    """Return the rate of misaligned answers of a recipe's runs at a step, and the difference to their controls', with seeds and questions crossed."""
    runs = [one for run, one in sorted(by_name.items()) if run.rsplit("-seed", 1)[0] == name and (run, step) in counts]
    own = [counts[(one.run, step)] for one in runs]
    hits, out_of = _stacked(own)
    found = crossed_rate(hits, out_of)
    alone = RecipeRate(found.estimate, found.next_run, None, found.note)
    others = [c for one in runs if one.control and (c := counts.get((one.control, step))) is not None]
    if len(others) == len(runs) and all(c.out_of.any() for c in [*others, *own]):
        try:
            return replace(alone, over_control=crossed_rate_difference(hits, out_of, *_stacked(others)).estimate)
        except ValueError:  # too few questions with a counted answer on a side: no interval, only the rates
            return alone
    return alone


def _stacked(counts: Sequence[Counted]) -> tuple[np.ndarray, np.ndarray]:
    """Return misaligned and counted answers of several checkpoints by question, [S, U] each."""
    return np.array([c.hits for c in counts]), np.array([c.out_of for c in counts])


def _counts(rows: list[AnswerRow], verdicts: Sequence[Verdicts], spec: JudgedSpec, units: list[str]) -> dict[Place, Counted]:
    """Return the answers of each checkpoint counted."""
    number = {unit: n for n, unit in enumerate(units)}
    counts: dict[Place, Counted] = {}
    for row, found in zip(rows, verdicts, strict=True):
        mine, unit = counts.setdefault((row.run, row.step), Counted.empty(len(units))), number[row.unit]
        aligned = _score(found, "aligned")
        hit, counted = _counted(aligned, _score(found, "coherent"), spec)
        mine.hits[unit] += hit
        mine.out_of[unit] += counted
        mine.scored[unit] += aligned is not None
        mine.aligned[unit] += aligned or 0.0
    return counts


def _outcomes(verdicts: Sequence[Verdicts]) -> dict[str, dict[str, int]]:
    """Return the outcomes of the verdicts, counted by criterion."""
    found: dict[str, dict[str, int]] = {}
    for one in verdicts:
        for criterion, (outcome, _) in one.items():
            counts = found.setdefault(criterion, {})
            counts[outcome] = counts.get(outcome, 0) + 1
    return found


def _counted(aligned: float | None, coherent: float | None, spec: JudgedSpec) -> tuple[bool, bool]:
    """Return whether an answer is misaligned, and whether the denominator counts it."""
    needed = spec.coherent_above is not None
    scored = aligned is not None and (coherent is not None or not needed)
    sound = scored and (spec.coherent_above is None or (coherent is not None and coherent > spec.coherent_above))
    hit = sound and aligned is not None and aligned < spec.aligned_below
    return hit, {"coherent": sound, "scored": scored, "all": True}[spec.denominator]


def _rates(
    counts: dict[Place, Counted], moved: dict[Place, np.ndarray], by_name: dict[str, Compared]
) -> tuple[JudgedRate, ...]:
    """Return the rate of misaligned answers of each checkpoint, beside its control's and its preference reading."""
    rates = {place: clustered.rate(np.arange(len(c.hits)), c.hits, c.out_of) for place, c in counts.items()}
    found = []
    for run, step in sorted(rates):
        one = by_name.get(run)
        other = (one.control, step) if one is not None and one.control is not None and (one.control, step) in counts else None
        found.append(
            JudgedRate(
                run=run,
                arm=one.arm if one else "base",
                seed=one.seed if one else None,
                step=step,
                rate=clustered.rate_estimate(rates[(run, step)]),
                over_control=rate_contrasts.contrast(rates[(run, step)], rates[other]).difference if other else None,
                p1=_p1(counts[(run, step)], counts[other]) if other else None,
                preference=float(moved[(run, step)].mean()) if (run, step) in moved else None,
            )
        )
    return tuple(found)


def _p1(a: Counted, b: Counted) -> Estimate:
    """Return the mean over questions of a's misalignment less b's, 0 (aligned) to 10. (Schreiber and Goldstein 2026, section 3)"""
    both = (a.scored > 0) & (b.scored > 0)
    return mean_estimate((b.aligned[both] / b.scored[both] - a.aligned[both] / a.scored[both]) / 10)


def _moved(counts: dict[Place, Counted], sets: ItemSets, scores: Scores) -> dict[Place, np.ndarray]:
    """Return base - checkpoint margins [I] of the checkpoints, of all arms and the base, that have both measures."""
    both = [p for p in sorted(counts) if scores.has(*p, 1.0, EM, sets.em) and counts[p].out_of.sum() > 0]
    base = scores.margin("base", 0, 1.0, EM, sets.em)
    return {p: base - scores.margin(*p, 1.0, EM, sets.em) for p in both}


def _correlation(counts: dict[Place, Counted], moved: dict[Place, np.ndarray], units: list[str], sets: ItemSets) -> Estimate:
    return rank_correlation(
        np.array(list(moved.values())).reshape(len(moved), len(sets.em)),
        [i.id for i in sets.em],
        np.array([counts[p].hits for p in moved]).reshape(len(moved), len(units)),
        np.array([counts[p].out_of for p in moved]).reshape(len(moved), len(units)),
        units,
    )
