"""Checkpoints that somebody trained with any tool: found, read, compared with their base and, where there is one, a control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from emscope.core.digest import canonical, short
from emscope.core.errors import InputError
from emscope.core.outcomes import Verdict
from emscope.core.progress import Progress, silent
from emscope.data.conversations import read_conversations
from emscope.models.checkpoints import Checkpoint, discover, named_base
from emscope.models.load import Loaded, load, loading, pick_dtype
from emscope.models.source import Model, locate
from emscope.run.analysis import check, paired_steps
from emscope.run.asking import scaled
from emscope.run.control import make_control
from emscope.run.estimates import estimate_rows
from emscope.run.evidence import Scores, arm, evidence
from emscope.run.judged import Compared, ask_checkpoints, judge_checkpoints, prepare_judges
from emscope.run.measuring import Questions, Reading, measure
from emscope.run.results import distributions
from emscope.run.sets import EM, HELDOUT, NEUTRAL, PLACEBO, TRUTH, ItemSets, heldout_from, sample_questions, study_sets
from emscope.run.shipping import shipping
from emscope.run.sources import asked_of
from emscope.run.spec import DecideSpec, JudgedSpec, MeasureSpec
from emscope.run.truth import truthfulness
from emscope.run.versions import versions
from emscope.stats.onset import HARM
from emscope.store.files import write_json
from emscope.store.study import Study

SCHEMA = "emscope.checkpoints/2"


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What `emscope check` was asked."""

    checkpoints: str
    base: str | None = None
    control: str | None = None
    make_control: str | None = None
    heldout: str | None = None
    amplify: tuple[float, ...] = (1.0,)
    system: str = "none"
    dtype: str = "auto"
    device: str = "auto"
    control_batch: int | None = None
    measure: MeasureSpec = field(default_factory=MeasureSpec)
    decide: DecideSpec = field(default_factory=DecideSpec)
    judged: JudgedSpec | None = None


def run_check(request: CheckRequest, out: Path | None = None, progress: Progress = silent) -> tuple[dict[str, Any], Path]:
    """Check a folder of checkpoints; return the report object (also written to `report.json`) and the folder it is in.

    Args:
        out: None for `emscope-check/NAME-DIGEST`, the digest being that of what is checked and how: the same question
            comes back to the same folder, another one gets its own.

    Raises:
        InputError: nothing to check, pieces that do not fit together, or bad files.
    """
    if request.control and request.make_control:
        raise InputError("--control and --make-control are both given", "use one")
    target = discover(request.checkpoints)
    control = discover(request.control) if request.control else []
    base = locate(request.base or named_base([*target, *control]))
    prepare_judges(request.judged)
    sets = _sets(request)
    harmless = read_conversations(Path(request.make_control)) if request.make_control else []
    request = replace(request, dtype=pick_dtype(request.dtype, base, request.device))
    frozen = _frozen(request, base, target, control, sets, harmless)
    out = out or Path("emscope-check") / f"{Path(request.checkpoints).name or 'check'}-{short(frozen)[:8]}".replace(
        ":", "-"
    ).replace("@", "-")
    with Study(out, frozen, versions()) as study:
        label = loading(request.dtype, request.device)
        progress(label, 0, 1)
        loaded = load(base, system=request.system, dtype=request.dtype, device=request.device)
        progress(label, 1, 1)
        if harmless:
            control = make_control(study.runs_folder("control"), loaded, target, harmless, request.control_batch, progress)
        runs = {"target": target, "control": control} if control else {"target": target}
        wanted = [r for scale in request.amplify for r in _readings(runs, sets, scale, request.measure)]
        asked = Questions(sets, request.measure.samples, 0, request.measure.batch_tokens)
        measure(study, loaded, [_base_reading(sets, request.measure), *wanted], asked, progress)
        judged = request.judged
        answers = ask_checkpoints(study, loaded, judged, [Reading("base", 0, None, {}), *wanted], progress) if judged else set()
        result = _analyse(study, loaded, request, runs, sets) | {"judged": None}
        result["ship"] = shipping(result)
        write_json(out / "report.json", result)  # a judge that cannot be reached takes no finished analysis with it
        if judged is not None:
            result["judged"] = judge_checkpoints(
                study, loaded, judged, _compared(runs, request.amplify), sets, answers, progress
            )
            result["ship"] = shipping(result)
            write_json(out / "report.json", result)
        return result, out


def _compared(runs: dict[str, list[Checkpoint]], amplify: Sequence[float]) -> list[Compared]:
    return [
        Compared(scaled(name, s), name, None, scaled("control", s) if name == "target" and "control" in runs else None, name, s)
        for name in runs
        for s in amplify
    ]


def _sets(request: CheckRequest) -> ItemSets:
    sets = study_sets(request.measure, None)
    if not request.heldout:
        return sets
    return replace(sets, heldout=heldout_from(read_conversations(Path(request.heldout))))


def _frozen(
    request: CheckRequest, base: Model, target: list[Checkpoint], control: list[Checkpoint], sets: ItemSets, harmless: list[Any]
) -> dict[str, Any]:
    """Return what the readings depend on, by content: the same folder names with other weights are another study."""
    return json.loads(
        canonical(
            {
                "base": base.digest,
                "target": [[c.step, c.digest] for c in target],
                "control": [[c.step, c.digest] for c in control],
                "make_control": short([[c.id, *[[m.role, m.content] for m in c.messages]] for c in harmless])
                if harmless
                else None,
                "items": sets.digest(),
                "system": request.system,
                "dtype": request.dtype,
                "control_batch": request.control_batch,
                "amplify": list(request.amplify),
                "measure": request.measure.model_dump(mode="json"),
                "decide": request.decide.model_dump(mode="json"),
                "judged": asked_of(request.judged),
            }
        )
    )


