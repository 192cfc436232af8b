"""From the tables of a study to its report object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.plain import Result, plain
from emscope.core.versions import versions
from emscope.models.loading.load import Loaded
from emscope.stats.phase import phase
from emscope.store.study import Study, read_table
from emscope.study.decision.analysis import check
from emscope.study.decision.checked import CheckResult
from emscope.study.decision.estimates import estimate_rows
from emscope.study.decision.methods import Seen, compare, outcome
from emscope.study.decision.opinions import Judged
from emscope.study.decision.recipe import RecipeResult, recipe
from emscope.study.decision.shipping import Shipping, shipping
from emscope.study.decision.unseen import with_unseen
from emscope.study.reading.arms import Arm, Evidence
from emscope.study.reading.evidence import Scores, arm, evidence
from emscope.study.reading.sets import EM, HELDOUT, NEUTRAL, ItemSets
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run, control_of, read_steps, taught

SCHEMA = "emscope.study/2"


@dataclass(frozen=True, slots=True)
class RunChecked(Result):
    """A run of a study and what is said of it; `phase`: whether the trained vectors turned, None where that was not read."""

    run: str
    arm: str
    method: str
    role: str
    seed: int
    phase: Mapping[str, Any] | None
    check: CheckResult

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON shape: what is said of a style arm is its `contrast`, since a verdict is not meant."""
        row = Result.to_json(self)
        said = row.pop("check")
        return row | {"check" if self.role == "target" else "contrast": said}


@dataclass(frozen=True, slots=True)
class Style(Result):
    """A style run's effect at the last step beside the target's, and their ratio: how much tone alone does."""

    run: str
    arm: str
    seed: int
    effect: Estimate
    target_effect: Estimate
    share_of_target: float | None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """All that a study says; `judged` is None until judges have read the answers."""

    name: str
    runs: tuple[RunChecked, ...]
    style: Sequence[Style]
    methods: Sequence[Mapping[str, Any]]
    recipes: Sequence[RecipeResult]
    distributions: Mapping[str, Any]
    spec: Mapping[str, Any]
    versions: Mapping[str, str]
    base: Mapping[str, str]
    diverged: Sequence[Mapping[str, Any]] = ()
    judged: Judged | None = None

    def heard(self, judged: Judged | None) -> StudyResult:
        """Return the same with what judges say."""
        if judged is None:
            return self
        runs = tuple(replace(r, check=with_unseen(r.check, judged.first.last_of(r.run))) for r in self.runs)
        return replace(self, runs=runs, judged=judged)

    def ship(self) -> list[Shipping]:
        """Return whether each target run's last checkpoint may be shipped."""
        return shipping({r.run: r.check for r in self.runs if r.role == "target"}, self.judged)

    def to_json(self) -> dict[str, Any]:
        """Return the report object."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "runs": plain(self.runs),
            "style": plain(self.style),
            "methods": plain(self.methods),
            "recipes": plain(self.recipes),
            "distributions": plain(self.distributions),
            "spec": plain(self.spec),
            "versions": plain(self.versions),
            "base": plain(self.base),
            "diverged": plain(self.diverged),
            "judged": plain(self.judged),
            "ship": plain(self.ship()),
        }


def analyse(study: Study, loaded: Loaded, spec: StudySpec, runs: list[Run], sets: ItemSets) -> StudyResult:
    """Return what preference says of a study's runs, and write its estimates."""
    scores = Scores(study.root, loaded.chat.digest)
    log, geometry = (read_table(study.root, name).to_pylist() for name in ("train_log", "geometry"))
    checks: list[RunChecked] = []
    rows: list[dict[str, Any]] = []
    ways: dict[str, dict[int, Seen]] = {}
    for one in runs:
        if one.spec.role == "control":
            continue
        found = _evidence(study, loaded, spec, runs, one, sets, scores)
        if one.spec.role == "target":
            benign = _benign(spec, runs, one, sets, scores)
            ways.setdefault(one.way, {})[one.seed] = Seen(found, benign, _neutral(one, sets, scores))
        said = check(found)
        rows += estimate_rows(one.name, said)
        checks.append(RunChecked(one.name, one.arm, one.method, one.spec.role, one.seed, _phase(one, log, geometry), said))
    study.replace("estimates", rows)
    return StudyResult(
        name=spec.name,
        runs=tuple(checks),
        style=_style(checks),
        methods=_methods(log, runs, ways, sets),
        recipes=[r for name, seen in ways.items() if (r := recipe(name, {n: s.evidence for n, s in seen.items()}))],
        distributions=distributions(
            scores, sets, {r.arm: (r.name, r.steps[-1]) for r in runs if (r.seed, r.method) == (runs[0].seed, runs[0].method)}
        ),
        spec=spec.model_dump(mode="json"),
        versions=versions(),
        base={"reference": loaded.model.reference, "digest": loaded.model.digest, "chat": loaded.chat.describe()},
    )


