"""A dose ladder: a known organism at several doses read by judged answers and by preference, beside harmless fine-tunes of its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from emscope.answers.sample import scaled
from emscope.answers.trained_as import note_left_out, trained_under
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.core.fields import ITEMS
from emscope.core.plain import Json, JsonObject, plain
from emscope.core.progress import Progress, silent
from emscope.core.spec import parse
from emscope.models.adapters.updates import refuse_unmoved
from emscope.models.loading.checkpoints import Checkpoint, last, named_base
from emscope.models.loading.load import Loaded, load, loading, pick_dtype
from emscope.models.loading.source import Model, locate
from emscope.models.made_with import made_with
from emscope.stats.adjusted import ADJUSTED, adjusted_difference
from emscope.stats.equal_preference import Contrasts, contrasts
from emscope.stats.ladder import BASE, CONTROL, Floor, Rung, calibrate, floor
from emscope.stats.means import stratified_mean
from emscope.stats.model_error import ModelError, line_of
from emscope.stats.onset import LEVEL
from emscope.stats.quantiles import student
from emscope.stats.skew import moments
from emscope.store.files import write_json
from emscope.store.study import Study
from emscope.study.asking import ask_checkpoints
from emscope.study.check_spec import DOSES, LadderSpec
from emscope.study.decision.said import BROKEN, Arms, Place, coherence_lost, scored_by_place
from emscope.study.judged import categories, judge_rows, model_error, prepare_judges, spoken
from emscope.study.judged_spec import JudgedSpec
from emscope.study.measure_spec import MeasureSpec
from emscope.study.reading.evidence import Scores
from emscope.study.reading.ladders import SCHEMA, Asked, FloorRead, Harmless, LadderResult, RungRead, measured
from emscope.study.reading.measuring import Questions, Reading, measure, measure_beyond
from emscope.study.reading.sets import EM, PLACEBO, ItemSets, study_sets
from emscope.study.training.sources import asked_of

OPERATION = "logits base + scale x (tuned - base), of answers and preference alike"
BOUNDED = "mean of category means, bounds for skewed items (Hall 1992)"
INTERVAL = round(2 * LEVEL - 1, 10)  # each end is a one-sided bound at LEVEL


def preference_of(items: str, count: int | None) -> MeasureSpec:
    """Return what a ladder reads for preference: paired items and placebo pairs, as a check of the same items does, and nothing else.

    Raises:
        InputError: fewer items than a check takes.
    """
    chosen = {"items": items, "count": count, "truth": 0, "neutral": 0, "samples": {"questions": 0}}
    return parse(MeasureSpec, chosen, "")


@dataclass(frozen=True, slots=True)
class LadderRequest:
    """The request to `emscope ladder`: a known harmful fine-tune, the same on harmless data, and further harmless ones, the last checkpoint of each.

    With `system=auto` it uses the system prompt that the checkpoints were most likely trained under.
    """

    target: str
    control: str
    judged: JudgedSpec
    harmless: tuple[str, ...] = ()
    name: str | None = None
    base: str | None = None
    scales: tuple[float, ...] = DOSES
    system: str = "none"
    chat_kwargs: Mapping[str, Json] = field(default_factory=dict)
    dtype: str = "auto"
    device: str = "auto"
    measure: MeasureSpec = field(default_factory=lambda: preference_of(ITEMS, None))

    @classmethod
    def of(cls, target: str, base: str | None, spec: LadderSpec) -> LadderRequest:
        """Return what to read by the settings of the command line."""
        return cls(
            target,
            spec.control,
            spec.judged(),
            harmless=spec.harmless,
            name=spec.name,
            base=base,
            scales=spec.scales,
            system=spec.system,
            chat_kwargs=spec.chat_kwargs or {},
            dtype=spec.dtype,
            device=spec.device,
            measure=preference_of(spec.items, spec.count),
        )


@dataclass(frozen=True, slots=True)
class _Runs:
    """The last checkpoints; `harmless` by name, the control first."""

    target: Checkpoint
    control: Checkpoint
    harmless: Mapping[str, Checkpoint]

    def every(self) -> list[Checkpoint]:
        return [self.target, *self.harmless.values()]


def run_ladder(request: LadderRequest, out: Path, progress: Progress = silent) -> LadderResult:
    """Read a known organism at several doses, and harmless runs beside it; return the ladder, also written to `ladder.json` in `out`.

    Called again, it does only what is missing; doses and harmless runs may be added later.

    Raises:
        InputError: nothing to read, pieces that do not fit together, a last checkpoint that is its base, or a folder of another ladder.
    """
    runs = _find(request)
    base = locate(request.base or named_base(runs.every()))
    prepare_judges(request.judged)
    sets = study_sets(request.measure, None)
    system, why = trained_under(request.system, runs.every())
    request = replace(request, system=system, dtype=pick_dtype(request.dtype, base, request.device, runs.every()))
    with Study(out, _frozen(request, base, runs, sets), made_with()) as study:
        label = loading(request.dtype, request.device)
        progress(label, 0, 1)
        loaded = load(
            base,
            system=request.system,
            dtype=request.dtype,
            device=request.device,
            chat_kwargs=request.chat_kwargs,
            checkpoints=runs.every(),
        )
        loaded.chat = loaded.chat.noted(why)
        note_left_out([system], loaded.chat, runs.every())
        progress(label, 1, 1)
        for one in runs.every():
            refuse_unmoved(loaded.net, one)
        _read(study, loaded, request, runs, sets, progress)
        arms, strata, asked = _hear(study, loaded, request, runs, progress)
        result = _result(study, loaded, request, runs, sets, (arms, strata, asked))
        write_json(out / "ladder.json", result.to_json())
        return result


def _find(request: LadderRequest) -> _Runs:
    """Return the last checkpoints.

    Raises:
        InputError: a checkpoint is given twice: a run counts once.
    """
    target, control, *others = (last(folder) for folder in (request.target, request.control, *request.harmless))
    given = (request.target, request.control, *request.harmless)
    seen: dict[str, str] = {}
    for folder, one in zip(given, (target, control, *others), strict=True):
        if one.digest in seen:
            raise InputError(
                f"'{folder}' ends in the same checkpoint as '{seen[one.digest]}'",
                "give each run once, the control as `control`",
            )
        seen[one.digest] = folder
    names = _names([request.control, *request.harmless])
    return _Runs(target, control, dict(zip(names, (control, *others), strict=True)))


def _names(folders: Sequence[str]) -> list[str]:
    """Return a name for each folder: its last part, with as many parents as needed to distinguish it."""
    parts = [Path(f).parts for f in folders]
    names = []
    for own in parts:
        most = next((n for n in range(1, len(own)) if sum(p[-n:] == own[-n:] for p in parts) == 1), len(own))
        names.append("/".join(own[-most:]))
    return names


def _frozen(request: LadderRequest, base: Model, runs: _Runs, sets: ItemSets) -> JsonObject:
    """Return the settings that all readings in the folder must share; doses and harmless runs have keys of their own."""
    found: JsonObject = {
        "ladder": SCHEMA,
        "base": base.digest,
        "target": [runs.target.step, runs.target.digest],
        "control": [runs.control.step, runs.control.digest],
        "items": sets.digest(),
        "system": request.system,
        "dtype": request.dtype,
        "judged": asked_of(request.judged),
    }
    return found | ({"chat_kwargs": plain(request.chat_kwargs)} if request.chat_kwargs else {})


def _run_of(checkpoint: Checkpoint) -> str:
    """Return a harmless run's name in the tables: by content, so that the order of runs does not matter."""
    return f"harmless {checkpoint.digest[:12]}"


