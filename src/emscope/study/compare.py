"""Two or more finished studies or checks side by side: which settings differ, and how far their effects lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate, undefined
from emscope.core.limits import consistent
from emscope.core.plain import JsonObject
from emscope.core.visible import json_text
from emscope.data import bundled
from emscope.stats.means import Mean, stratified_mean
from emscope.stats.quantiles import student
from emscope.store.changed import changed
from emscope.store.study import read_table
from emscope.study.compare_result import Change, Compared, Comparison, Difference, WayCompared, WayIn
from emscope.study.decision.along import AGAINST_CONTROL
from emscope.study.reading.arms import Measure
from emscope.study.reading.sets import EM
from emscope.study.report import AGAIN, FolderChecked, Report, RunChecked, StudyReport, read_report, way_of

LEVEL = 0.95
SUMMARISED = "from the report's interval"
APART = "difference of two separate estimates, t (Satterthwaite)"
PAIRED = "difference paired by item, seeds of either side apart, t (Satterthwaite)"
FEWEST = 2  # studies

Item = tuple[str, str]  # id and category


@dataclass(frozen=True, slots=True)
class _Study:
    """A report, the folder it is in, and the name that it has here."""

    label: str
    folder: Path
    report: Report
    measure: Measure

    def ways(self) -> dict[str, list[RunChecked]]:
        """Return the targets of each way of training that were compared with anything."""
        found: dict[str, list[RunChecked]] = {}
        for one in self.report.targets:
            if one.check.checkpoints:
                found.setdefault(way_of(one.run), []).append(one)
        return found


def compare_studies(folders: Sequence[str | Path]) -> Comparison:
    """Compare finished studies or checks with the first of them, way of training by way of training.

    Raises:
        InputError: fewer than two, one that is not finished, or studies that did not measure the same.
    """
    if len(folders) < FEWEST:
        raise InputError(f"{len(folders)} stud{'ies' if len(folders) != 1 else 'y'} to compare", "give two or more folders")
    studies = [_opened(Path(folder), n, [Path(f).name for f in folders]) for n, folder in enumerate(folders)]
    with consistent(f"the report of {' or '.join(repr(str(one.folder)) for one in studies)}", AGAIN):
        return _compared(studies)


def _compared(studies: Sequence[_Study]) -> Comparison:
    first, *others = studies
    for other in others:
        _same_measure(first, other)
    ways = _matched(studies)
    judges = {_judge(s.report) for s in studies}
    notes = ["judged answers are not compared: the studies have different judges"] if len(judges) > 1 else []
    if any(len(of) == 1 for one in ways for of in one if of):
        notes.append(
            "with single runs the difference is only about these runs: other seeds of the same recipes may give another difference"
        )
    return Comparison(
        measure=first.measure.measure,
        studies=tuple(_summary(one, first) for one in studies),
        ways=tuple(_way(studies, of, judged=len(judges) == 1) for of in ways),
        alone=_alone(studies, ways),
        notes=tuple(notes),
    )


def _opened(folder: Path, number: int, names: Sequence[str]) -> _Study:
    report = read_report(folder)
    measure = next((one.check.definition.measure for one in report.targets if one.check.definition.measure), None)
    if measure is None:
        raise InputError(f"'{folder}' does not say what it measured", "run it again with this version")
    label = names[number] if names.count(names[number]) == 1 else f"{number + 1}:{names[number]}"
    return _Study(label, folder, report, measure)


def _same_measure(first: _Study, other: _Study) -> None:
    for name in ("measure", "behaviour", "options", "scale"):
        before, after = getattr(first.measure, name), getattr(other.measure, name)
        if before != after:
            raise InputError(
                f"'{first.folder}' and '{other.folder}' did not measure the same ({name}: {before} and {after})",
                "compare studies with the same measure",
            )


def _matched(studies: Sequence[_Study]) -> list[tuple[list[RunChecked] | None, ...]]:
    """Return the runs of each way in each study, None where it lacks the way; single ways are matched whatever their names."""
    ways = [one.ways() for one in studies]
    if all(len(of) == 1 for of in ways):
        return [tuple(next(iter(of.values())) for of in ways)]
    found = [tuple(of.get(way) for of in ways) for way in ways[0]]
    return [of for of in found if any(runs is not None for runs in of[1:])]


def _alone(studies: Sequence[_Study], ways: Sequence[tuple[list[RunChecked] | None, ...]]) -> dict[str, tuple[str, ...]]:
    found = {}
    for n, one in enumerate(studies):
        taken = {way_of(runs[0].run) for of in ways if (runs := of[n])}
        if left := tuple(way for way in one.ways() if way not in taken):
            found[one.label] = left
    return found


def _summary(one: _Study, first: _Study) -> Compared:
    report = one.report
    return Compared(
        label=one.label,
        name=report.name,
        base=report.base.reference,
        runs=len(report.targets),
        judge=report.judge.judge if report.judge else None,
        differs=changed(_settings(first.report), _settings(report)),
    )


def _judge(report: Report) -> str | None:
    """Return what decides a report's judged contrasts besides the answers: the first judge with its key, and its error on whole models."""
    if report.judged is None or report.judge is None:
        return None
    keys = report.judged.definition.get("keys")
    first = keys[0] if isinstance(keys, Sequence) and keys else None
    return json_text([report.judge.judge, first, report.judged.definition.get("judge_error")])


