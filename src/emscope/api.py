"""What `import emscope` offers: the commands as functions, which take paths or objects in memory, and return results.

Nothing here prints. Arguments have the names of the command line's options; a function's settings are the fields of the same
class as the command's options. Results draw and save themselves (`core.shown.Shown`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from emscope.answers.agreement_spec import AgreementSpec
from emscope.answers.judge_spec import JudgingSpec, judges_named
from emscope.answers.onset_spec import OnsetSpec
from emscope.answers.planning.power_spec import PowerSpec
from emscope.answers.rates_spec import RatesSpec
from emscope.answers.runs.loss_spec import LossSpec
from emscope.answers.runs.shifts_spec import ShiftsSpec
from emscope.answers.runs.sizes_spec import SizesSpec
from emscope.answers.sample_spec import AskSpec, LoadSpec
from emscope.core.errors import WorldError
from emscope.core.fields import AUTO, RUBRICS
from emscope.core.progress import Progress, silent
from emscope.core.signatures import with_fields_of
from emscope.core.spec import parse
from emscope.inside.specs import DiffSpec, ExtractSpec, ProbeSpec, RiskSpec, SteerSpec, SubspaceSpec
from emscope.study.check_spec import CheckSpec
from emscope.study.engines.spec import EngineSpec

if TYPE_CHECKING:
    from emscope.answers.agreement_result import Agreement
    from emscope.answers.onset_result import Onsets
    from emscope.answers.planning.power_result import PowerPlan
    from emscope.answers.rates_result import Rates
    from emscope.answers.runs.loss_result import Losses
    from emscope.answers.runs.shifts_result import Shifts
    from emscope.answers.runs.sizes_result import Sizes
    from emscope.inside.direction_results import Cosines, DataRisk, Direction, Steering
    from emscope.inside.prompt_results import Probes, Subspaces
    from emscope.inside.results import Diff, Trajectories
    from emscope.models.loading.source import Model
    from emscope.models.types import CausalLM, Tokenizer
    from emscope.study.compare_result import Comparison
    from emscope.study.report import FolderChecked, StudyReport


@runtime_checkable
class Frame(Protocol):
    """A data frame of pandas."""

    @property
    def columns(self) -> Iterable[object]:
        """Names of its columns."""
        ...

    def to_dict(self) -> Mapping[object, object]:
        """Return its values by column."""
        ...


Where = str | Path
Base = Where | tuple["CausalLM", "Tokenizer"] | None  # a folder, hub id or alias, or (model, tokenizer) in memory
Rows = Where | Sequence[Where] | Frame


@with_fields_of(CheckSpec)
def check(
    checkpoints: Where, *, base: Base = None, out: Where | None = None, progress: Progress = silent, **settings: object
) -> FolderChecked:
    """Check a folder of checkpoints: is it misaligned beyond its task, from which step on, and which checkpoint is safe to ship?

    Args:
        checkpoints: folder with checkpoint-N folders, one checkpoint, or hf:org/repo@rev.
        base: the base model if the adapters do not name it, or (model, tokenizer) in memory, which are given back unchanged.

    Returns:
        A `study.report.FolderChecked`: `verdict`, `check` (preference), `judged` (what it says), `rows`, `figures`, `save`.

    Raises:
        InputError: nothing to check, parts that do not fit together, or bad files.
    """
    from emscope.study.check import CheckRequest, run_check

    spec = parse(CheckSpec, settings, "check")
    with _base(base) as model:
        return run_check(CheckRequest.of(str(checkpoints), model, spec), _folder(out), progress)[0]


@with_fields_of(EngineSpec)
def run_study(
    study: Where | Mapping[str, object],
    out: Where,
    *,
    small: bool = False,
    progress: Progress = silent,
    **settings: object,
) -> StudyReport | None:
    """Run or continue a study.

    Args:
        study: its YAML file, or the same settings as a mapping. small: at its small size, if it has one. settings: what runs its
            cells.

    Returns:
        A `study.report.StudyReport`; None in all but the first of several processes (torchrun), which train along.

    Raises:
        InputError, WorldError: as `emscope run`.
    """
    from emscope.study.run import run_study as run
    from emscope.study.spec import load_study, study_of

    how = parse(EngineSpec, settings, "run_study")
    spec = study_of(study, small=small) if isinstance(study, Mapping) else load_study(Path(study), small)
    return run(spec, Path(out), progress, how)


@with_fields_of(AskSpec, LoadSpec)
def sample(
    runs: Mapping[str, Where] | None = None,
    *,
    base: Base = None,
    out: Where,
    progress: Progress = silent,
    **settings: object,
) -> Path:
    """Sample answers of a base and its checkpoints; return the Parquet file they are in, which `judge` and `rates` take.

    Args:
        runs: folder of checkpoints, here or at a host, by the run's name. base: as for `check`.

    Raises:
        InputError: no base, a folder without checkpoints, or questions that do not fit.
    """
    from emscope.answers.sample import ask
    from emscope.answers.sample_hosted import ask_hosted, is_hosted
    from emscope.answers.sample_spec import ServedSpec

    loading = {name: value for name, value in settings.items() if name in LoadSpec.model_fields}
    asked = {name: value for name, value in settings.items() if name not in loading}
    spec, how = parse(AskSpec, asked, "sample"), parse(LoadSpec, loading, "sample")
    folders = {name: str(folder) for name, folder in (runs or {}).items()}
    if any(is_hosted(folder) for folder in folders.values()):
        return ask_hosted(folders, spec, how, ServedSpec(), Path(out), progress=progress)
    with _base(base) as model:
        return ask(folders, model, spec, Path(out), how, progress=progress)


@with_fields_of(RatesSpec)
def rates(answers: Rows, **settings: object) -> Rates:
    """Return rates of misaligned answers, by group, with the contrasts asked for.

    Args:
        answers: a file, several, or a DataFrame with one row per answer.

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.rates import rates as counted

    spec = parse(RatesSpec, settings, "rates")
    with _files(answers) as paths:
        return counted(paths, spec)