def _read(study: Study, loaded: Loaded, request: LadderRequest, runs: _Runs, sets: ItemSets, progress: Progress) -> None:
    """Bring preference up to date: base and harmless runs plainly, target and control at every dose."""
    asked = Questions(sets, request.measure.samples, 0, request.measure.batch_tokens)
    wanted: dict[str, tuple[int, ...] | None] = {name: None for name in (EM, PLACEBO) if sets.of(name)}
    plain = [Reading(_run_of(c), c.step, c, wanted) for c in list(runs.harmless.values())[1:]]
    measure(study, loaded, [Reading("base", 0, None, wanted), *plain], asked, progress)
    for name, one, scales in (
        ("target", runs.target, request.scales),
        ("control", runs.control, tuple(sorted({*request.scales, 1.0}))),  # at 1 it is a harmless run
    ):
        readings = [Reading(name, one.step, one, wanted, s, beyond=True) for s in scales]
        measure_beyond(study, loaded, readings, asked, progress)


def _hear(
    study: Study, loaded: Loaded, request: LadderRequest, runs: _Runs, progress: Progress
) -> tuple[Arms, np.ndarray, Asked]:
    """Return alignment and coherence of the judged answers of base, target and control at every dose, the questions' categories, and who judged."""
    judged = request.judged
    dosed = [
        Reading(name, one.step, one, {}, s, beyond=True)
        for name, one in (("target", runs.target), ("control", runs.control))
        for s in request.scales
    ]
    wanted = ask_checkpoints(study, loaded, judged, [Reading("base", 0, None, {}), *dosed], progress)
    rows, (verdicts,), tally = judge_rows(study, judged, wanted, progress)
    units = sorted({row.unit for row in rows})
    ask = judged.ask
    asked = Asked(
        judged.judges[0].name,
        Path(ask.questions).name,
        ask.samples or 1,
        ask.max_tokens,
        ask.temperature,
        judged.delta,
        len(rows),
        tally.failed,
    )
    return scored_by_place(spoken(rows, verdicts), units), categories(rows, units), asked


