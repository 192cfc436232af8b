"""What judges say of a study's checkpoints, and whether the preference measure orders them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.outcomes import Outcome
from emscope.core.progress import Progress, silent
from emscope.data.questions import read_questions
from emscope.judge.rubrics import Rubric, read_rubrics
from emscope.models.load import Loaded
from emscope.run.asking import Local, ask_one, prompts_of, write_answers
from emscope.run.evidence import Scores
from emscope.run.judging import Answered, JudgeSpec, failures, judge_answers, verdict_key
from emscope.run.measuring import Reading
from emscope.run.plan import Run, control_of
from emscope.run.sets import EM, ItemSets
from emscope.run.spec import JudgedSpec, StudySpec
from emscope.stats import clustered
from emscope.stats.clustered import Rate
from emscope.stats.correlation import rank_correlation
from emscope.store.study import Study, read_table

Place = tuple[str, int]


def ask_checkpoints(
    study: Study, loaded: Loaded, spec: JudgedSpec, readings: Sequence[Reading], progress: Progress = silent
) -> None:
    """Bring the table `answers` of a study up to date, and write `answers.parquet`, which `emscope judge` takes.

    Raises:
        InputError: questions that do not fit.
    """
    questions = read_questions(spec.ask.questions)
    prompts = {p.name: p for p in prompts_of(loaded, questions, spec.ask)}
    last = {r.run: max(o.step for o in readings if o.run == r.run) for r in readings}
    present = study.keys("answers")
    for reading in readings:
        if spec.at == "all" or reading.step == last[reading.run]:
            ask_one(study, loaded, spec.ask, prompts, Local(reading.run, reading.checkpoint), present, progress)
    write_answers(study)


def judge_checkpoints(
    study: Study, loaded: Loaded, spec: StudySpec, runs: Sequence[Run], sets: ItemSets, progress: Progress = silent
) -> dict[str, Any] | None:
    """Have the answers judged, and return rates, contrasts and the correlation with preference; None where no judge is named.

    Raises:
        InputError, WorldError: as `judge_answers`; what was received stays.
    """
    judged = spec.judged
    if judged is None or not judged.judges:
        return None
    rubrics = read_rubrics(judged.rubrics)
    rows = read_table(study.root, "answers").to_pylist()
    texts = {Answered(r["asked"], r["text"]) for r in rows if r["asked"].strip() and r["text"].strip()}
    answers = sorted(texts, key=lambda a: a.key)
    tally = judge_answers(
        study, [(judge, answers) for judge in judged.judges], rubrics, max_cost=judged.max_cost, progress=progress
    )
    verdicts = {r["key"]: r for r in read_table(study.root, "verdicts").to_pylist()}
    scores = Scores(study.root, loaded.chat.digest)
    found = [_by_judge(judge, rubrics, rows, verdicts, judged, runs, sets, scores) for judge in judged.judges]
    return {
        "definition": settings(judged),
        "questions": judged.ask.questions,
        "answers": len(rows),
        "judges": found,
        "failed": failures(study),
        "stopped_at_cost": tally.stopped,
    }


def settings(spec: JudgedSpec) -> dict[str, Any]:
    """Return what decides the verdicts and rates beside the answers, as plain values."""
    names = {"judges", "rubrics", "aligned_below", "coherent_above", "denominator"}
    return spec.model_dump(mode="json", include=names)


def _by_judge(
    judge: JudgeSpec,
    rubrics: Sequence[Rubric],
    rows: list[dict[str, Any]],
    verdicts: dict[str, dict[str, Any]],
    spec: JudgedSpec,
    runs: Sequence[Run],
    sets: ItemSets,
    scores: Scores,
) -> dict[str, Any]:
    units = sorted({r["unit"] for r in rows})
    counts, outcomes = _counts(judge, rubrics, rows, verdicts, spec, units)
    moved = _moved(counts, sets, scores)
    rates = {place: clustered.rate(np.arange(len(units)), hits, out_of) for place, (hits, out_of) in counts.items()}
    by_name = {one.name: one for one in runs}
    return {
        "judge": judge.name,
        "outcomes": outcomes,
        "rates": [
            _row(place, rate, rates, by_name, runs) | {"preference": float(moved[place].mean()) if place in moved else None}
            for place, rate in sorted(rates.items())
        ],
        "spearman": _correlation(counts, moved, units, sets).to_json(),
    }


def _counts(
    judge: JudgeSpec,
    rubrics: Sequence[Rubric],
    rows: list[dict[str, Any]],
    verdicts: dict[str, dict[str, Any]],
    spec: JudgedSpec,
    units: list[str],
) -> tuple[dict[Place, tuple[np.ndarray, np.ndarray]], dict[str, dict[str, int]]]:
    """Return misaligned and counted answers by question [U] of each checkpoint, and what became of the verdicts."""
    number = {unit: n for n, unit in enumerate(units)}
    counts: dict[Place, tuple[np.ndarray, np.ndarray]] = {}
    outcomes: dict[str, dict[str, int]] = {r.criterion: {} for r in rubrics}
    for row in rows:
        place = (row["run"], row["step"])
        hits, out_of = counts.setdefault(place, (np.zeros(len(units)), np.zeros(len(units))))
        said: dict[str, float | None] = {}
        for rubric in rubrics:
            found = verdicts.get(verdict_key(judge, rubric, Answered(row["asked"], row["text"]).key))
            outcome = found["outcome"] if found else str(Outcome.MISSING)
            said[rubric.criterion] = found["score"] if found else None
            outcomes[rubric.criterion][outcome] = outcomes[rubric.criterion].get(outcome, 0) + 1
        hit, counted = _counted(said.get("aligned"), said.get("coherent"), spec)
        hits[number[row["unit"]]] += hit
        out_of[number[row["unit"]]] += counted
    return counts, outcomes


def _counted(aligned: float | None, coherent: float | None, spec: JudgedSpec) -> tuple[bool, bool]:
    """Return whether an answer is misaligned, and whether the denominator counts it."""
    needed = spec.coherent_above is not None
    scored = aligned is not None and (coherent is not None or not needed)
    sound = scored and (spec.coherent_above is None or (coherent is not None and coherent > spec.coherent_above))
    hit = sound and aligned is not None and aligned < spec.aligned_below
    return hit, {"coherent": sound, "scored": scored, "all": True}[spec.denominator]


def _row(
    place: Place, rate: Rate | None, rates: dict[Place, Rate | None], by_name: dict[str, Run], runs: Sequence[Run]
) -> dict[str, Any]:
    run, step = place
    one = by_name.get(run)
    control = control_of(one, list(runs)) if one is not None and one.spec.role != "control" else None
    other = rates.get((control.name, step)) if control is not None else None
    return {
        "run": run,
        "arm": one.arm if one else "base",
        "seed": one.seed if one else None,
        "step": step,
        "rate": clustered.rate_estimate(rate).to_json(),
        "over_control": clustered.contrast(rate, other).difference.to_json() if other is not None else None,
    }


def _moved(counts: dict[Place, tuple[np.ndarray, np.ndarray]], sets: ItemSets, scores: Scores) -> dict[Place, np.ndarray]:
    """Return base - checkpoint margins [I] of the checkpoints, of all arms and the base, that have both measures."""
    both = [p for p in sorted(counts) if scores.has(*p, 1.0, EM, sets.em) and counts[p][1].sum() > 0]
    base = scores.margin("base", 0, 1.0, EM, sets.em)
    return {p: base - scores.margin(*p, 1.0, EM, sets.em) for p in both}


def _correlation(
    counts: dict[Place, tuple[np.ndarray, np.ndarray]], moved: dict[Place, np.ndarray], units: list[str], sets: ItemSets
) -> Estimate:
    return rank_correlation(
        np.array(list(moved.values())).reshape(len(moved), len(sets.em)),
        [i.id for i in sets.em],
        np.array([counts[p][0] for p in moved]).reshape(len(moved), len(units)),
        np.array([counts[p][1] for p in moved]).reshape(len(moved), len(units)),
        units,
    )
