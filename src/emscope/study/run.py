"""A whole study: plan, train, read, analyse. Called again, it does what is missing and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emscope.answers.sample import digest_of
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.models.loading.load import load, loading, pick_dtype
from emscope.models.loading.source import Model, locate
from emscope.store.files import write_json, write_jsonl
from emscope.store.study import Study
from emscope.study.judged import Compared, ask_checkpoints, judge_checkpoints, prepare_judges, settings
from emscope.study.reading.ladders import ladder_digest, ladder_for
from emscope.study.reading.measuring import Questions, Reading, measure
from emscope.study.reading.precision import read_again, read_ends
from emscope.study.reading.sets import EM, HELDOUT, NEUTRAL, PLACEBO, TRUTH, ItemSets, sample_questions, study_sets
from emscope.study.report import StudyReport, with_precision
from emscope.study.results import analyse
from emscope.study.spec import StudySpec
from emscope.study.training.plan import Run, checkpoint, control_of, plan, read_steps, taught
from emscope.study.training.recipes import Gap, Row, listed, perplexity_gap, recipe
from emscope.study.training.sources import digests, frozen, held_near
from emscope.study.training.training import check_runs, help_training, train_runs
from emscope.train import processes
from emscope.version import __version__


def run_study(spec: StudySpec, out: Path, progress: Progress = silent) -> StudyReport | None:
    """Run or go on with a study in `out`; return its report (also written to `report.json`).

    Of several processes the first does all but the training, which they share; the others return None.

    Raises:
        InputError: wrong settings or files, or a folder that belongs to another study.
        WorldError: no network for a model that is not cached, no disk space, every target diverged.
    """
    runs = plan(spec)
    sets = study_sets(spec.measure, spec.domain if any(a.answers for a in spec.arms.values()) else None)
    near = {one.method: held_near(one.train.held) for one in runs}
    progress("finding the model", 0, 1)
    base = processes.from_first(lambda: locate(spec.model))  # one process fetches and converts
    processes.from_first(lambda: prepare_judges(spec.judged))
    progress("finding the model", 1, 1)
    spec = spec.model_copy(update={"dtype": pick_dtype(spec.dtype, base)})
    recipes = processes.from_first(lambda: {name: recipe(spec, a, _gap(spec, base)) for name, a in spec.arms.items()})
    if not processes.is_first():
        help_training(spec, base, out, runs, recipes, near)
        return None
    named = _named(spec, base, runs, recipes, near, sets)
    with Study(out, frozen(spec, named), versions(), may_grow=("seeds",)) as study:
        finished = _finished(out, spec)
        processes.from_first(lambda: finished is not None)
        if finished is not None:
            return finished
        progress(loading(spec.dtype), 0, 1)
        loaded = load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs)
        progress(loading(spec.dtype), 1, 1)
        check_runs(loaded, runs, recipes, near)
        ladder_for(spec.decide.ladder, loaded, sets)
        for name, rows in recipes.items():
            write_jsonl(out / "recipes" / f"{name}.jsonl", listed(rows))
        runs, diverged = train_runs(study, loaded, spec, runs, recipes, near, sets, progress)
        wanted = readings(study, spec, runs, sets)
        asked = Questions(sets, spec.measure.samples, spec.seeds[0], spec.measure.batch_tokens)
        measure(study, loaded, wanted, asked, progress)
        first = next(r for r in runs if r.spec.role == "target")
        ends = read_ends(wanted, first.name, control.name if (control := control_of(first, runs)) else None)
        precision = read_again(study, loaded, wanted, ends, asked, progress) if not spec.measure.skip_float32 else None
        answers = ask_checkpoints(study, loaded, spec.judged, wanted, progress) if spec.judged else set()
        result = with_precision(analyse(study, loaded, spec, runs, sets, diverged), first.name, precision)
        write_json(out / "report.json", result.to_json())  # a judge that cannot be reached takes no finished analysis with it
        if spec.judged is not None:
            result = result.heard(judge_checkpoints(study, loaded, spec.judged, compared(runs), sets, answers, progress))
            write_json(out / "report.json", result.to_json())
        return result


def _named(
    spec: StudySpec,
    base: Model,
    runs: list[Run],
    recipes: dict[str, list[Row]],
    near: dict[str, list[Conversation]],
    sets: ItemSets,
) -> dict[str, str]:
    """Return digests of what the names in the settings stand for now."""
    texts = {name: [r.conversation for r in rows] for name, rows in recipes.items()}
    texts |= {f"held by {method}": rows for method, rows in near.items() if rows}
    named = digests(base, texts, [r.train for r in runs]) | {"items": sets.digest()}
    if spec.decide.ladder:
        named["ladder"] = ladder_digest(spec.decide.ladder)
    if spec.judged is not None:
        named["questions"] = digest_of(read_questions(spec.judged.ask.questions))
    return named


def readings(study: Study, spec: StudySpec, runs: list[Run], sets: ItemSets) -> list[Reading]:
    """Return what is to be read: the base once, each run at its checkpoints, samples at base and last."""
    questions = sample_questions(sets, spec.measure.samples.questions)
    everything: dict[str, tuple[int, ...] | None] = {s: None for s in (EM, PLACEBO, HELDOUT, TRUTH, NEUTRAL) if sets.of(s)}
    found = [Reading("base", 0, None, everything, questions=questions)]
    for one in runs:
        for step in read_steps(one):
            last = step == one.steps[-1]
            wanted: dict[str, tuple[int, ...] | None] = {EM: None}
            if sets.heldout and one.spec.answers:
                wanted[HELDOUT] = taught(spec, one.spec)
            if sets.placebo and one.spec.role != "control":
                wanted[PLACEBO] = None
            if sets.truth and (last or spec.measure.truth_at == "all"):
                wanted[TRUTH] = None
            if sets.neutral and last:
                wanted[NEUTRAL] = None
            found.append(
                Reading(one.name, step, checkpoint(study.root, one, step), wanted, questions=questions if last else ())
            )
    return found


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Return the runs of a study as the judged rows name them."""
    controls = {r.name: control_of(r, list(runs)) if r.spec.role != "control" else None for r in runs}
    return [Compared(r.name, r.arm, r.seed, c.name if (c := controls[r.name]) else None, r.spec.role) for r in runs]


def _gap(spec: StudySpec, base: Model) -> Gap:
    """Return the measure that a part of a mix is picked by; the model is loaded at its first use."""

    def gap(rows: Sequence[Conversation], checkpoint: str) -> list[float]:
        return perplexity_gap(load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs), rows, checkpoint)

    return gap


def _finished(out: Path, spec: StudySpec) -> StudyReport | None:
    """Return the report that is there, where it is of this version and no verdict is missing.

    Another version may decide by other rules: readings are kept, the analysis is made anew.
    """
    try:
        report = StudyReport.in_folder(out)
    except InputError:
        return None
    same = report.versions.get("emscope") == __version__ and report.spec.get("seeds") == list(spec.seeds)
    if spec.judged is None or not same:
        return report if same else None
    before = report.spec.get("judged")
    asked = before.get("ask") if isinstance(before, Mapping) else None
    if not isinstance(asked, Mapping) or asked.get("samples") != spec.judged.ask.samples:
        return None
    if not spec.judged.judges:
        return report
    judged = report.judged
    complete = judged is not None and not judged.failed and not judged.stopped_at_cost
    return report if complete and judged is not None and judged.definition == settings(spec.judged) else None