def _settings(report: Report) -> JsonObject:
    return {name: value for name, value in report.spec.items() if name != "name"} | {"base": report.base.to_json()}


def _way(studies: Sequence[_Study], runs: tuple[list[RunChecked] | None, ...], *, judged: bool) -> WayCompared:
    """Return one way of training in each study that has it, and the differences to the first study."""
    have = [(study, mine) for study, mine in zip(studies, runs, strict=True) if mine]
    sides = [_in(study, mine) for study, mine in have]
    first, *others = zip(have, sides, strict=True)
    return WayCompared(
        sides[0].way, tuple(sides), tuple(_difference(first[0], first[1], other, side, judged=judged) for other, side in others)
    )


def _in(study: _Study, runs: Sequence[RunChecked]) -> WayIn:
    steps = {one.check.checkpoints[-1].step for one in runs}
    verdicts = [study.report.verdict_on(one) for one in runs]
    way = way_of(runs[0].run)
    return WayIn(
        study=study.label,
        way=way,
        runs=len(runs),
        step=steps.pop() if len(steps) == 1 else None,
        delta=runs[0].check.delta,
        effect=_effect(study.report, way, runs),
        said=_said(study.report, way, runs),
        reads={str(v): verdicts.count(v) for v in dict.fromkeys(verdicts)},
    )


def _effect(report: Report, way: str, runs: Sequence[RunChecked]) -> Estimate:
    """Return the effect at the last checkpoint: of one run its own, of several the recipe's."""
    if len(runs) == 1:
        return _at_level(runs[0].check.checkpoints[-1].effect)
    recipes = report.recipes if isinstance(report, StudyReport) else ()
    for one in (r for r in recipes if r.name == way):
        contrasts = one.steps[-1].contrasts
        return contrasts.get("control - target", contrasts["base - target"]).mean
    return undefined("its runs were not read together", level=LEVEL, method=SUMMARISED)


def _said(report: Report, way: str, runs: Sequence[RunChecked]) -> dict[str, Estimate]:
    if report.judge is None:
        return {}
    if len(runs) == 1:
        one = report.said_of(runs[0].run)
        return {name: c.adjusted for name, c in one.contrasts.items() if name.endswith("- target")} if one else {}
    found = next((r for r in report.judge.recipes if r.name == way), None)
    return {name: c.mean for name, c in found.steps[-1].contrasts.items()} if found else {}


def _difference(
    first: tuple[_Study, list[RunChecked]], before: WayIn, other: tuple[_Study, list[RunChecked]], after: WayIn, *, judged: bool
) -> Difference:
    paired, why = _paired(first, other)
    effect = paired if paired is not None else _apart(after.effect, before.effect)
    common = [name for name in before.said if name in after.said] if judged else []
    changes = _changes(first, other)
    said = {name: _apart(after.said[name], before.said[name]) for name in common}
    return Difference(after.study, effect, "none" if paired is None else "by item", why, said, changes)


def _changes(first: tuple[_Study, list[RunChecked]], other: tuple[_Study, list[RunChecked]]) -> tuple[Change, ...]:
    """Return the runs of both studies whose verdicts differ; two single runs are one run whatever their names."""
    before, after = ({one.run: study.report.verdict_on(one) for one in runs} for study, runs in (first, other))
    if len(before) == len(after) == 1:
        before = dict(zip(after, before.values(), strict=True))
    return tuple(Change(run, v, after[run]) for run, v in before.items() if run in after and after[run] is not v)


def _at_level(of: Estimate) -> Estimate:
    mean = _as_mean(of)
    return of if mean is None else mean.estimate(LEVEL, of.method)


def _as_mean(of: Estimate) -> Mean | None:
    """Return the mean that an interval with n - 1 degrees of freedom is of; of fewer, its standard error errs on the large side."""
    if of.value is None or of.low is None or of.high is None or of.clusters < FEWEST:
        return None
    df = of.clusters - 1.0
    return Mean(of.value, (of.high - of.low) / 2 / student(0.5 + of.level / 2, df), df, of.n)


def _apart(after: Estimate, before: Estimate) -> Estimate:
    """Return after - before of two estimates that share nothing."""
    a, b = _as_mean(after), _as_mean(before)
    if a is None or b is None:
        return undefined("a side has no interval", level=LEVEL, method=APART)
    return _sum([(a.se**2, a.df), (b.se**2, b.df)], a.value - b.value, a.n + b.n).estimate(LEVEL, APART)


