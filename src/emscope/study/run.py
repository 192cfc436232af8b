"""A whole study: plan, do the cells that are not done, analyse. Called again, it does only what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emscope.answers.sample import write_answers
from emscope.core.errors import Diverged, InputError, WorldError
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation
from emscope.models.loading.load import load, loading, pick_dtype
from emscope.models.loading.source import Model
from emscope.models.made_with import made_with
from emscope.models.remote.jobs import HOST as OPENAI
from emscope.store.cells import WORK, Record, begun, drop_work, record_of, reopen, sort_loose, whole
from emscope.store.files import write_json, write_jsonl
from emscope.store.study import Study, read_table
from emscope.study.cells.doing import Shared, give_back_memory, subjects, train_cell
from emscope.study.cells.faults import faults_of_files, faults_of_model, together
from emscope.study.cells.foreseen import Foreseen, foresee
from emscope.study.cells.plan_file import write_plan
from emscope.study.cells.planning import BASE, Planned, readings, sets_of, unfold
from emscope.study.engines.spec import EngineSpec
from emscope.study.engines.table import Job, engine, hands
from emscope.study.engines.worker import computing_on, work
from emscope.study.foreseen_jobs import foresee_jobs
from emscope.study.judged import judge_checkpoints, prepare_judges, settings
from emscope.study.judged_rates import Compared
from emscope.study.reading.measuring import Reading
from emscope.study.reading.precision import AGAIN, Precision, read_again, read_ends
from emscope.study.report import StudyReport, with_precision
from emscope.study.results import analyse, judged_fronts
from emscope.study.run_jobs import run_jobs
from emscope.study.spec import StudySpec
from emscope.study.training.plan import LeftOut, Run, checkpoint, controls_of
from emscope.study.training.recipes import Gap, listed, perplexity_gap, recipe
from emscope.study.training.sources import base_of
from emscope.study.training.training import drop_weights, help_training, recorded_in
from emscope.train import processes
from emscope.version import __version__

GROW = ("seeds", "arms", "methods")  # what may be added to a study that has begun: no cell depends on the others


def run_study(spec: StudySpec, out: Path, progress: Progress = silent, how: EngineSpec = EngineSpec()) -> StudyReport | None:
    """Run or continue a study in `out`; return its report (also written to `report.json`).

    Of several processes (torchrun) the first does all but the training, which they share; the others return None.

    Raises:
        InputError: wrong settings or files, or a folder that belongs to another study.
        WorldError: no network for a model that is not cached, no disk space, every target diverged.
    """
    if processes.count() > 1 and how.engine != "serial":
        raise InputError(
            f"`engine` is {how.engine}, but {processes.count()} processes were started together (torchrun)", "start one process"
        )
    if spec.host is not None and spec.host.name == OPENAI:
        if how != EngineSpec():
            raise InputError(f"`engine` is {how.engine}, but fine-tuning jobs run at their server", "leave its settings out")
        return run_jobs(spec, spec.host, out, progress)
    planned = prepare(spec, progress, how.threads)
    if not processes.is_first():
        help_training(planned.spec, planned.base, out, planned.recipes, planned.near)
        return None
    with Study(out, planned.frozen, made_with(), may_grow=(*GROW, "digests")) as study:
        finished = _finished(out, planned)
        if finished is not None:
            processes.from_first(list)  # no training begins
            _tidy(study, planned)  # the process that finished it may have been killed before it did
            return finished
        with computing_on(planned.spec.threads if how.engine == "serial" else None):
            ready: list[Shared] = []

            def begin() -> list[Run]:
                ready.append(_begin(study, planned, progress))
                return [cell.run for cell in planned.left(out) if cell.run is not None]

            runs = processes.from_first(begin)  # the others learn of failures here, too
            shared = _do(ready[0], runs, how, progress)
            report = _finish(study, shared, progress)
            _tidy(study, planned)
            return report


def prepare(spec: StudySpec, progress: Progress = silent, threads: int | None = None) -> Planned:
    """Return a study expanded into its cells, with its model found (and converted if necessary) and its data read.

    Args:
        threads: in place of the study's own.
    """
    sets = sets_of(spec)
    progress("finding the model", 0, 1)
    base = processes.from_first(lambda: base_of(spec))  # one process fetches and converts
    processes.from_first(lambda: prepare_judges(spec.judged))
    progress("finding the model", 1, 1)
    dtype = spec.dtype if spec.host else pick_dtype(spec.dtype, base)
    spec = spec.model_copy(update={"dtype": dtype} | ({"threads": threads} if threads else {}))
    recipes = processes.from_first(lambda: {name: recipe(spec, a, _gap(spec, base)) for name, a in spec.arms.items()})
    return unfold(spec, base, recipes, sets)


def _begin(study: Study, planned: Planned, progress: Progress) -> Shared:
    """Load the base, reject what cannot be done, and write the plan that workers follow.

    Raises:
        InputError: all faults.
    """
    label = loading(planned.spec.dtype)
    progress(label, 0, 1)
    shared = Shared.loading(study.root, planned)
    progress(label, 1, 1)
    if faults := faults_of_model(shared):
        raise together(faults)
    for name, rows in planned.recipes.items():
        write_jsonl(study.root / "recipes" / f"{name}.jsonl", listed(rows))
    sort_loose(study.root, {cell.name: cell.key for cell in planned.cells})
    for cell in planned.cells:
        record = record_of(study.root, cell.key)
        if record is not None and _again(study.root, record):
            reopen(study.root, record)
    return shared


def foresee_study(spec: StudySpec, out: Path, progress: Progress = silent, how: EngineSpec = EngineSpec()) -> Foreseen:
    """Return what a study will take; nothing is trained or written.

    The loaded base is tried for about ten seconds. A study at a host, or of jobs, is only counted, and the host is not contacted.

    Raises:
        InputError: all that is wrong with it, at once.
    """
    if spec.host is not None and spec.host.name == OPENAI:
        return foresee_jobs(spec, spec.host, out)
    if faults := faults_of_files(spec):
        raise together(faults)
    planned = prepare(spec, progress, how.threads)
    workers, threads = hands(how, planned.spec.threads)
    with computing_on(threads):
        progress(loading(planned.spec.dtype), 0, 1)
        shared = Shared.loading(out, planned, contact=False)
        progress(loading(planned.spec.dtype), 1, 1)
        if faults := faults_of_model(shared):
            raise together(faults)
        return foresee(shared, out, how.engine, workers, threads, progress)


def _do(shared: Shared, runs: Sequence[Run], how: EngineSpec, progress: Progress) -> Shared:
    """Have an engine do the cells that are not done; return what is shared, with the base in memory.

    Raises:
        WorldError: some are not finished afterwards.
    """
    planned, root = shared.planned, shared.root
    todo = planned.left(root)
    workers, threads = hands(how, planned.spec.threads)
    write_plan(root, planned, workers)
    if how.engine == "serial" or not todo:
        _share_training(shared, runs, progress)
        work(shared, todo, progress)
        return shared
    job = Job(root, planned, tuple(todo), how, workers, threads)
    shared.loaded.net = None  # type: ignore[assignment]  # the memory is the workers' now
    give_back_memory()
    engine(how.engine)(job, progress)
    if left := job.left():
        raise WorldError(
            f"{len(left)} of {len(planned.cells)} cells are not finished ({left[0].name})",
            "run the same command again to continue with them",
        )
    return Shared.loading(root, planned)


def _again(root: Path, record: Record) -> bool:
    """True where a cell has to be done although it has a record: its rows are gone, or its failure may have been temporary."""
    return not whole(root, record, thorough=True) if record.why is None else record.fault != "diverged"


def _share_training(shared: Shared, runs: Sequence[Run], progress: Progress) -> None:
    """Train with the other processes (torchrun), where there are any, one run after the other, before anything is read."""
    if processes.count() == 1:
        return
    for one in runs:
        cell = next(cell for cell in shared.planned.cells if cell.run is one)
        try:
            train_cell(shared, begun(shared.root, cell.key), cell, progress)
        except Diverged:
            continue  # the cell will fail in the same way, and say so


def _finish(study: Study, shared: Shared, progress: Progress) -> StudyReport:
    """Return what the cells' rows say, and have the answers judged."""
    planned, spec = shared.planned, shared.planned.spec
    runs, left_out = _ended(study.root, planned)
    known = recorded_in(study.root, runs)
    base = readings(planned, None, {})
    wanted = [*base, *(r for one in runs for r in readings(planned, one, known[one.name]))]
    first = next(r for r in runs if r.spec.role == "target")
    precision = _precision(study, shared, runs, wanted, first, progress)
    found = analyse(study, shared.loaded, spec, runs, planned.sets, left_out)
    result = with_precision(found.report, first.name, precision)
    if shared.asking is not None:
        write_answers(study)
    write_json(study.root / "report.json", result.to_json())  # a finished analysis survives a judge that cannot be reached
    if spec.judged is not None and shared.asking is not None:
        answers = {
            key
            for one in (None, *runs)
            for key in shared.asking.keys(
                shared.loaded, subjects(shared, readings(planned, one, known[one.name] if one else {}))
            )
        }
        heard = judge_checkpoints(study, shared.loaded, spec.judged, compared(runs), planned.sets, answers, progress)
        result = result.heard(heard.judged, judged_fronts(runs, found.ways, heard))
        write_json(study.root / "report.json", result.to_json())
    return result


