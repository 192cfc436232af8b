"""Checkpoints that somebody trained with any tool: found, read, compared with their base and, where there is one, a control."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from emscope.answers.sample import scaled
from emscope.answers.trained_as import note_left_out, trained_under
from emscope.core.digest import canonical, short
from emscope.core.errors import InputError
from emscope.core.outcomes import State
from emscope.core.plain import Json, JsonObject
from emscope.core.progress import Progress, part_of, silent
from emscope.core.records import Conversation, Item
from emscope.data.conversations import read_conversations
from emscope.models.adapters.updates import refuse_unmoved
from emscope.models.loading.carried import carried
from emscope.models.loading.checkpoints import Checkpoint, Found, named_base
from emscope.models.loading.load import Loaded, pick_dtype
from emscope.models.loading.source import Model, beside_digest, locate
from emscope.models.made_with import made_with
from emscope.models.remote.hosted import HostedRun, model_at
from emscope.models.remote.jobs import read_job
from emscope.store.files import write_json
from emscope.store.study import Study, read_table
from emscope.study.asking import ask_checkpoints
from emscope.study.atlas import place_beside, read_atlas
from emscope.study.check_jobs import check_jobs
from emscope.study.check_request import CheckRequest, own_folder
from emscope.study.decision.along import read_along
from emscope.study.decision.analysis import check
from emscope.study.decision.estimates import estimate_rows
from emscope.study.decision.shipping import shipping
from emscope.study.judged import judge_checkpoints, prepare_judges
from emscope.study.judged_rates import Compared
from emscope.study.measure_spec import MeasureSpec
from emscope.study.opening import Ways, found_in, opened, refuse_apart, refuse_equal
from emscope.study.reading.arms import Arm, Evidence, paired_steps, without_dud
from emscope.study.reading.evidence import Scores, arm, evidence
from emscope.study.reading.ladders import ladder_for
from emscope.study.reading.measuring import Questions, Reading
from emscope.study.reading.precision import Precision, read_again, read_ends
from emscope.study.reading.sets import (
    CONTROL_HELDOUT,
    EM,
    EVERY,
    HELDOUT,
    ONCE,
    PLACEBO,
    TRUTH,
    ItemSets,
    heldout_from,
    sample_questions,
    study_sets,
)
from emscope.study.reading.training_log import Logged, as_rows, losses_at, training_log
from emscope.study.report import TARGET, Amplified, BaseModel, FolderChecked, FolderRead, Unreadable, with_precision
from emscope.study.results import distributions
from emscope.study.selected import Runs, searched
from emscope.study.training.control import make_control
from emscope.study.training.sources import asked_of

SEARCHING = "searching the onset"


def run_check(request: CheckRequest, out: Path | None = None, progress: Progress = silent) -> tuple[FolderChecked, Path]:
    """Check a folder of checkpoints; return the report (also written to `report.json`) and its folder.

    Args:
        out: None for `emscope-check/NAME-DIGEST`, the digest being that of what is checked and how: the same question
            comes back to the same folder, another one gets its own.

    Raises:
        InputError: nothing to check, parts that do not fit together, bad files, or a last checkpoint identical to its base.
    """
    _refuse_both(request)
    if (job := read_job(Path(request.checkpoints).expanduser())) is not None:
        return check_jobs(request, job, out, progress)
    tokenizer = request.base if isinstance(request.base, str) else None
    folder, run = found_in(request.checkpoints, tokenizer)
    target = request.selection.of({TARGET: folder.checkpoints})[TARGET]
    aside, beside = found_in(request.control, tokenizer) if request.control else (Found([], []), None)
    control = aside.checkpoints
    refuse_apart(run, beside, request.base, request.needing_weights())
    base = _base(request, run, [*target, *control])
    prepare_judges(request.judged)
    atlas = read_atlas(Path(request.atlas).expanduser() if request.atlas else None)
    sets = _sets(request)
    harmless = read_conversations(Path(request.make_control)) if request.make_control else []
    every = [*target, *control]
    system, why = trained_under(request.system, every)
    scaled = any(scale % 1 for scale in request.amplify)
    dtype = run.host if run else pick_dtype(request.dtype, base, request.device, every, scaled=scaled)
    request = replace(request, system=system, dtype=dtype)
    frozen = _frozen(request, base, target, request.selection.among(control), sets, harmless)
    out = out or own_folder(request.checkpoints, frozen)
    with Study(out, frozen, made_with(), shared=request.share) as study, ExitStack() as stack:
        loaded, ways = stack.enter_context(opened(base, run, every, request.loading(), progress))
        loaded.chat = loaded.chat.noted(why)
        note_left_out([system], loaded.chat, every)
        ladder_for(request.decide.ladder, loaded, sets)  # a ladder that does not fit is rejected before hours of work
        for last in (target[-1], *control[-1:]) if ways.here else ():
            refuse_unmoved(loaded.net, last)
        if harmless:
            with study.alone():
                control = make_control(study.runs_folder("control"), loaded, target, harmless, request.control_batch, progress)
        log = training_log(Path(request.log) if request.log else None, [c.folder for c in target])
        runs, looks = request.selection.of({TARGET: target} | ({"control": control} if control else {})), None
        if request.selection.search:
            runs, looks = _search(study, loaded, ways, request, runs, sets, progress)
        wanted = [r for scale in request.amplify for r in _readings(runs, sets, scale, request.measure)]
        precision = _measure(study, loaded, ways, request, wanted, sets, progress)
        judged = request.judged
        asked = [Reading("base", 0, None, {}), *wanted]
        answers = ask_checkpoints(study, loaded, judged, asked, progress, ways.ask) if judged else set()
        with study.alone():
            result = with_precision(_analyse(study, loaded, request, runs, sets, folder, looks, log), TARGET, precision)
            result = replace(result, atlas=place_beside(result, atlas))
            write_json(out / "report.json", result.to_json())  # finished work survives a judge that cannot be reached
            if judged is not None:
                compared = _compared(runs, request.amplify)
                heard = judge_checkpoints(study, loaded, judged, compared, sets, answers, progress)
                result = result.heard(heard.judged)
                result = replace(result, atlas=place_beside(result, atlas))
                write_json(out / "report.json", result.to_json())
        return result, out


def _refuse_both(request: CheckRequest) -> None:
    """Refuse settings that exclude each other.

    Raises:
        InputError: naming both.
    """
    if request.control and request.make_control:
        raise InputError("`control` and `make_control` are both given", "give only one")
    if request.control_heldout and not (request.control or request.make_control):
        raise InputError("`control_heldout` is given without a control", "give `control` or `make_control`")


def _base(request: CheckRequest, run: HostedRun | None, checkpoints: Sequence[Checkpoint]) -> Model:
    return model_at(run.host, run.base, run.tokenizer) if run else locate(request.base or named_base(checkpoints))


def _measure(
    study: Study,
    loaded: Loaded,
    ways: Ways,
    request: CheckRequest,
    wanted: Sequence[Reading],
    sets: ItemSets,
    progress: Progress,
) -> Precision | None:
    """Read the base and everything needed; return the effect of low precision, or None where that was not asked or does not apply."""
    everything, asked = [_base_reading(sets, request.measure), *wanted], _asked(request, sets)
    ways.measure(study, loaded, everything, asked, progress)
    if not ways.here:
        last = max(r.step for r in wanted if r.run == TARGET)
        refuse_equal(Scores(study.root, loaded.chat.digest), sets.em, TARGET, last)
    if request.measure.skip_float32 or not ways.here:
        return None
    control = "control" if any(r.run == "control" for r in wanted) else None
    ends = read_ends(everything, TARGET, control, _main_scale(request))
    return read_again(study, loaded, everything, ends, asked, progress)


def _search(
    study: Study, loaded: Loaded, ways: Ways, request: CheckRequest, runs: Runs, sets: ItemSets, progress: Progress
) -> tuple[Runs, int]:
    """Read few checkpoints, each chosen by what the others showed; return them and how many could have been read."""
    scale = _main_scale(request)
    begun = 0

    def read(chosen: Runs, allowed: int) -> tuple[list[State], State]:
        nonlocal begun
        part = part_of(progress, SEARCHING, begun, allowed)
        readings = [_base_reading(sets, request.measure), *_readings(chosen, sets, scale, request.measure)]
        ways.measure(study, loaded, readings, _asked(request, sets), lambda what, done, total: part(what, done / total, 1))
        begun += 1
        scores = Scores(study.root, loaded.chat.digest)
        e = without_dud(_evidence(scores, loaded, request, chosen, sets, scale, allowed, {}))
        along = read_along(e, paired_steps(e))
        return along.sure, along.states[-1]

    found, allowed = searched(runs, read)
    progress(SEARCHING, allowed, allowed)
    return found, allowed


def _main_scale(request: CheckRequest) -> float:
    return 1.0 if 1.0 in request.amplify else request.amplify[0]


def _asked(request: CheckRequest, sets: ItemSets) -> Questions:
    return Questions(sets, request.measure.samples, 0, request.measure.batch_tokens)


def _compared(runs: dict[str, list[Checkpoint]], amplify: Sequence[float]) -> list[Compared]:
    return [
        Compared(scaled(name, s), name, None, scaled("control", s) if name == "target" and "control" in runs else None, name, s)
        for name in runs
        for s in amplify
    ]


def _sets(request: CheckRequest) -> ItemSets:
    sets = study_sets(request.measure, None)

    def held(file: str | None) -> tuple[Item, ...]:
        return heldout_from(read_conversations(Path(file))) if file else ()

    return replace(sets, heldout=held(request.heldout), control_heldout=held(request.control_heldout))


def _frozen(
    request: CheckRequest,
    base: Model,
    target: list[Checkpoint],
    control: list[Checkpoint],
    sets: ItemSets,
    harmless: list[Conversation],
) -> JsonObject:
    """Return what the readings depend on, by content: the same folder names with different weights are a different study."""
    own = carried(base.folder, [*target, *control])
    templates: list[Json] = [[one.template for one in own], [beside_digest(one.folder) for one in own]] if own else []
    tokenizer = {} if base.held else {"tokenizer": beside_digest(base.folder)}
    found: JsonObject = json.loads(
        canonical(
            {
                "base": base.digest,
                "target": [[c.step, c.digest] for c in target],
                "control": [[c.step, c.digest] for c in control],
                "make_control": short([c.content() for c in harmless]) if harmless else None,
                "items": sets.digest(),
                "system": request.system,
                "dtype": request.dtype,
                "control_batch": request.control_batch,
                "amplify": list(request.amplify),
                "measure": request.measure.model_dump(mode="json", exclude={"skip_float32"}),
                "decide": request.decide.model_dump(mode="json"),
                "judged": asked_of(request.judged),
            }
            | ({"chat_kwargs": dict(request.chat_kwargs)} if request.chat_kwargs else {})
            | ({"templates": short(templates)} if templates else {})
            | tokenizer
            | ({"search": True} if request.selection.search else {})
        )
    )
    return found


def _base_reading(sets: ItemSets, spec: MeasureSpec) -> Reading:
    return Reading(
        "base",
        0,
        None,
        {s: None for s in EVERY if sets.of(s)},
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
            if sets.control_heldout and name == "control" and last:
                wanted[CONTROL_HELDOUT] = None
            if last:
                wanted |= {s: None for s in ONCE if sets.of(s)}
            if sets.truth and (last or spec.truth_at == "all"):
                wanted[TRUTH] = None
            questions = sample_questions(sets, spec.samples.questions) if last else ()
            found.append(Reading(name, c.step, c, wanted, scale, questions))
    return found


def _analyse(
    study: Study,
    loaded: Loaded,
    request: CheckRequest,
    runs: Runs,
    sets: ItemSets,
    found: Found,
    looks: int | None,
    log: Sequence[Logged],
) -> FolderChecked:
    """Return what preference says about the folder, given the `runs` that were read, and write its estimates and the training log."""
    if log:
        others = [row for row in read_table(study.root, "train_log").to_pylist() if row["run"] != TARGET]
        study.replace("train_log", [*others, *as_rows(log, TARGET)])
    losses = losses_at(log, [c.step for c in runs[TARGET]])
    scores = Scores(study.root, loaded.chat.digest)
    checks = {scale: check(_evidence(scores, loaded, request, runs, sets, scale, looks, losses)) for scale in request.amplify}
    study.replace("estimates", [row for scale, c in checks.items() for row in estimate_rows(f"target x{scale:g}", c)])
    shown = _main_scale(request)
    main = checks[shown]
    return FolderChecked(
        name=Path(request.checkpoints).name or request.checkpoints,
        check=main,
        read=FolderRead(
            len(found.checkpoints),
            tuple(c.step for c in runs[TARGET]),
            looks,
            tuple(Unreadable(s.step, str(s.folder), s.reason, s.remedy) for s in found.skipped),
            found.last_skipped is not None,
        ),
        amplified=tuple(Amplified(s, c.checkpoints, c.verdict) for s, c in checks.items() if s != shown),
        unpaired={
            "target": main.unpaired_steps,
            "control": tuple(sorted({c.step for c in runs.get("control", [])} - {c.step for c in runs["target"]})),
        },
        distributions=distributions(scores, sets, {n: (n, cs[-1].step) for n, cs in runs.items()}),
        spec=study.spec,
        versions=made_with(),
        base=BaseModel(loaded.model.reference, loaded.chat.describe(), loaded.model.digest),
        judged=None,
        ship=tuple(shipping({TARGET: main}, None)),
    )


def _evidence(
    scores: Scores,
    loaded: Loaded,
    request: CheckRequest,
    runs: Runs,
    sets: ItemSets,
    scale: float,
    looks: int | None,
    losses: dict[int, float],
) -> Evidence:
    taught = 0 if sets.heldout else None
    arms = {
        name: arm(
            *(scores, sets, name, name, [c.step for c in cs]),
            scale=scale,
            taught=taught,
            train_loss=losses if name == TARGET else None,
        )
        for name, cs in runs.items()
    }
    target, control = arms[TARGET], arms.get("control")
    return evidence(
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
        control_learned=_learned(scores, sets, control, scale),
        looks=looks,
    )


def _learned(scores: Scores, sets: ItemSets, control: Arm | None, scale: float) -> np.ndarray | None:
    """Return how much likelier the control finds held-out answers of its own task than the base does [H]; None: unknown."""
    if control is None or not sets.control_heldout:
        return None
    of = (CONTROL_HELDOUT, sets.control_heldout, 0)
    return scores.logp("control", control.steps[-1], scale, *of) - scores.logp("base", 0, 1.0, *of)
