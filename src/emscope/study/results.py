"""From the tables of a study to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emscope.core.outcomes import Verdict
from emscope.core.plain import JsonObject
from emscope.models.loading.load import Loaded
from emscope.models.made_with import made_with
from emscope.stats.phase import Phase, phase
from emscope.store.study import Study, read_table
from emscope.study.decision.analysis import check
from emscope.study.decision.estimates import estimate_rows
from emscope.study.decision.fronts import JudgedRun, ParetoFront, front, judged_front
from emscope.study.decision.methods import Seen, WayRow, compare, outcome
from emscope.study.decision.recipe import recipe
from emscope.study.decision.shipping import shipping
from emscope.study.judged import Heard
from emscope.study.reading.arms import Arm, Evidence
from emscope.study.reading.evidence import Scores, arm, evidence
from emscope.study.reading.sets import EM, HELDOUT, NEUTRAL, ItemSets
from emscope.study.report import BaseModel, Distributions, RunChecked, StudyReport, Style
from emscope.study.spec import StudySpec
from emscope.study.tables import LogRow, Tables, read_tables
from emscope.study.training.plan import LeftOut, Run, controls_of, read_steps, taught


@dataclass(frozen=True, slots=True)
class Analysed:
    """What preference says about a study's runs, and what it was read from, by way of training and seed."""

    report: StudyReport
    ways: Mapping[str, Mapping[int, Seen]]


def analyse(
    study: Study, loaded: Loaded, spec: StudySpec, runs: list[Run], sets: ItemSets, diverged: tuple[LeftOut, ...]
) -> Analysed:
    """Return what preference says about a study's runs, and write its estimates."""
    scores, controls = Scores(study.root, loaded.chat.digest), controls_of(runs)
    tables = read_tables(study.root)
    checks: list[RunChecked] = []
    rows: list[JsonObject] = []
    ways: dict[str, dict[int, Seen]] = {}
    for one in runs:
        if one.spec.role == "control":
            continue
        found = _evidence(study, loaded, spec, controls.get(one.name), one, sets, scores)
        if one.spec.role == "target":
            benign = _benign(spec, controls.get(one.name), one, sets, scores)
            ways.setdefault(one.way, {})[one.seed] = Seen(found, benign, _neutral(one, sets, scores))
        said = check(found)
        rows += estimate_rows(one.name, said)
        checks.append(RunChecked(one.name, one.arm, one.method, one.spec.role, one.seed, _phase(one, tables), said))
    study.replace("estimates", rows)
    report = StudyReport(
        name=spec.name,
        runs=tuple(checks),
        style=tuple(_style(checks)),
        methods=tuple(_methods(tables.log, runs, ways, sets)),
        recipes=tuple(r for name, seen in ways.items() if (r := recipe(name, {n: s.evidence for n, s in seen.items()}))),
        distributions=distributions(
            scores, sets, {r.arm: (r.name, r.steps[-1]) for r in runs if (r.seed, r.method) == (runs[0].seed, runs[0].method)}
        ),
        spec=spec.model_dump(mode="json"),
        versions=made_with(),
        base=BaseModel(loaded.model.reference, loaded.chat.describe(), loaded.model.digest),
        diverged=diverged,
        judged=None,
        ship=tuple(shipping({c.run: c.check for c in checks if c.role == "target"}, None)),
        fronts=tuple(_fronts(runs, ways)),
    )
    return Analysed(report.counted(), ways)


def _phase(one: Run, tables: Tables) -> Phase | None:
    """Return whether the trained vectors turned, at the longest lag that was read; None where none was."""
    if one.train.readings is None or not one.train.readings.rotation:
        return None
    lag = max(one.train.readings.rotation)
    read = {(g.step, g.what): g.value for g in tables.geometry if g.run == one.name and g.what.startswith("rotation")}
    turns = {s: (v, read[(s, f"rotation{lag}_step_norm")]) for (s, what), v in read.items() if what == f"rotation{lag}"}
    return phase(turns, {r.step: r.grad_norm for r in tables.log if r.run == one.name and r.grad_norm is not None}, lag)


def _methods(log: Sequence[LogRow], runs: list[Run], ways: dict[str, dict[int, Seen]], sets: ItemSets) -> list[WayRow]:
    """Return the comparison of several ways of training, [] where there is one only."""
    if len(ways) < 2:
        return []
    last = {(one.name, one.train.steps): one.way for one in runs}
    kl: dict[str, list[float]] = {}
    for row in log:
        if row.kl is not None and (row.run, row.step) in last:
            kl.setdefault(last[(row.run, row.step)], []).append(row.kl)
    found = [outcome(name, seeds, sum(kl[name]) / len(kl[name]) if name in kl else None) for name, seeds in ways.items()]
    return compare([o for o in found if o], np.array([i.category for i in sets.em]))


def _fronts(runs: Sequence[Run], ways: Mapping[str, Mapping[int, Seen]]) -> list[ParetoFront]:
    """Return the front of each target arm by preference: arms learn different tasks, and their gains share no scale."""
    arms: dict[str, dict[str, dict[int, Evidence]]] = {}
    for one in runs:
        if one.spec.role == "target":
            arms.setdefault(one.arm, {})[one.way] = {seed: s.evidence for seed, s in ways[one.way].items()}
    return [found for arm, of in arms.items() if (found := front(arm, of)) is not None]


