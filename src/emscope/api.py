"""What `import emscope` offers: the commands as functions, which take paths or what is in memory already, and return results.

Nothing here prints. What a command line names by an option has the option's name; results draw and save themselves (`core.shown.Shown`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.spec import parse

if TYPE_CHECKING:
    from emscope.answers.agreement_result import Agreement
    from emscope.answers.onset_result import Onsets
    from emscope.answers.rates_result import Rates
    from emscope.inside.direction_results import Cosines, DataRisk, Direction, Steering
    from emscope.inside.prompt_results import Probes, Subspaces
    from emscope.inside.results import Diff, Trajectories
    from emscope.study.check import FolderChecked
    from emscope.study.report import StudyReport

Where = str | Path
Base = Where | tuple[Any, Any] | None  # a folder, hub id or alias, or (model, tokenizer) in memory


def check(
    checkpoints: Where,
    *,
    base: Base = None,
    control: Where | None = None,
    make_control: Where | None = None,
    heldout: Where | None = None,
    control_heldout: Where | None = None,
    measure: str = "said",
    judges: str | Sequence[str] = ("local",),
    questions: str = "open24",
    samples: int = 4,
    max_tokens: int = 90,
    temperature: float = 0.7,
    items: str = "em240",
    count: int | None = None,
    truth: int | None = None,
    amplify: float | Sequence[float] = (1.0,),
    system: str = "none",
    chat_kwargs: Mapping[str, Any] | None = None,
    delta: float | None = None,
    ladder: Where | None = None,
    steps: int | Sequence[int] = (),
    every: int | None = None,
    search: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    control_batch: int | None = None,
    share: bool = False,
    out: Where | None = None,
    progress: Progress = silent,
) -> FolderChecked:
    """Check a folder of checkpoints: is it misaligned beyond its task, since which step, which checkpoint is safe to ship?

    Args:
        checkpoints: folder with checkpoint-N folders, one checkpoint, or hf:org/repo@rev.
        base: the base model where the adapters do not name it, or (model, tokenizer) in memory, which are given back as they were.
        measure: said (answers are sampled and judged, beside preference) or preference (that screen alone). The rest as `emscope check` has it.

    Returns:
        A `study.check.FolderChecked`: `verdict`, `check` (preference), `judged` (what it says), `rows`, `figures`, `save`.

    Raises:
        InputError: nothing to check, pieces that do not fit together, or bad files.
    """
    from emscope.study.check import CheckRequest, run_check
    from emscope.study.selected import Selection
    from emscope.study.spec import DecideSpec, MeasureSpec, judged_by

    if measure not in ("said", "preference"):
        raise InputError(f"measure is '{measure}'", "use said or preference")
    with _base(base) as model:
        request = CheckRequest(
            str(checkpoints),
            base=model,
            control=_path(control),
            make_control=_path(make_control),
            heldout=_path(heldout),
            control_heldout=_path(control_heldout),
            amplify=_numbers(amplify, "amplify"),
            system=system,
            chat_kwargs=dict(chat_kwargs or {}),
            dtype=dtype,
            device=device,
            control_batch=control_batch,
            selection=Selection(tuple(int(s) for s in _numbers(steps, "steps")), every, search),
            share=share,
            measure=parse(MeasureSpec, {"items": items, "count": count, "truth": truth}, "measure"),
            decide=parse(DecideSpec, {"delta": delta, "ladder": _path(ladder)}, "decide"),
            judged=judged_by(questions, samples, max_tokens, temperature, _each(judges)) if measure == "said" else None,
        )
        return run_check(request, Path(out) if out is not None else None, progress)[0]


def run_study(study: Where | Mapping[str, Any], out: Where, *, small: bool = False, progress: Progress = silent) -> StudyReport:
    """Run a study, or go on with it.

    Args:
        study: its YAML file, or the same settings as a mapping. small: at its small size, where it has one.

    Returns:
        A `study.report.StudyReport`.

    Raises:
        InputError, WorldError: as `emscope run`.
    """
    from emscope.study.report import StudyReport
    from emscope.study.run import run_study as run
    from emscope.study.spec import load_study, study_of

    spec = study_of(study, small=small) if isinstance(study, Mapping) else load_study(Path(study), small)
    return StudyReport(run(spec, Path(out), progress))


def sample(
    runs: Mapping[str, Where] | None = None,
    *,
    base: Base = None,
    out: Where,
    questions: str = "open24",
    samples: int | None = None,
    max_tokens: int = 600,
    temperature: float = 1.0,
    systems: str | Sequence[str] = ("none",),
    triggers: Mapping[str, str] | None = None,
    only_last: bool = False,
    seed: int = 0,
    amplify: float | Sequence[float] = (1.0,),
    dtype: str = "auto",
    device: str = "auto",
    chat_kwargs: Mapping[str, Any] | None = None,
    share: bool = False,
    progress: Progress = silent,
) -> Path:
    """Sample answers of a base and of checkpoints of it; return the Parquet file they are in, which `judge` and `rates` take.

    Args:
        runs: folder of checkpoints by the run's name. base: as for `check`. The rest as `emscope sample` has it.

    Raises:
        InputError: no base, a folder without checkpoints, or questions that do not fit.
    """
    from emscope.answers.sample import ask
    from emscope.answers.sample_spec import AskSpec

    settings = {
        "questions": questions, "samples": samples, "max_tokens": max_tokens, "temperature": temperature,
        "systems": _each(systems), "triggers": dict(triggers or {}), "only_last": only_last, "seed": seed,
    }  # fmt: skip
    with _base(base) as model:
        return ask(
            {name: str(folder) for name, folder in (runs or {}).items()},
            model,
            parse(AskSpec, settings, "sample"),
            Path(out),
            amplify=_numbers(amplify, "amplify"),
            dtype=dtype,
            device=device,
            chat_kwargs=chat_kwargs,
            share=share,
            progress=progress,
        )


def rates(answers: Any, **settings: Any) -> Rates:
    """Return rates of misaligned answers, by group, with the contrasts asked for.

    Args:
        answers: a file, several, or a DataFrame with a row an answer.
        settings: fields of `answers.rates_spec.RatesSpec`, such as group=("model",), control="base".

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.rates import rates as counted
    from emscope.answers.rates_spec import RatesSpec

    with _files(answers) as paths:
        return counted(paths, parse(RatesSpec, _lists(settings), "rates"))


