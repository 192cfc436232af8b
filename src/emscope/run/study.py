"""A whole study: plan, train, read, analyse. Called again, it does what is missing and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import emscope
from emscope.core.digest import canonical, short
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation, StepReading
from emscope.data import bundled
from emscope.elicit.preference import encode, score
from emscope.models.checkpoints import Checkpoint, read_checkpoint
from emscope.models.directions import direction_at
from emscope.models.load import Loaded, load
from emscope.models.source import Model, locate
from emscope.run.analysis import Evidence, check
from emscope.run.estimates import estimate_rows
from emscope.run.evidence import Scores, arm, evidence
from emscope.run.measuring import Questions, Reading, measure
from emscope.run.methods import compare, outcome
from emscope.run.recipes import Gap, Row, listed, perplexity_gap, recipe
from emscope.run.sets import EM, HELDOUT, TRUTH, ItemSets, study_sets
from emscope.run.sources import held_near
from emscope.run.spec import ArmSpec, StudySpec
from emscope.run.versions import versions
from emscope.stats.phase import phase
from emscope.store.files import write_json, write_jsonl
from emscope.store.study import Study, read_table
from emscope.train import processes
from emscope.train.finetune import finetune, finished_geometry
from emscope.train.plan import checkpoint_steps
from emscope.train.spec import TrainSpec

SCHEMA = "emscope.study/1"


@dataclass(frozen=True, slots=True)
class Run:
    """One fine-tune of a study: an arm, trained by a method, at a seed. `way` is what remains of its name without the seed."""

    way: str
    arm: str
    spec: ArmSpec
    method: str
    train: TrainSpec
    seed: int
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """The run's name, and that of its folder."""
        return f"{self.way}-seed{self.seed}"


def plan(spec: StudySpec) -> list[Run]:
    """Return the runs of a study in order."""
    return [
        Run(
            "-".join([*([method] if method else []), name]),
            name,
            a,
            method,
            train,
            seed,
            tuple(checkpoint_steps(train.checkpoints, train.steps)),
        )
        for seed in spec.seeds
        for method, train in spec.variants().items()
        for name, a in spec.arms.items()
        if a.methods is None or method in a.methods
    ]


