"""Variance components of a study: given, measured in a file of judged answers, or those of small models in this project's log."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import special

from emscope.answers.planning.power_spec import PowerSpec
from emscope.answers.planning.study_answers import judged_answers
from emscope.core.errors import InputError
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import answer_columns
from emscope.data.by_question import QuestionScores, read_by_question
from emscope.judging.local import bundled_judge
from emscope.judging.names import LOCAL
from emscope.stats.planning import Spread, Spreads, correlation_of_means, measure

NAMED = re.compile(r"^(?P<arm>.+?)-(?:seed)?(?P<seed>\d+)$")  # of runs: target-seed0, target-0


@dataclass(frozen=True, slots=True)
class Found:
    """Components and their source; the seeds and questions that they were measured on."""

    spreads: Spreads
    source: str
    seeds: int | None = None
    questions: int | None = None
    notes: tuple[str, ...] = ()


DEFAULTS = {
    "judged": Found(
        Spreads(Spread(2.0, 11.5, 6.1), Spread(2.0, 15.2, 6.1), 0.4, 13.5),
        "measured on small models: questions and answers on three seeds of a 1.5B model, 24 questions, read blind; seeds, and what they do to "
        "single questions, the largest of eight on 3 and 4 seeds of 1.5B and 135M models; the correlation is preference's, since judged ones "
        "lie between -.1 and .98",
    ),
    "preference": Found(
        Spreads(Spread(0.012, 0.27, 0.0), Spread(0.012, 0.32, 0.0), 0.4, 0.0),
        "measured on small models at the end of a run; what a seed does to single items is part of the items'",
    ),
}


def components(path: Path | None, spec: PowerSpec) -> Found:
    """Return the components: of the file where there is one, else the defaults, replaced by those that are given.

    Raises:
        InputError: the file does not contain them.
    """
    judge = spec.judge if spec.measure == "judged" else None
    found = _with_judge(DEFAULTS[spec.measure], judge) if path is None else _measured(path, spec)
    given = {
        name: getattr(spec, f"{name}_sd" if name != "correlation" else name)
        for name in ("seed", "question", "seed_question", "sampling", "correlation")
    }
    told = {name: value for name, value in given.items() if value is not None}
    spreads = _with_given(found.spreads, told, spec.rule == "p1")
    if not told:
        return Found(spreads, found.source, found.seeds, found.questions, found.notes)
    all_told = {"seed", "question", "seed_question", "sampling"} <= told.keys() and ("correlation" in told or spec.rule == "p1")
    source = "given" if all_told else f"{', '.join(n.replace('_', ' x ') for n in told)} given; the rest {found.source}"
    return Found(spreads, source, found.seeds, found.questions, found.notes)


def _with_given(known: Spreads, told: Mapping[str, tuple[float, ...] | float], control_alone: bool) -> Spreads:
    def part(one: Spread, place: int) -> Spread:
        values = []
        for name, default in (("seed", one.seed), ("question", one.question), ("seed_question", one.cell)):
            value = told.get(name)
            values.append(default if not isinstance(value, tuple) else value[min(place, len(value) - 1)])
        return Spread(*values)

    control, base = known.control or known.base, known.base or known.control
    assert control is not None and base is not None
    correlation, sampling = told.get("correlation", known.correlation), told.get("sampling", known.sampling)
    assert not isinstance(correlation, tuple) and not isinstance(sampling, tuple)
    return replace(
        known,
        control=part(control, 0),
        base=None if control_alone else part(base, 1),
        correlation=correlation,
        sampling=sampling,
    )


def _with_judge(found: Found, judge: str | None) -> Found:
    """Return components with the judge's error on whole models, where it is known: of the local one."""
    if judge != LOCAL:
        return found
    error = bundled_judge().model_error.adjusted
    note = (
        f"The local judge's error on whole models is included: a standard deviation of {error.fine_tune:.1f} points of a fine-tune, and "
        f"{error.base:.1f} of the base. More questions do not shrink it."
    )
    return replace(found, spreads=replace(found.spreads, judge=error), notes=(*found.notes, note))


def _measured(path: Path, spec: PowerSpec) -> Found:
    if not path.is_dir():
        return _measured_in(path, path, spec)
    with tempfile.TemporaryDirectory() as kept:
        table = Path(kept) / "judged.parquet"
        answers, judge = judged_answers(path, spec.judge)
        pq.write_table(answers, table)
        return _with_judge(_measured_in(table, path, spec), judge)