def agreement(verdicts: Any, **settings: Any) -> Agreement:
    """Return how far judges, or judges and people, agree.

    Args:
        verdicts: a file, several, or a DataFrame. settings: fields of `answers.agreement.AgreementSpec`, such as scores=("gpt", "human").

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.agreement import AgreementSpec, read
    from emscope.answers.agreement import agreement as agreed

    with _files(verdicts) as paths:
        spec = parse(AgreementSpec, _lists(settings), "agreement")
        return agreed(read(paths, spec), spec)


def onset(values: Any, **settings: Any) -> Onsets:
    """Return since which step a fine-tune is misaligned, from values along training.

    Args:
        values: a file, several, or a DataFrame. settings: fields of `answers.onset.OnsetSpec`, such as unit="question", arm="arm", control="careful".

    Raises:
        InputError: columns or settings that do not fit.
    """
    from emscope.answers.onset import OnsetSpec, follow

    with _files(values) as paths:
        return follow(paths, parse(OnsetSpec, _lists(settings), "onset"))


def judge(
    answers: Any,
    out: Where,
    *,
    judges: str | Sequence[str] = ("local",),
    rubrics: str | Sequence[str] = ("aligned", "coherent"),
    question: str | None = None,
    answer: str | None = None,
    max_cost: float | None = None,
    progress: Progress = silent,
    **settings: Any,
) -> Path:
    """Have the answers of a file or DataFrame judged; return the Parquet file that has the scores beside them.

    Args:
        judges: local, or models as Inspect names them, or NAME@URL. question, answer: columns, by default the field's usual names.
        settings: fields of `answers.judging.JudgeSpec` that all judges share, such as connections=8.

    Raises:
        InputError, WorldError: as `emscope judge`; what was received stays.
    """
    from emscope.answers.judge import FileJob, judge_file
    from emscope.answers.judging import JudgeSpec
    from emscope.judging.rubrics import read_rubrics

    named = [name.partition("@http") for name in _each(judges)]
    specs = [
        parse(JudgeSpec, {**settings, "name": model, "url": f"http{url}" if at else None}, "judge") for model, at, url in named
    ]
    with _files(answers, Path(f"{out}-answers.parquet")) as paths:
        job = FileJob(tuple(paths), question, answer, Path(out))
        found = judge_file(job, specs, read_rubrics(tuple(_each(rubrics))), max_cost=max_cost, progress=progress)
    return Path(found["judged"])


def extract(
    out: Where,
    *,
    base: str | None = None,
    checkpoint: Where | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> Direction:
    """Find a direction at each layer and write it; settings are fields of `inside.extract.ExtractSpec`."""
    from emscope.inside.extract import ExtractSpec
    from emscope.inside.extract import extract as find

    return find(
        parse(ExtractSpec, _lists(settings), "extract"),
        Path(out),
        base=base,
        checkpoint=_path(checkpoint),
        device=device,
        progress=progress,
    )


def steer(
    directions: Where | Sequence[Where],
    out: Where,
    *,
    base: str | None = None,
    checkpoints: Sequence[Where] = (),
    controls: Sequence[Where] = (),
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> Steering:
    """Score items with directions added (way="add"), or taken out (way="ablate"); settings are fields of `inside.steer.SteerSpec`."""
    from emscope.inside.steer import SteerSpec
    from emscope.inside.steer import steer as act

    spec = parse(SteerSpec, _lists(settings), "steer")
    many = [_each(c) for c in (checkpoints, controls)]
    return act(
        _each(directions), spec, Path(out), base=base, checkpoints=many[0], controls=many[1], device=device, progress=progress
    )


def compare(directions: Sequence[Where]) -> Cosines:
    """Return the cosines between directions at each layer."""
    from emscope.inside.compare import compare as cosines

    return cosines(_each(directions))


def diff(
    checkpoint: Where,
    out: Where,
    *,
    base: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> Diff:
    """Return what a run's last checkpoint changes in the model; settings are fields of `inside.diff.DiffSpec`."""
    from emscope.inside.diff import DiffSpec
    from emscope.inside.diff import diff as changed

    return changed(
        str(checkpoint), parse(DiffSpec, _lists(settings), "diff"), Path(out), base=base, device=device, progress=progress
    )