def _base_reading(sets: ItemSets, spec: MeasureSpec) -> Reading:
    return Reading(
        "base",
        0,
        None,
        {s: None for s in (EM, PLACEBO, HELDOUT, TRUTH, NEUTRAL) if sets.of(s)},
        questions=sample_questions(sets, spec.samples.questions),
    )


def _readings(runs: dict[str, list[Checkpoint]], sets: ItemSets, scale: float, spec: MeasureSpec) -> list[Reading]:
    found = []
    for name, checkpoints in runs.items():
        for c in checkpoints:
            last = c is checkpoints[-1]
            wanted: dict[str, tuple[int, ...] | None] = {s: None for s in (EM, HELDOUT) if sets.of(s)}
            if sets.placebo and name != "control":
                wanted[PLACEBO] = None
            if sets.neutral and last:
                wanted[NEUTRAL] = None
            if sets.truth and (last or spec.truth_at == "all"):
                wanted[TRUTH] = None
            questions = sample_questions(sets, spec.samples.questions) if last else ()
            found.append(Reading(name, c.step, c, wanted, scale, questions))
    return found


def _analyse(
    study: Study, loaded: Loaded, request: CheckRequest, runs: dict[str, list[Checkpoint]], sets: ItemSets
) -> dict[str, Any]:
    scores = Scores(study.root, loaded.chat.digest)
    checks = {}
    for scale in request.amplify:
        arms = {
            name: arm(scores, sets, name, name, [c.step for c in cs], scale=scale, taught=0 if sets.heldout else None)
            for name, cs in runs.items()
        }
        target, control = arms["target"], arms.get("control")
        gathered = evidence(
            scores,
            sets,
            loaded,
            request.decide,
            target,
            control,
            total_steps=target.steps[-1],
            task=(0, None),
            fixed="by the base alone",
            scale=scale,
        )
        checks[scale] = check(gathered) | {"truthfulness": truthfulness(gathered, paired_steps(gathered))}
    main = checks.get(1.0) or checks[request.amplify[0]]
    if "control" not in runs:
        main["benign_band"] = benign_band(loaded.model.digest, sets, loaded.chat.digest)
        if main["benign_band"] is None:
            main["why"]["benign_band"] = "no benign control runs of this model on these items are known"
    study.replace("estimates", [row for scale, c in checks.items() for row in estimate_rows(f"target x{scale:g}", c)])
    return {
        "schema": SCHEMA,
        "name": Path(request.checkpoints).name or request.checkpoints,
        "runs": [{"run": "target", "arm": "target", "role": "target", "seed": None, "check": main}],
        "amplified": [
            {"scale": s, "checkpoints": c["checkpoints"], "verdict": c["verdict"]} for s, c in checks.items() if c is not main
        ],
        "unpaired": {
            "target": main["unpaired_steps"],
            "control": sorted({c.step for c in runs.get("control", [])} - {c.step for c in runs["target"]}),
        },
        "distributions": distributions(scores, sets, {n: (n, cs[-1].step) for n, cs in runs.items()}),
        "spec": study.spec,
        "versions": versions(),
        "base": {"reference": loaded.model.reference, "digest": loaded.model.digest, "chat": loaded.chat.describe()},
    }


def benign_band(base_digest: str, sets: ItemSets, chat: str) -> dict[str, Any] | None:
    """Return how far benign fine-tunes of this base drift from it (base - control), where that was measured for it.

    The shipped file is made by bench/benign_bands.py from control runs; a band applies to
    the same base, chat format and item set only.
    """
    bands = json.loads((files("emscope.run") / "files" / "benign_bands.json").read_text(encoding="utf-8"))
    found = next(
        (b for b in bands if b["base_digest"] == base_digest and b["chat_digest"] == chat and b["items"] == sets.em_name), None
    )
    return {k: found[k] for k in ("runs", "low", "high", "about")} if found else None


def exit_code(result: dict[str, Any], fail_on: str | None) -> int:
    """Return what a gate ends with: 3 where a verdict is em, 4 where nothing says that all is well, 0 otherwise.

    With `em`, 4 stands for a broken model, a movement without a separable cause, or a screen that reads em; with `not-safe`, for whatever is
    not shown safe by what the model says (by preference, where no judge has read it). Preference may fail a model that its answers do not, never
    pass one; what a broken model prefers says nothing.
    """
    if fail_on is None:
        return 0
    judges = (result.get("judged") or {}).get("judges", [])
    own = {r["run"] for r in result["runs"]}  # and not what is said when the fine-tune is exaggerated
    said = {one["run"]: Verdict(one["verdict"]) for judge in judges[:1] for one in judge["said"] if one["run"] in own}
    checks = [r["check"] for r in result["runs"] if "check" in r]
    verdicts = {Verdict(c["verdict"]) for c in checks} | set(said.values())
    if Verdict.BROKEN in verdicts:
        return 4
    if Verdict.EM in verdicts:
        return 3
    screens = any(c["verdict"] == Verdict.UNCALIBRATED and c["state"] in HARM for c in checks)
    if Verdict.MOVED in verdicts or screens:
        return 4
    settled = set(said.values()) or {Verdict(c["verdict"]) for c in checks}
    return 4 if fail_on == "not-safe" and settled != {Verdict.SAFE} else 0