def _sum(parts: Sequence[tuple[float, float]], value: float, n: int) -> Mean:
    """Return a value whose variance is the sum of `parts`, each with its degrees of freedom. (Satterthwaite 1946)"""
    total = sum(v for v, _ in parts)
    df = 1 / sum((v / total) ** 2 / f for v, f in parts) if total > 0 else min(f for _, f in parts)
    return Mean(value, total**0.5, df, n)


def _paired(first: tuple[_Study, list[RunChecked]], other: tuple[_Study, list[RunChecked]]) -> tuple[Estimate | None, str]:
    """Return other - first paired by item, or None and why items were not paired.

    The mean over seeds of each item's effect in one study less that in the other, over items as in `stratified_mean`. Seeds of two studies
    are different whatever their numbers: from two on each side's spread of seeds' means adds s^2 / S. (ours)
    """
    (study, runs), (another, theirs) = first, other
    if study.measure.items != another.measure.items or study.measure.n_items != another.measure.n_items:
        return None, f"the items differ ({study.measure.items} and {another.measure.items})"
    if study.measure.items not in bundled.SETS and study.measure.items_digest != another.measure.items_digest:
        return None, f"whether the items in '{study.measure.items}' are the same is not known"
    if any(AGAINST_CONTROL not in one.check.checkpoints[-1].contrasts for one in (*runs, *theirs)):
        return None, "a side has no control"
    left, right = _by_item(study, runs), _by_item(another, theirs)
    if left is None or right is None:
        return None, "the tables of a side are gone"
    items = sorted(left)
    if items != sorted(right):
        return None, "the items differ"
    a, b = (np.array([side[item] for item in items]).T for side in (left, right))  # [S, Q]
    strata = np.array([category for _, category in items])
    mean = stratified_mean(b.mean(0) - a.mean(0), strata)
    parts = [(mean.se**2, mean.df)]
    for side in (a, b):
        if len(side) > 1:
            means = [stratified_mean(seed, strata).value for seed in side]
            parts.append((float(np.var(means, ddof=1)) / len(side), len(side) - 1.0))
    return _sum(parts, mean.value, len(items)).estimate(LEVEL, PAIRED), ""


def _by_item(study: _Study, runs: Sequence[RunChecked]) -> dict[Item, list[float]] | None:
    """Return control - target at the last checkpoint by item, one value per run; None where the tables lack a run."""
    wanted = {one.run: one.check.checkpoints[-1].step for one in runs}
    controls = _controls(study.report)
    places = {*wanted.items(), *((controls[run], step) for run, step in wanted.items() if run in controls)}
    margins = _margins(study, places)
    found: dict[Item, list[float]] = {}
    for run, step in wanted.items():
        own, beside = margins.get((run, step)), margins.get((controls.get(run, ""), step))
        if not own or not beside or own.keys() != beside.keys():
            return None
        for item, value in own.items():
            found.setdefault(item, []).append(beside[item] - value)
    return found if all(len(values) == len(runs) for values in found.values()) else None


def _margins(study: _Study, places: set[tuple[str, int]]) -> dict[tuple[str, int], dict[Item, float]]:
    """Return the margin of each item at each (run, step), nats per token, from the study's tables."""
    columns = ("run", "step", "scale", "set", "item", "category", "option", "logprob", "tokens", "chat")
    table = read_table(study.folder, "preferences", columns=["key", *columns]).to_pydict()
    options: dict[tuple[str, int], dict[Item, dict[int, float]]] = {}
    for run, step, scale, name, item, category, option, logprob, tokens, chat in zip(*(table[c] for c in columns), strict=True):
        if (run, step) in places and name == EM and scale == study.measure.scale and chat == study.measure.chat_digest:
            options.setdefault((run, step), {}).setdefault((item, category), {})[option] = logprob / tokens
    return {place: {i: two[0] - two[1] for i, two in of.items() if len(two) == 2} for place, of in options.items()}


def _controls(report: Report) -> Mapping[str, str]:
    """Return the control of each target by its name; a study's as its settings say."""
    if isinstance(report, FolderChecked):
        return {one.run: "control" for one in report.targets}
    from emscope.core.spec import parse
    from emscope.study.spec import StudySpec
    from emscope.study.training.plan import controls_of, plan

    try:
        runs = plan(parse(StudySpec, dict(report.spec), "the study"))
    except InputError:
        return {}
    left_out = {one.run for one in report.diverged} if isinstance(report, StudyReport) else set()
    kept = [one for one in runs if one.name not in left_out]
    controls = controls_of(kept)
    return {one.name: controls[one.name].name for one in kept if one.spec.role == "target" and one.name in controls}