def _ended(root: Path, planned: Planned) -> tuple[list[Run], tuple[LeftOut, ...]]:
    """Return the runs that finished, and those that did not, with the reason: one bad cell does not spoil a grid.

    Raises:
        Diverged: no target is left. WorldError: the base could not be read, or a cell failed for another reason than numbers or
            memory.
    """
    records = {cell.name: record_of(root, cell.key) for cell in planned.cells}
    failed = {name: r for name, r in records.items() if r is not None and r.why is not None}
    bad = next((r for name, r in failed.items() if name == BASE or r.fault == "other"), None)
    if bad is not None:
        raise WorldError(f"the cell '{bad.name}' failed: {bad.why}", "fix that, then run the same command again")
    ended = [one for one in planned.runs if one.name not in failed]
    left_out = tuple(LeftOut(one.name, str(failed[one.name].why)) for one in planned.runs if one.name in failed)
    if not any(r.spec.role == "target" for r in ended):
        first = left_out[0]
        remedy = "lower the learning rate" if failed[first.run].fault == "diverged" else "free memory, or use a smaller batch"
        raise Diverged(f"no target was trained to its end: {first.why} ({first.run})", remedy)
    return ended, left_out


def _precision(
    study: Study, shared: Shared, runs: list[Run], wanted: list[Reading], first: Run, progress: Progress
) -> Precision | None:
    """Return the effect of reading in 16 bits; weights that are gone are retrained for it and deleted again."""
    planned = shared.planned
    if not planned.compared_in_float32:
        return None
    control = controls_of(runs).get(first.name)
    ends = read_ends(wanted, first.name, control.name if control else None)
    by_name, read = {one.name: one for one in runs}, _read_in_float32(study)
    if not all(end.run in read for end in ends):
        ends = tuple(_with_weights(shared, end, by_name[end.run], progress) if end.checkpoint else end for end in ends)  # type: ignore[assignment]
    if None in ends:
        why = "the weights are gone, and retraining them here gives different ones"
        return Precision(planned.spec.dtype, 0, 0.0, why)
    return read_again(study, shared.loaded, wanted, ends, planned.asked, progress)