def _result(
    study: Study,
    loaded: Loaded,
    request: LadderRequest,
    runs: _Runs,
    sets: ItemSets,
    heard: tuple[Arms, np.ndarray, Asked],
) -> LadderResult:
    arms, strata, asked = heard
    scores = Scores(study.root, loaded.chat.digest)
    scales = tuple(sorted(request.scales))
    preferred = _preference(scores, sets, runs, scales)
    error = model_error(request.judged.judges[0])
    rungs = [_rung(arms, strata, runs, s, p, error) for s, p in zip(scales, preferred, strict=True)]
    harmless = _harmless(scores, sets, runs)
    limit = floor(np.array([h.shift for h in harmless]), np.array([h.margin for h in harmless]))
    found = calibrate([_as_rung(r) for r in rungs], limit, request.judged.delta)
    return LadderResult(
        request.name or _names([request.target])[0],
        found.status,
        found.delta,
        found.scale,
        found.shown,
        _floor(limit),
        found.why,
        tuple(rungs),
        tuple(harmless),
        measured(loaded, sets),
        asked,
        request.dtype,
        OPERATION,
        made_with(),
    )


def _floor(limit: Floor | None) -> FloorRead | None:
    return FloorRead(limit.value, limit.control, limit.base, limit.runs) if limit else None


def _preference(scores: Scores, sets: ItemSets, runs: _Runs, scales: Sequence[float]) -> list[dict[str, Estimate]]:
    """Return both preference contrasts at each dose."""
    margins = {
        name: np.array([scores.margin(name, one.step, s, EM, sets.em) for s in scales])
        for name, one in (("target", runs.target), ("control", runs.control))
    }
    placebo = np.array([scores.margin("target", runs.target.step, s, PLACEBO, sets.placebo) for s in scales])
    found = _contrasts(scores, sets, margins["target"], margins["control"], placebo)
    assert found.control is not None
    sides = {CONTROL: found.control, BASE: found.base}
    bounded = {name: _bounded(values, found) for name, values in sides.items()}
    return [{name: bounded[name][n] for name in sides} for n in range(len(scales))]