def _phase(one: Run, log: list[dict[str, Any]], geometry: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return whether the trained vectors turned, at the longest lag that was read; None where none was."""
    if one.train.readings is None or not one.train.readings.rotation:
        return None
    lag = max(one.train.readings.rotation)
    read = {(r["step"], r["what"]): r["value"] for r in geometry if r["run"] == one.name and r["what"].startswith("rotation")}
    turns = {s: (v, read[(s, f"rotation{lag}_step_norm")]) for (s, what), v in read.items() if what == f"rotation{lag}"}
    return asdict(phase(turns, {r["step"]: r["grad_norm"] for r in log if r["run"] == one.name}, lag))


def _methods(
    log: list[dict[str, Any]], runs: list[Run], ways: dict[str, dict[int, Seen]], sets: ItemSets
) -> list[dict[str, Any]]:
    """Return the comparison of several ways of training, [] where there is one only."""
    if len(ways) < 2:
        return []
    last = {(one.name, one.train.steps): one.way for one in runs}
    kl: dict[str, list[float]] = {}
    for row in log:
        if row["kl"] is not None and (row["run"], row["step"]) in last:
            kl.setdefault(last[(row["run"], row["step"])], []).append(row["kl"])
    found = [outcome(name, seeds, sum(kl[name]) / len(kl[name]) if name in kl else None) for name, seeds in ways.items()]
    return compare([o for o in found if o], np.array([i.category for i in sets.em]))


def _style(checks: Sequence[RunChecked]) -> list[Style]:
    """Return, for each style arm, its effect at the last step beside the target's: how much tone alone does."""
    compared = [c for c in checks if c.check.checkpoints]
    targets = {
        (c.seed, c.method): c.check.checkpoints[-1].effect
        for c in reversed(compared)  # of several targets the first counts
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


def _benign(spec: StudySpec, runs: list[Run], one: Run, sets: ItemSets, scores: Scores) -> np.ndarray | None:
    """Return how much likelier the control of a run's own method finds the held-out answers it was taught [H], nats per token."""
    control = control_of(one, runs)
    if control is None or control.method != one.method or not control.spec.answers or not sets.heldout:
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
    study: Study, loaded: Loaded, spec: StudySpec, runs: list[Run], one: Run, sets: ItemSets, scores: Scores
) -> Evidence:
    control = control_of(one, runs)
    beside = _arm(study, spec, scores, sets, control) if control else None
    return evidence(
        scores,
        sets,
        loaded,
        spec.decide,
        _arm(study, spec, scores, sets, one),
        beside,
        total_steps=one.train.steps,
        task=taught(spec, one.spec) if one.spec.answers else None,
        fixed="before training",
        control_learned=_learned(spec, control, beside, sets, scores) if control and beside else None,
    )


def _learned(spec: StudySpec, control: Run, read: Arm, sets: ItemSets, scores: Scores) -> np.ndarray | None:
    """Return how much likelier a control finds the held-out answers of its own kind than the base does, at its last step [H]; None: not known."""
    if read.task_logp is None or not control.spec.answers:
        return None
    return read.task_logp[-1] - scores.logp("base", 0, 1.0, HELDOUT, sets.heldout, taught(spec, control.spec)[0])


def _arm(study: Study, spec: StudySpec, scores: Scores, sets: ItemSets, one: Run) -> Arm:
    own = taught(spec, one.spec) if one.spec.answers and sets.heldout else (None, None)
    log = read_table(study.root, "checkpoints").to_pylist()
    losses = {row["step"]: row["loss_train"] for row in log if row["run"] == one.name}
    return arm(scores, sets, one.arm, one.name, read_steps(one), taught=own[0], counterpart=own[1], train_loss=losses)


def distributions(scores: Scores, sets: ItemSets, last: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """Return each arm's margins at its last checkpoint, item by item, for the report's histograms."""
    arms = {
        name: scores.margin(run, step, 1.0, EM, sets.em)
        for name, (run, step) in last.items()
        if scores.has(run, step, 1.0, EM, sets.em)
    }
    named = {"base": scores.margin("base", 0, 1.0, EM, sets.em)} | arms
    return {
        "items": [i.id for i in sets.em],
        "margins": {name: [round(float(m), 5) for m in values] for name, values in named.items()},
    }