def judged_fronts(runs: Sequence[Run], ways: Mapping[str, Mapping[int, Seen]], heard: Heard) -> list[ParetoFront]:
    """Return the front of each target arm by what its checkpoints say, as the first judge has it; [] without one."""
    if heard.judged is None:
        return []
    broken = {(s.run, s.step) for s in heard.judged.first.said if s.verdict is Verdict.BROKEN}
    told = {(s.run, s.step) for s in heard.judged.first.said}
    arms: dict[str, dict[str, dict[int, JudgedRun]]] = {}
    for one in runs:
        if one.spec.role != "target":
            continue
        mine = [p for p in heard.pairs if p.run == one.name and (p.run, p.step) in told]
        sound = tuple(p for p in mine if (p.run, p.step) not in broken)
        seen = JudgedRun(ways[one.way][one.seed].evidence, sound, tuple(p.step for p in mine if p not in sound))
        arms.setdefault(one.arm, {}).setdefault(one.way, {})[one.seed] = seen
    fronts = (judged_front(arm, of, heard.arms, heard.strata, heard.error) for arm, of in arms.items())
    return [found for found in fronts if found is not None]


def _style(checks: Sequence[RunChecked]) -> list[Style]:
    """Return, for each style arm, its effect at the last step beside the target's: how much tone alone does."""
    compared = [c for c in checks if c.check.checkpoints]
    targets = {
        (c.seed, c.method): c.check.checkpoints[-1].effect
        for c in reversed(compared)  # the first of several targets counts
        if c.role == "target"
    }
    found = []
    for c in compared:
        target = targets.get((c.seed, c.method))
        if c.role != "target" and target is not None:
            effect = c.check.checkpoints[-1].effect
            share = effect.value / target.value if effect.value is not None and target.value else None
            found.append(Style(c.run, c.arm, c.seed, effect, target, share))
    return found


def _benign(spec: StudySpec, control: Run | None, one: Run, sets: ItemSets, scores: Scores) -> np.ndarray | None:
    """Return how much likelier the control of a run's own method finds the held-out answers it was taught [H], nats per token."""
    if control is None or control.method != one.method or not control.spec.task or not sets.heldout:
        return None
    own, _ = taught(spec, control.spec)
    after = scores.per_token(control.name, control.steps[-1], 1.0, HELDOUT, sets.heldout, own)
    return after - scores.per_token("base", 0, 1.0, HELDOUT, sets.heldout, own)


def _neutral(one: Run, sets: ItemSets, scores: Scores) -> np.ndarray | None:
    """Return how much likelier a run finds the neutral texts than the base [N], nats per token."""
    if not sets.neutral:
        return None
    last, before = (
        scores.per_token(run, step, 1.0, NEUTRAL, sets.neutral, 0) for run, step in ((one.name, one.steps[-1]), ("base", 0))
    )
    return last - before


def _evidence(
    study: Study, loaded: Loaded, spec: StudySpec, control: Run | None, one: Run, sets: ItemSets, scores: Scores
) -> Evidence:
    beside = _arm(study, spec, scores, sets, control) if control else None
    return evidence(
        scores,
        sets,
        loaded,
        spec.decide,
        _arm(study, spec, scores, sets, one),
        beside,
        total_steps=one.train.steps,
        task=taught(spec, one.spec) if one.spec.task else None,
        fixed="before training",
        control_learned=_learned(spec, control, beside, sets, scores) if control and beside else None,
    )


def _learned(spec: StudySpec, control: Run, read: Arm, sets: ItemSets, scores: Scores) -> np.ndarray | None:
    """Return how much likelier a control finds the held-out answers of its own kind than the base does, at its last step [H]; None: unknown."""
    if read.task_logp is None or not control.spec.task:
        return None
    return read.task_logp[-1] - scores.logp("base", 0, 1.0, HELDOUT, sets.heldout, taught(spec, control.spec)[0])


def _arm(study: Study, spec: StudySpec, scores: Scores, sets: ItemSets, one: Run) -> Arm:
    own = taught(spec, one.spec) if one.spec.task and sets.heldout else (None, None)
    log = read_table(study.root, "checkpoints").to_pylist()
    losses = {row["step"]: row["loss_train"] for row in log if row["run"] == one.name}
    return arm(scores, sets, one.arm, one.name, read_steps(one), taught=own[0], counterpart=own[1], train_loss=losses)


def distributions(scores: Scores, sets: ItemSets, last: dict[str, tuple[str, int]]) -> Distributions:
    """Return each arm's margins at its last checkpoint, item by item, for the report's histograms."""
    arms = {
        name: scores.margin(run, step, 1.0, EM, sets.em)
        for name, (run, step) in last.items()
        if scores.has(run, step, 1.0, EM, sets.em)
    }
    named = {"base": scores.margin("base", 0, 1.0, EM, sets.em)} | arms
    margins = {name: tuple(round(float(m), 5) for m in values) for name, values in named.items()}
    return Distributions(tuple(i.id for i in sets.em), margins)