@with_fields_of(AgreementSpec)
def agreement(verdicts: Rows, **settings: object) -> Agreement:
    """Return how far judges, or judges and people, agree.

    Args:
        verdicts: a file, several, or a DataFrame.

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.agreement import agreement as agreed
    from emscope.answers.agreement import read

    spec = parse(AgreementSpec, settings, "agreement")
    with _files(verdicts) as paths:
        return agreed(read(paths, spec), spec)


@with_fields_of(OnsetSpec)
def onset(values: Rows, **settings: object) -> Onsets:
    """Return from which step on a fine-tune is misaligned, from values along training.

    Args:
        values: a file, several, or a DataFrame.

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.onset import follow

    spec = parse(OnsetSpec, settings, "onset")
    with _files(values) as paths:
        return follow(paths, spec)


@with_fields_of(LossSpec)
def loss(runs: Rows, **settings: object) -> Losses:
    """Return how a score varies with the loss over runs, within strata, and schedules at equal loss.

    Args:
        runs: a file, several, or a DataFrame with one row per run.

    Raises:
        InputError: no strata are named, or columns that do not fit.
    """
    from emscope.answers.runs.loss import loss_and_score

    spec = parse(LossSpec, settings, "loss")
    with _files(runs) as paths:
        return loss_and_score(paths, spec)


@with_fields_of(ShiftsSpec)
def shifts(answers: Rows, **settings: object) -> Shifts:
    """Return how scores of the same questions moved from before to after fine-tuning.

    Args:
        answers: a file, several, or a DataFrame with one row per answer.

    Raises:
        InputError: columns or values that do not fit.
    """
    from emscope.answers.runs.shifts import shifts as moved

    spec = parse(ShiftsSpec, settings, "shifts")
    with _files(answers) as paths:
        return moved(paths, spec)


@with_fields_of(SizesSpec)
def sizes(models: Rows, **settings: object) -> Sizes:
    """Return how an effect varies with model size, within families.

    Args:
        models: a file, several, or a DataFrame with one row per model.

    Raises:
        InputError: columns that do not fit, or a model that appears twice.
    """
    from emscope.answers.runs.sizes import sizes as by_size

    spec = parse(SizesSpec, settings, "sizes")
    with _files(models) as paths:
        return by_size(paths, spec)


@with_fields_of(PowerSpec)
def power(answers: Rows | None = None, **settings: object) -> PowerPlan:
    """Return what studies of several sizes would find.

    Args:
        answers: a file or DataFrame of judged answers of several seeds, or a judged study's folder, to measure the standard deviations on.

    Raises:
        InputError: designs that cannot be planned, or answers from which the standard deviations cannot be measured.
    """
    from emscope.answers.planning.power import plan_power

    spec = parse(PowerSpec, settings, "power")
    with nullcontext([None]) if answers is None else _files(answers) as paths:
        return plan_power(paths[0], spec)


@with_fields_of(JudgingSpec)
def judge(
    answers: Rows,
    out: Where,
    *,
    judges: str | Sequence[str] = ("local",),
    rubrics: str | Sequence[str] = RUBRICS,
    question: str | None = None,
    answer: str | None = None,
    max_cost: float | None = None,
    progress: Progress = silent,
    **settings: object,
) -> Path:
    """Have the answers of a file or DataFrame judged; return the Parquet file with the scores added.

    Args:
        judges: local, or models as Inspect names them, or NAME@URL; the settings apply to all of them. question, answer: columns,
            by default the field's usual names.

    Raises:
        InputError, WorldError: as `emscope judge`; what was received stays.
    """
    from emscope.answers.judge import FileJob, judge_file
    from emscope.judging.rubrics import read_rubrics

    specs = judges_named(_each(judges), parse(JudgingSpec, settings, "judge"))
    with _files(answers, Path(f"{out}-answers.parquet")) as paths:
        job = FileJob(tuple(paths), question, answer, Path(out))
        found = judge_file(job, specs, read_rubrics(tuple(_each(rubrics))), max_cost=max_cost, progress=progress)
    if found.judged is None:
        raise WorldError("no verdict was received", "call it again to ask for what is missing")
    return Path(found.judged)


