"""What fine-tuning did to each question's scores: judged answers before and after, question by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emscope.answers.labels import Label
from emscope.answers.runs.shifts_result import QuestionShift, RunShift, Shifts, ShiftsDefinition, ShiftTest, StatisticShift
from emscope.answers.runs.shifts_spec import ShiftsSpec
from emscope.core.errors import InputError, near
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import COHERENT, answer_columns, check_scores
from emscope.data.by_question import QuestionScores, read_by_question
from emscope.stats.clustered import FEW_QUESTIONS
from emscope.stats.holm import holm
from emscope.stats.score_shift import Repeated, ScoreShift, deviations, means, score_shift

DOUBT = 0.05


def shifts(paths: list[Path], spec: ShiftsSpec) -> Shifts:
    """Return how each question's mean and standard deviation moved, for every model after fine-tuning.

    Raises:
        InputError: columns or values that do not fit, or no three questions that both models were asked.
    """
    if spec.before in spec.after:
        raise InputError(f"`before` and `after` are both '{spec.before}'", "compare different models")
    with AnswerTable(paths) as table:
        table.named(spec.group, *spec.within)
        columns = answer_columns(
            table,
            aligned=spec.aligned,
            coherent=spec.coherent or table.usual(COHERENT),
            question=spec.question,
            groups=(*spec.within, spec.group),
            need_coherent=False,
        )
        if columns.question is None:
            raise InputError(f"'{table.where}' has no column that looks like a question", "name it with `question`")
        scale = spec.scale or "0-100"
        check_scores(table, columns, scale, said=spec.scale is not None)
        data = read_by_question(
            table, columns.aligned, question=columns.question, groups=columns.groups, beside=columns.coherent
        )
    pairs = _pairs(data, spec)
    found = [run for before, after in pairs if (run := _run(data, before, after, spec)) is not None]
    if not found:
        raise InputError(
            f"no three questions of column '{columns.question}' were answered by '{spec.before}' and another model",
            "give answers to the same questions, or name the question's column with `question`",
        )
    notes = _notes(data, spec, found, len(pairs) - len(found))
    return Shifts(ShiftsDefinition(spec, columns, scale), tuple(_adjusted(found)), tuple(notes))


def _pairs(data: QuestionScores, spec: ShiftsSpec) -> list[tuple[int, int]]:
    """Return the groups (before, after) that are compared."""
    known = [str(g[-1]) for g in data.groups]
    for name in (spec.before, *spec.after):
        if name not in known:
            raise InputError(f"column '{spec.group}' has no value '{name}'", near(name, known))
    found = []
    for b, group in enumerate(data.groups):
        if str(group[-1]) != spec.before:
            continue
        others = [n for n, g in enumerate(data.groups) if g[:-1] == group[:-1] and n != b]
        found += [(b, n) for n in others if not spec.after or str(data.groups[n][-1]) in spec.after]
    if not found:
        raise InputError(f"there is nothing to compare '{spec.before}' with", "name models of the same `within` with `after`")
    return found


@dataclass(frozen=True, slots=True)
class _Side:
    """One model's answers to the shared questions: counts [Q], mean coherence or None, and each question's mean and sd."""

    count: np.ndarray
    coherence: float | None
    mean: Repeated
    sd: Repeated


def _run(data: QuestionScores, before: int, after: int, spec: ShiftsSpec) -> RunShift | None:
    shared = np.intersect1d(data.question[data.group == before], data.question[data.group == after])
    if len(shared) < 3:
        return None
    a, b = _side(data, before, shared), _side(data, after, shared)
    mean = score_shift(a.mean, b.mean, level=spec.level, seed=spec.seed)
    assert mean is not None
    sd = score_shift(a.sd, b.sd, level=spec.level, seed=spec.seed)
    label: Label = dict(zip(spec.within, data.groups[before][:-1], strict=True))
    questions = (
        QuestionShift(
            data.questions[k],
            int(a.count[n]),
            int(b.count[n]),
            float(a.mean.value[n]),
            float(b.mean.value[n]),
            _known(a.sd.value[n]),
            _known(b.sd.value[n]),
        )
        for n, k in enumerate(shared)
    )
    return RunShift(
        label,
        str(data.groups[after][-1]),
        int(a.count.sum()),
        int(b.count.sum()),
        a.coherence,
        b.coherence,
        _statistic(mean),
        _statistic(sd) if sd is not None else None,
        tuple(questions),
    )


def _side(data: QuestionScores, group: int, shared: np.ndarray) -> _Side:
    rows = (data.group == group) & np.isin(data.question, shared)
    place, score, count = np.searchsorted(shared, data.question[rows]), data.score[rows], len(shared)
    coherence = data.beside[rows]
    known = coherence[np.isfinite(coherence)]
    return _Side(
        np.bincount(place, minlength=count),
        float(known.mean()) if len(known) else None,
        means(place, score, count),
        deviations(place, score, count),
    )


def _statistic(found: ScoreShift) -> StatisticShift:
    """Return a shift whose tests are not adjusted yet."""
    return StatisticShift(
        found.questions,
        found.before,
        found.after,
        found.shift,
        found.typical,
        wilcoxon=ShiftTest(*found.wilcoxon, found.wilcoxon[1]) if found.wilcoxon else None,
        ks=ShiftTest(*found.ks, found.ks[1]),
        ks_swapped=ShiftTest(found.ks[0], found.ks_swapped, found.ks_swapped),
        pearson=found.pearson,
        slope=found.slope,
        explained=found.explained,
        reliability_before=found.reliability[0],
        reliability_after=found.reliability[1],
        slope_corrected=found.slope_corrected,
        pearson_corrected=found.pearson_corrected,
    )


def _adjusted(runs: list[RunShift]) -> list[RunShift]:
    """Return the comparisons with p after Holm over them, each test of each number a family of its own."""
    means_ = _adjusted_tests([run.mean for run in runs])
    sds = iter(_adjusted_tests([run.sd for run in runs if run.sd is not None]))
    return [replace(run, mean=mean, sd=None if run.sd is None else next(sds)) for run, mean in zip(runs, means_, strict=True)]


def _adjusted_tests(found: list[StatisticShift]) -> list[StatisticShift]:
    paired = _holm([one.wilcoxon for one in found])
    apart, swapped = _holm([one.ks for one in found]), _holm([one.ks_swapped for one in found])
    return [
        replace(one, wilcoxon=w, ks=k or one.ks, ks_swapped=s or one.ks_swapped)
        for one, w, k, s in zip(found, paired, apart, swapped, strict=True)
    ]


def _holm(tests: Sequence[ShiftTest | None]) -> list[ShiftTest | None]:
    adjusted = holm([t.p if t else None for t in tests])
    return [replace(t, p_adjusted=p) if t and p is not None else None for t, p in zip(tests, adjusted, strict=True)]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _notes(data: QuestionScores, spec: ShiftsSpec, runs: list[RunShift], without: int) -> list[str]:
    notes = []
    used = {str(spec.before), *(run.after for run in runs)}
    lost = sum(int(n) for g, n in zip(data.groups, data.lost, strict=True) if str(g[-1]) in used)
    if lost:
        notes.append(f"{lost} answers have no score and are left out above.")
    if without:
        notes.append(f"{without} models share fewer than 3 questions with '{spec.before}' and are left out.")
    few = min(run.mean.questions for run in runs)
    if few < FEW_QUESTIONS:
        notes.append(
            f"There are only {few} questions: with fewer than {FEW_QUESTIONS}, the coverage of intervals may be below nominal."
        )
    if len(runs) > 1:
        notes.append(f"p-values are Holm's over {len(runs)} comparisons, separately for each test.")
    least = len(runs) * 2.0 ** (1 - few)
    if least > DOUBT:
        notes.append(f"With {few} questions, no such p of a paired test can be below {min(least, 1):.2f}, whatever the data.")
    return notes