def _contrasts(
    scores: Scores, sets: ItemSets, target: np.ndarray, control: np.ndarray | None, placebo: np.ndarray
) -> Contrasts:
    """Return the contrasts of margins [C, Q] and placebo margins [C, P], as a check takes them."""
    base, quiet = (scores.margin("base", 0, 1.0, name, sets.of(name)) for name in (EM, PLACEBO))
    pairs = (quiet, placebo, np.array([i.category for i in sets.placebo])) if sets.placebo else None
    return contrasts(base, target, control, np.array([i.category for i in sets.em]), pairs)


def _bounded(values: np.ndarray, found: Contrasts) -> list[Estimate]:
    """Return stratified means of values [C, N] with the one-sided bounds that the states of a check rest on."""
    of = moments(values, found.strata)
    reach = np.array([student(LEVEL, df) for df in of.df])
    ends = zip(of.means, of.bound(reach, -1), of.bound(reach, +1), strict=True)
    return [
        Estimate(float(mean), _end(low), _end(high), INTERVAL, BOUNDED, found.items, found.items, _unbounded(low, high))
        for mean, low, high in ends
    ]


def _end(bound: float) -> float | None:
    return float(bound) if np.isfinite(bound) else None


def _unbounded(*bounds: float) -> str | None:
    return None if np.isfinite(bounds).all() else "the items are too few or too skewed for a bound on that side"


def _harmless(scores: Scores, sets: ItemSets, runs: _Runs) -> list[Harmless]:
    """Return shift and mean margin of each harmless run; the control is one of them."""
    places = [("control", runs.control.step), *((_run_of(c), c.step) for c in list(runs.harmless.values())[1:])]
    margins = np.array([scores.margin(*place, 1.0, EM, sets.em) for place in places])
    placebo = np.array([scores.margin(*place, 1.0, PLACEBO, sets.placebo) for place in places])
    shifts = [base.value for _, base in _contrasts(scores, sets, margins, None, placebo).means()]
    means = [stratified_mean(m, np.array([i.category for i in sets.em])).value for m in margins]
    return [Harmless(*one) for one in zip(runs.harmless, shifts, means, strict=True)]


def _rung(
    arms: Arms, strata: np.ndarray, runs: _Runs, scale: float, preference: Mapping[str, Estimate], error: ModelError | None
) -> RungRead:
    places: dict[str, Place] = {
        name: (scaled(name, scale), one.step) for name, one in (("target", runs.target), ("control", runs.control))
    }
    lost = {name: mean for name, place in places.items() if (mean := coherence_lost(arms, place, strata)) is not None}
    broken = any(mean.bound(LEVEL, -1) > BROKEN for mean in lost.values())
    return RungRead(scale, broken, _judged(arms, strata, places, error), preference, {n: m.value for n, m in lost.items()})


def _judged(
    arms: Arms, strata: np.ndarray, places: Mapping[str, Place], error: ModelError | None
) -> dict[str, Estimate] | None:
    """Return how much worse the target's answers are than the control's and the base's at equal coherence, in points; None where too few were scored."""
    sides = {"base": ("base", 0), **places}
    if any(place not in arms for place in sides.values()):
        return None
    found, line = {}, line_of([arms[place] for place in sides.values()], error)
    for name, left in ((CONTROL, "control"), (BASE, "base")):
        one = adjusted_difference(arms[sides[left]], arms[sides["target"]], strata, line)
        if one is None:
            return None
        errors = error.adjusted.between(base=left == "base") if error else []
        found[name] = one[0].with_error(errors).estimate(INTERVAL, ADJUSTED)
    return found


def _as_rung(one: RungRead) -> Rung:
    judged = (one.judged[CONTROL], one.judged[BASE]) if one.judged else None
    return Rung(one.scale, judged, (one.preference[CONTROL], one.preference[BASE]), one.broken)