@with_fields_of(ExtractSpec)
def extract(
    out: Where,
    *,
    base: str | None = None,
    checkpoint: Where | None = None,
    device: str = AUTO,
    progress: Progress = silent,
    **settings: object,
) -> Direction:
    """Find a direction at each layer and write it into the file `out`."""
    from emscope.inside.extract import extract as find

    spec, tuned = parse(ExtractSpec, settings, "extract"), None if checkpoint is None else str(checkpoint)
    return find(spec, Path(out), base=base, checkpoint=tuned, device=device, progress=progress)


@with_fields_of(SteerSpec)
def steer(
    directions: Where | Sequence[Where],
    out: Where,
    *,
    base: str | None = None,
    checkpoints: Where | Sequence[Where] = (),
    controls: Where | Sequence[Where] = (),
    device: str = AUTO,
    progress: Progress = silent,
    **settings: object,
) -> Steering:
    """Score items with directions added (way="add"), or taken out (way="ablate")."""
    from emscope.inside.steer import steer as act

    return act(
        _each(directions),
        parse(SteerSpec, settings, "steer"),
        Path(out),
        base=base,
        checkpoints=_each(checkpoints),
        controls=_each(controls),
        device=device,
        progress=progress,
    )


def compare(directions: Sequence[Where]) -> Cosines:
    """Return the cosines between directions at each layer."""
    from emscope.inside.compare import compare as cosines

    return cosines(_each(directions))


def compare_studies(studies: Sequence[Where]) -> Comparison:
    """Return how finished studies or checks differ from the first of them: settings, effects, verdicts.

    Args:
        studies: their folders, two or more.

    Raises:
        InputError: one that is not finished, or studies that did not measure the same.
    """
    from emscope.study.compare import compare_studies as side_by_side

    return side_by_side(_each(studies))


@with_fields_of(DiffSpec)
def diff(
    checkpoint: Where,
    out: Where,
    *,
    base: str | None = None,
    device: str = AUTO,
    progress: Progress = silent,
    **settings: object,
) -> Diff:
    """Return what a run's last checkpoint changes in the model."""
    from emscope.inside.diff import diff as changed

    spec = parse(DiffSpec, settings, "diff")
    return changed(str(checkpoint), spec, Path(out), base=base, device=device, progress=progress)


@with_fields_of(ProbeSpec)
def probe(
    scores: Where | Frame,
    models: Where | Sequence[Where],
    out: Where,
    *,
    device: str = AUTO,
    progress: Progress = silent,
    **settings: object,
) -> Probes:
    """Predict a file's scores by activations before fine-tuning."""
    from emscope.inside.probe import run_probe

    spec = parse(ProbeSpec, settings, "probe")
    with _files(scores) as paths:
        return run_probe(paths[0], _each(models), spec, Path(out), device=device, progress=progress)


@with_fields_of(SubspaceSpec)
def subspaces(
    checkpoints: Where | Sequence[Where],
    out: Where,
    *,
    base: str | None = None,
    device: str = AUTO,
    progress: Progress = silent,
    **settings: object,
) -> Subspaces:
    """Return how shifts on other prompts lie in the space of the training shifts."""
    from emscope.inside.subspaces import compare_subspaces

    spec = parse(SubspaceSpec, settings, "subspaces")
    return compare_subspaces(_each(checkpoints), spec, Path(out), base=base, device=device, progress=progress)


def trajectories(runs: Where | Sequence[Where], out: Where, *, base: str | None = None, device: str = AUTO) -> Trajectories:
    """Return every checkpoint of runs as a point on the main axes of their updates."""
    from emscope.inside.trajectories import trajectories as points

    return points(_each(runs), Path(out), base=base, device=device)


@with_fields_of(RiskSpec)
def data_risk(
    source: Where, model: str, direction: Where, *, device: str = AUTO, progress: Progress = silent, **settings: object
) -> DataRisk:
    """Return how far each training sample would push a model along a direction."""
    from emscope.inside.data_risk import risk

    spec = parse(RiskSpec, settings, "data_risk")
    return risk(str(source), model, str(direction), spec, device=device, progress=progress)


@contextmanager
def _base(base: Base) -> Iterator[str | Model | None]:
    """Yield a reference, or a located model for one that is in memory, which is then given back as it was."""
    if isinstance(base, tuple):
        from emscope.models.loading.lent import lent, model_in_memory

        with lent(base[0]):
            yield model_in_memory(*base)
        return
    yield None if base is None else str(base)


@contextmanager
def _files(data: Rows, kept: Path | None = None) -> Iterator[list[Path]]:
    """Yield paths: those that were given, or of a Parquet file with a data frame's rows, which is `kept` or lasts as long as the block."""
    if not isinstance(data, Frame):
        yield [Path(p) for p in _each(data)]
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    with nullcontext() if kept else tempfile.TemporaryDirectory() as folder:
        path = kept or Path(folder or "") / "frame.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pandas(data, preserve_index=False), path)
        yield [path]


def _folder(where: Where | None) -> Path | None:
    return None if where is None else Path(where)


def _each(given: Where | Sequence[Where]) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(one) for one in given]