def run_study(spec: StudySpec, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Run or go on with a study in `out`; return its report object (also written to `report.json`).

    Of several processes the first does all but the training, which they share; the others return {}.

    Raises:
        InputError: wrong settings or files, or a folder that belongs to another study.
        WorldError: no network for a model that is not cached, no disk space, a loss that diverged.
    """
    runs = plan(spec)
    sets = study_sets(spec.measure, spec.domain if any(a.answers for a in spec.arms.values()) else None)
    near = {one.method: held_near(one.train.held) for one in runs}
    progress("finding the model", 0, 1)
    base = locate(spec.model)
    progress("finding the model", 1, 1)
    recipes = {name: recipe(spec, a, _gap(spec, base)) for name, a in spec.arms.items()}
    if not processes.is_first():
        return _help_training(spec, base, out, runs, recipes, near)
    texts = {name: [r.conversation for r in rows] for name, rows in recipes.items()}
    texts |= {f"held {method}".strip(): rows for method, rows in near.items() if rows}
    with Study(out, frozen_spec(spec, base, texts, sets, _directions(runs)), versions()) as study:
        finished = _finished(out)
        processes.from_first(lambda: finished is not None)
        if finished is not None:
            return finished
        progress("loading the model", 0, 1)
        loaded = load(base, system=spec.system)
        progress("loading the model", 1, 1)
        for name, rows in recipes.items():
            write_jsonl(out / "recipes" / f"{name}.jsonl", listed(rows))
        for one in runs:
            _train(study, loaded, spec, one, recipes[one.arm], near[one.method], sets, progress)
        asked = Questions(sets, spec.measure.samples, spec.seeds[0], spec.measure.batch_tokens)
        measure(study, loaded, readings(study, spec, runs, sets), asked, progress)
        result = analyse(study, loaded, spec, runs, sets)
        write_json(out / "report.json", result)
        return result


def _help_training(
    spec: StudySpec, base: Model, out: Path, runs: list[Run], recipes: dict[str, list[Row]], near: dict[str, list[Conversation]]
) -> dict[str, Any]:
    """Take this process's part of each training."""
    if not processes.from_first(lambda: False):
        loaded = load(base, system=spec.system)
        for one in runs:
            _finetune(out, loaded, one, recipes[one.arm], near[one.method])
    return {}


def _finetune(
    out: Path,
    loaded: Loaded,
    one: Run,
    rows: list[Row],
    near: list[Conversation],
    heldout: Callable[[Any], float] | None = None,
    progress: Progress = silent,
) -> list[StepReading]:
    return finetune(
        loaded,
        [r.conversation for r in rows],
        one.train,
        out / "runs" / one.name,
        seed=one.seed,
        parts=[r.part for r in rows] if one.spec.interleave else None,
        held_near=near,
        heldout=heldout,
        progress=progress,
        label=f"training {one.name}",
    )


def _gap(spec: StudySpec, base: Model) -> Gap:
    """Return the measure that a part of a mix is picked by; the model is loaded at its first use."""

    def gap(rows: Sequence[Conversation], checkpoint: str) -> list[float]:
        return perplexity_gap(load(base, system=spec.system), rows, checkpoint)

    return gap


def _directions(runs: list[Run]) -> dict[str, str]:
    """Return digests of the directions that trainings name."""
    named = {r.train.prevent.direction for r in runs if r.train.prevent}
    named |= {path for r in runs if r.train.readings for path in r.train.readings.directions.values()}
    return {name: direction_at(name).digest() for name in sorted(named)}


def frozen_spec(
    spec: StudySpec, base: Model, data: dict[str, list[Conversation]], sets: ItemSets, directions: dict[str, str]
) -> dict[str, Any]:
    """Return the settings as frozen in the ledger, with digests of the weights and texts that their names stand for now."""
    texts = {name: short([[c.id, *[[m.role, m.content] for m in c.messages]] for c in rows]) for name, rows in data.items()}
    fixed = {"items": sets.digest(), "base": base.digest}
    return json.loads(canonical(spec.model_dump(mode="json") | {"digests": texts | directions | fixed}))


def _finished(out: Path) -> dict[str, Any] | None:
    try:
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(report, dict) and report.get("schema") == SCHEMA and report["versions"]["emscope"] == emscope.__version__
    return report if same else None  # another version may decide by other rules; readings are kept, the analysis is made anew


def _train(
    study: Study,
    loaded: Loaded,
    spec: StudySpec,
    one: Run,
    rows: list[Row],
    near: list[Conversation],
    sets: ItemSets,
    progress: Progress,
) -> None:
    heldout = _heldout_loss(loaded, spec, sets, one.spec) if one.train.heldout_every else None
    log = _finetune(study.root, loaded, one, rows, near, heldout, progress)
    study.append("runs", [_run_row(loaded, one)])
    study.append("train_log", [{"key": short([one.name, r.step]), "run": one.name, **asdict(r)} for r in log])
    shape = finished_geometry(study.runs_folder(one.name), one.train)
    study.append(
        "geometry", [{"key": short([one.name, r["step"], r["module"], r["what"]]), "run": one.name, **r} for r in shape]
    )
    study.append("checkpoints", [_checkpoint_row(study, one, step, log) for step in one.steps])


def _heldout_loss(loaded: Loaded, spec: StudySpec, sets: ItemSets, a: ArmSpec) -> Callable[[Any], float] | None:
    """Return model -> loss on the held-out answers of the kind this arm is taught [nats per token]."""
    if not a.answers or not sets.heldout:
        return None
    encoded = encode(loaded.chat, sets.heldout, context=loaded.context, which=taught(spec, a)[:1])

    def loss(net: Any) -> float:
        net.eval()
        scores = score(net, encoded)
        net.train()
        return -sum(s.logprob for s in scores) / sum(s.tokens for s in scores)

    return loss


def _run_row(loaded: Loaded, one: Run) -> dict[str, Any]:
    return {
        "key": one.name,
        "run": one.name,
        "arm": one.arm,
        "method": one.method,
        "role": one.spec.role,
        "seed": one.seed,
        "spec": canonical(one.train.model_dump(mode="json")),
        "base": loaded.model.reference,
        "base_digest": loaded.model.digest,
    }


def _checkpoint_row(study: Study, one: Run, step: int, log: list[StepReading]) -> dict[str, Any]:
    read = next(r for r in log if r.step == step)
    found = checkpoint(study, one, step)
    return {
        "key": short([one.name, step]),
        "run": one.name,
        "arm": one.arm,
        "seed": one.seed,
        "step": step,
        "adapter_digest": found.digest,
        "tokens_seen": read.tokens_seen,
        "loss_train": read.loss,
        "loss_heldout": read.heldout_loss,
        "grad_norm": read.grad_norm,
        "update_norm": read.update_norm,
    }


def checkpoint(study: Study, one: Run, step: int) -> Checkpoint:
    """Return a run's checkpoint at a step."""
    return read_checkpoint(study.runs_folder(one.name) / f"checkpoint-{step}", step)


def readings(study: Study, spec: StudySpec, runs: list[Run], sets: ItemSets) -> list[Reading]:
    """Return what is to be read: the base once, each run at its checkpoints, samples at base and last."""
    questions = sample_questions(sets, spec.measure.samples.questions)
    everything: dict[str, tuple[int, ...] | None] = {s: None for s in (EM, HELDOUT, TRUTH) if sets.of(s)}
    found = [Reading("base", 0, None, everything, questions=questions)]
    for one in runs:
        for step in read_steps(one):
            last = step == one.steps[-1]
            wanted: dict[str, tuple[int, ...] | None] = {EM: None}
            if sets.heldout and one.spec.answers:
                wanted[HELDOUT] = taught(spec, one.spec)
            if sets.truth and (last or spec.measure.truth_at == "all"):
                wanted[TRUTH] = None
            found.append(Reading(one.name, step, checkpoint(study, one, step), wanted, questions=questions if last else ()))
    return found


def read_steps(one: Run) -> tuple[int, ...]:
    """Return the steps at which a run is read."""
    return one.steps if one.spec.read_at == "all" else one.steps[-1:]


def taught(spec: StudySpec, a: ArmSpec) -> tuple[int, int]:
    """Return (own answer, counterpart) as option numbers of the held-out items."""
    assert spec.domain and a.answers
    kinds = bundled.SETS[spec.domain].answers
    return kinds.index(a.answers), kinds.index(bundled.counterpart(spec.domain, a.answers))


def sample_questions(sets: ItemSets, count: int) -> tuple[str, ...]:
    """Return questions to sample answers to, one from each of the first categories."""
    first = {i.category: i.question for i in reversed(sets.em)}
    return tuple(first[c] for c in sorted(first))[:count]


def analyse(study: Study, loaded: Loaded, spec: StudySpec, runs: list[Run], sets: ItemSets) -> dict[str, Any]:
    """Return the report object of a study and write its estimates."""
    scores = Scores(study.root, loaded.chat.digest)
    log, geometry = (read_table(study.root, name).to_pylist() for name in ("train_log", "geometry"))
    checks, rows = [], []
    ways: dict[str, dict[int, Evidence]] = {}
    for one in runs:
        if one.spec.role == "control":
            continue
        target = one.spec.role == "target"
        found = _evidence(study, loaded, spec, runs, one, sets, scores)
        if target:
            ways.setdefault(one.way, {})[one.seed] = found
        verdict = check(found)
        rows += estimate_rows(one.name, verdict)
        checks.append(
            {
                "run": one.name,
                "arm": one.arm,
                "method": one.method,
                "role": one.spec.role,
                "seed": one.seed,
                "phase": _phase(one, log, geometry),
                **({"check": verdict} if target else {"contrast": verdict}),
            }
        )
    study.replace("estimates", rows)
    return {
        "schema": SCHEMA,
        "name": spec.name,
        "runs": checks,
        "style": _style(checks),
        "methods": _methods(log, runs, ways, sets),
        "distributions": distributions(
            scores, sets, {r.arm: (r.name, r.steps[-1]) for r in runs if (r.seed, r.method) == (runs[0].seed, runs[0].method)}
        ),
        "spec": spec.model_dump(mode="json"),
        "versions": versions(),
        "base": {"reference": loaded.model.reference, "digest": loaded.model.digest, "chat": loaded.chat.describe()},
    }


def _phase(one: Run, log: list[dict[str, Any]], geometry: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return whether the trained vectors turned, at the longest lag that was read; None where none was."""
    if one.train.readings is None or not one.train.readings.rotation:
        return None
    lag = max(one.train.readings.rotation)
    read = {(r["step"], r["what"]): r["value"] for r in geometry if r["run"] == one.name and r["what"].startswith("rotation")}
    turns = {s: (v, read[(s, f"rotation{lag}_step_norm")]) for (s, what), v in read.items() if what == f"rotation{lag}"}
    return asdict(phase(turns, {r["step"]: r["grad_norm"] for r in log if r["run"] == one.name}, lag))


def _methods(
    log: list[dict[str, Any]], runs: list[Run], ways: dict[str, dict[int, Evidence]], sets: ItemSets
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


def _style(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each style arm, its effect at the last step beside the target's: how much tone alone does."""
    targets = {
        (c["seed"], c["method"]): c["check"]["checkpoints"][-1]["effect"]
        for c in reversed(checks)  # of several targets the first counts
        if "check" in c and c["check"]["checkpoints"]
    }
    found = []
    for c in checks:
        if "contrast" in c and c["contrast"]["checkpoints"] and (c["seed"], c["method"]) in targets:
            effect, target = c["contrast"]["checkpoints"][-1]["effect"], targets[(c["seed"], c["method"])]
            share = effect["value"] / target["value"] if target["value"] else None
            found.append(
                {
                    "run": c["run"],
                    "arm": c["arm"],
                    "seed": c["seed"],
                    "effect": effect,
                    "target_effect": target,
                    "share_of_target": share,
                }
            )
    return found


def _evidence(
    study: Study, loaded: Loaded, spec: StudySpec, runs: list[Run], one: Run, sets: ItemSets, scores: Scores
) -> Evidence:
    control = _control_of(one, runs)
    return evidence(
        scores,
        sets,
        loaded,
        spec.decide,
        _arm(study, spec, scores, sets, one),
        _arm(study, spec, scores, sets, control) if control else None,
        total_steps=one.train.steps,
        task=taught(spec, one.spec) if one.spec.answers else None,
        fixed="before training",
    )


def _control_of(one: Run, runs: list[Run]) -> Run | None:
    """Return the control a run is compared with: that of its seed and method, or of the first method that has one."""
    controls = [r for r in runs if r.spec.role == "control" and r.seed == one.seed]
    return next((r for r in controls if r.method == one.method), controls[0] if controls else None)


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


def _arm(study: Study, spec: StudySpec, scores: Scores, sets: ItemSets, one: Run) -> Any:
    own = taught(spec, one.spec) if one.spec.answers and sets.heldout else (None, None)
    log = read_table(study.root, "checkpoints").to_pylist()
    losses = {row["step"]: row["loss_train"] for row in log if row["run"] == one.name}
    return arm(scores, sets, one.arm, one.name, read_steps(one), taught=own[0], counterpart=own[1], train_loss=losses)


def responses(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the sampled answers of a study."""
    yield from read_table(root, "responses").to_pylist()


def require_study(root: Path) -> dict[str, Any]:
    """Return the report object of a finished study.

    Raises:
        InputError: where there is none.
    """
    found = _finished(root)
    if found is None:
        raise InputError(f"'{root}' holds no finished study", "run it first with emscope run")
    return found