def _read_in_float32(study: Study) -> set[str]:
    """Return the runs that have readings in float32."""
    names = set(read_table(study.root, "preferences", columns=["key", "run"]).column("run").to_pylist())
    return {name for name in names if AGAIN.format(name) in names}


def _with_weights(shared: Shared, end: Reading, one: Run, progress: Progress) -> Reading | None:
    """Return a reading whose weights are there, retrained if they were gone; None where they have changed."""
    assert end.checkpoint is not None
    if not end.checkpoint.folder.is_dir():
        cell = next(cell for cell in shared.planned.cells if cell.run is one)
        train_cell(shared, begun(shared.root, cell.key), cell, progress)
        drop_work(shared.root, cell.key)
    found = checkpoint(shared.root, one, end.step)
    return replace(end, checkpoint=found) if found.digest == end.checkpoint.digest else None


def _tidy(study: Study, planned: Planned) -> None:
    """Delete leftovers of killed processes whose work is done by now, and weights that should not stay."""
    study.drop_ended_claims()
    shutil.rmtree(study.root / WORK, ignore_errors=True)
    for one in planned.runs if planned.spec.weights != "all" else ():
        if (study.root / "runs" / one.name).is_dir():
            drop_weights(study.root, one, one.steps[-1:] if planned.spec.weights == "last" else ())


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Return the runs of a study as the judged rows name them."""
    controls = {name: control.name for name, control in controls_of(runs).items()}
    return [
        Compared(r.name, r.arm, r.seed, None if r.spec.role == "control" else controls.get(r.name), r.spec.role) for r in runs
    ]


def _gap(spec: StudySpec, base: Model) -> Gap:
    """Return the measure by which a part of a mix is selected; the model is loaded on first use."""

    def gap(rows: Sequence[Conversation], checkpoint: str) -> list[float]:
        return perplexity_gap(load(base, system=spec.system, dtype=spec.dtype, chat_kwargs=spec.chat_kwargs), rows, checkpoint)

    return gap


def _finished(out: Path, planned: Planned) -> StudyReport | None:
    """Return the existing report, if this version wrote it and neither a cell nor a verdict is missing.

    Another version may use other rules: readings are kept, the analysis is repeated.
    """
    spec = planned.spec
    try:
        report = StudyReport.in_folder(out)
    except InputError:
        return None
    now = spec.model_dump(mode="json")
    same = report.versions.get("emscope") == __version__ and all(report.spec.get(name) == now[name] for name in GROW)
    records = [record_of(out, cell.key) for cell in planned.cells]
    if not same or any(r is not None and r.why is not None and r.fault != "diverged" for r in records):
        return None
    if spec.judged is None:
        return report
    before = report.spec.get("judged")
    asked = before.get("ask") if isinstance(before, Mapping) else None
    if not isinstance(asked, Mapping) or asked.get("samples") != spec.judged.ask.samples:
        return None
    if not spec.judged.judges:
        return report
    judged = report.judged
    complete = judged is not None and not judged.failed and not judged.stopped_at_cost
    return report if complete and judged is not None and judged.definition == settings(spec.judged) else None