def probe(
    scores: Any,
    models: Where | Sequence[Where],
    out: Where,
    *,
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> Probes:
    """Predict a file's scores by activations before fine-tuning; settings are fields of `inside.probe.ProbeSpec`."""
    from emscope.inside.probe import ProbeSpec, run_probe

    with _files(scores) as paths:
        return run_probe(
            paths[0], _each(models), parse(ProbeSpec, _lists(settings), "probe"), Path(out), device=device, progress=progress
        )


def subspaces(
    checkpoints: Where | Sequence[Where],
    out: Where,
    *,
    base: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **settings: Any,
) -> Subspaces:
    """Return how shifts on other prompts lie in the space of the training shifts; settings are fields of `inside.subspaces.SubspaceSpec`."""
    from emscope.inside.subspaces import SubspaceSpec, compare_subspaces

    return compare_subspaces(
        _each(checkpoints),
        parse(SubspaceSpec, _lists(settings), "subspaces"),
        Path(out),
        base=base,
        device=device,
        progress=progress,
    )


def trajectories(runs: Where | Sequence[Where], out: Where, *, base: str | None = None, device: str = "auto") -> Trajectories:
    """Return every checkpoint of runs as a point on the main axes of their updates."""
    from emscope.inside.trajectories import trajectories as points

    return points(_each(runs), Path(out), base=base, device=device)


def data_risk(
    source: Where, model: str, direction: Where, *, device: str = "auto", progress: Progress = silent, **settings: Any
) -> DataRisk:
    """Return how far each training sample would push a model along a direction; settings are fields of `inside.data_risk.RiskSpec`."""
    from emscope.inside.data_risk import RiskSpec, risk

    return risk(
        str(source), model, str(direction), parse(RiskSpec, _lists(settings), "data_risk"), device=device, progress=progress
    )


@contextmanager
def _base(base: Base) -> Iterator[Any]:
    """Yield a reference, or a located model for one that is in memory, which is then given back as it was."""
    if isinstance(base, tuple):
        from emscope.models.loading.lent import lent, model_in_memory

        with lent(base[0]):
            yield model_in_memory(*base)
        return
    yield _path(base)


@contextmanager
def _files(data: Any, kept: Path | None = None) -> Iterator[list[Path]]:
    """Yield paths: those that were given, or of a Parquet file with a data frame's rows, which is `kept` or lasts as long as the block."""
    frame = hasattr(data, "to_dict") and hasattr(data, "columns")
    with tempfile.TemporaryDirectory() if frame and kept is None else nullcontext(kept.parent if kept else None) as folder:
        if not frame:
            folder = None
        if folder is None:
            yield [Path(p) for p in _each(data)]
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = kept or Path(folder) / "frame.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pandas(data, preserve_index=False), path)
        yield [path]


def _path(where: Where | None) -> str | None:
    return None if where is None else str(where)


def _each(given: Where | Sequence[Where]) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(one) for one in given]


def _numbers(given: float | Sequence[float], name: str) -> tuple[float, ...]:
    """Return one number or several as a tuple.

    Raises:
        InputError: a text, which has characters and no numbers, or anything else that is no number.
    """
    several = (given,) if isinstance(given, int | float) else () if isinstance(given, str) else tuple(given)
    wrong = isinstance(given, str) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in several)
    if wrong:
        raise InputError(f"{name} is {given!r}", f"give a number or several, such as {name}=(1, 2)")
    return several


def _lists(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with tuples as lists, as a file would have them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