def _measured_in(file: Path, path: Path, spec: PowerSpec) -> Found:
    """Return the components of a table; `path` is what the user gave."""
    with AnswerTable([file]) as table:
        table.named(spec.arm, spec.seed)
        columns = answer_columns(table, aligned=spec.aligned, question=spec.question, groups=(spec.arm,), need_coherent=False)
        if columns.question is None:
            raise InputError(f"'{path}' has no column that looks like a question", "name it with `question`")
        step = [spec.step] if spec.step in table.names else []
        groups = [spec.arm, *([spec.seed] if spec.seed else []), *step]
        data = read_by_question(table, columns.aligned, question=columns.question, groups=groups)
    cells = _cells(data, spec, bool(step))
    seeds = sorted(set(cells.get(spec.target, {})) & set(cells.get(spec.control, {})))
    if len(seeds) < 2:
        raise InputError(
            f"column '{spec.arm}' of '{path}' has {len(seeds)} seeds of both '{spec.target}' and '{spec.control}'",
            "give a file with two or more, named as ARM-seedN or with `seed`, and name the arms with `target` and `control`",
        )
    alone = spec.rule == "p1"
    base = cells.get(spec.base, {})
    if not base and not alone:
        raise InputError(
            f"column '{spec.arm}' of '{path}' holds no '{spec.base}'", "name it with `base`, or plan for `rule=p1`"
        )
    arms = [[cells[arm][s] for s in seeds] for arm in (spec.target, spec.control)]
    every = [*arms[0], *arms[1], *([] if alone else [next(iter(base.values()))])]
    shared = np.all([one.count > 0 for one in every], axis=0)
    if shared.sum() < 2:
        raise InputError(f"'{path}' has {int(shared.sum())} questions that all runs answered", "give two or more")
    return _components(
        [[one.of(shared) for one in arm] for arm in arms],
        None if alone else every[-1].of(shared),
        str(path),
        int((~shared).sum()),
    )


@dataclass(frozen=True, slots=True)
class _Cells:
    """One run: number, mean and sum of squared deviations of its scores on each question [Q]."""

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray

    def of(self, kept: np.ndarray) -> _Cells:
        """Return some of the questions."""
        return _Cells(self.count[kept], self.mean[kept], self.squares[kept])


def _cells(data: QuestionScores, spec: PowerSpec, steps: bool) -> dict[str, dict[str, _Cells]]:
    """Return each run's cells by arm and seed, of its last step."""
    found: dict[str, dict[str, _Cells]] = {}
    latest: dict[tuple[str, str], float] = {}
    for g, label in enumerate(data.groups):
        arm, seed = str(label[0]), str(label[1]) if spec.seed else ""
        named = NAMED.match(arm)
        if not spec.seed and named is not None and named["arm"] in (spec.target, spec.control, spec.base):
            arm, seed = named["arm"], named["seed"]
        step = float(label[-1] or 0) if steps else 0.0
        if step < latest.get((arm, seed), -1.0):
            continue
        latest[(arm, seed)] = step
        rows, count = data.group == g, len(data.questions)
        k, x = data.question[rows], data.score[rows]
        n = np.bincount(k, minlength=count)
        mean = np.bincount(k, x, count) / np.maximum(n, 1)
        found.setdefault(arm, {})[seed] = _Cells(n, mean, np.bincount(k, (x - mean[k]) ** 2, count))
    return found


def _components(arms: list[list[_Cells]], base: _Cells | None, source: str, dropped: int) -> Found:
    every = [*arms[0], *arms[1], *([base] if base else [])]
    free = sum(int((one.count - 1).sum()) for one in every)
    variance = sum(float(one.squares.sum()) for one in every) / free if free else 0.0
    noise = [variance * float(np.mean([1 / one.count for one in arm])) for arm in arms]
    target, control = (np.array([one.mean for one in arm]) for arm in arms)
    a = measure(control - target, noise[0] + noise[1])
    b, correlation = None, 0.0
    if base is not None:
        values, cells = base.mean - target, target.size
        of_base = variance * float(np.mean(1 / base.count))
        b = measure(values, noise[0], of_base)
        shared = noise[0] / cells  # the target's answers are in both contrasts
        sampling = shared + noise[1] / cells, shared + of_base / target.shape[1], shared
        correlation = correlation_of_means(control - target, values, sampling)
    seeds, questions = target.shape
    notes = [
        f"The standard deviation between seeds is estimated from {seeds} seeds: it may be up to {_beyond(seeds):.1f} times as large."
    ]
    if not free:
        notes.append("Each question has one answer per run, so sampling is part of what a seed does to single questions.")
    if dropped:
        notes.append(f"{dropped} questions were not answered by all runs and are left out.")
    return Found(
        Spreads(a.spread, b.spread if b else None, correlation, variance**0.5),
        f"measured in {source} on {seeds} seeds and {questions} questions",
        seeds,
        questions,
        tuple(notes),
    )


def _beyond(seeds: int) -> float:
    """Return how many times as large a standard deviation from so many seeds may be: sqrt(df / chi^2_.025), its upper 97.5 % limit. (normal seeds)"""
    df = seeds - 1
    return float(np.sqrt(df / special.chdtri(df, 0.975)))
