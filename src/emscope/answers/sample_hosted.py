"""Questions put to a base and checkpoints whose weights are at a host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from emscope.answers.missing import Place, draw_missing, seed_of
from emscope.answers.sample import (
    Local,
    Prompt,
    answer_keys,
    check_subjects,
    digest_of,
    prompts_of,
    unheard,
    write_answers,
)
from emscope.answers.sample_jobs import ask_jobs
from emscope.answers.sample_spec import AskSpec, LoadSpec, ServedSpec
from emscope.answers.trained_as import trained_under
from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Answer
from emscope.core.versions import versions
from emscope.data.questions import read_questions
from emscope.elicit.hosted import Ask, Weights, sample_hosted
from emscope.models.loading.checkpoints import HOSTED, Checkpoint
from emscope.models.loading.load import Loaded
from emscope.models.loading.source import beside_digest
from emscope.models.remote.hosted import (
    HostedCheckpoint,
    HostedRun,
    Spent,
    hosted_base,
    hosted_checkpoints,
    model_at,
    read_hosted,
)
from emscope.models.remote.jobs import read_job
from emscope.models.remote.metering import Meter, charge_for_sample
from emscope.models.remote.tinker import Tinker
from emscope.store.rows import Rows
from emscope.store.study import Study


def is_hosted(reference: str) -> bool:
    """True for the folder of a fine-tune at a host."""
    return (Path(reference).expanduser() / HOSTED).is_file()


def ask_hosted(
    runs: dict[str, str],
    spec: AskSpec,
    loading: LoadSpec,
    served: ServedSpec,
    out: Path,
    *,
    say: Callable[[str], None] = unheard,
    progress: Progress = silent,
) -> Path:
    """Sample answers of a base at a host and of every checkpoint of `runs` (name -> folder); return the file they are in.

    As `ask`: called again, it does only what is missing; models of fine-tuning jobs are asked by `ask_jobs`. `served` says how many requests are on their way and what they may cost.

    Raises:
        InputError: runs of different bases, or settings that need weights on this machine.
        WorldError: the host does not answer.
    """
    if any(read_job(Path(folder).expanduser()) for folder in runs.values()):
        return ask_jobs(runs, spec, loading, served, out, say=say, progress=progress)
    found = {name: _run(folder) for name, folder in runs.items()}
    of = {name: hosted_checkpoints(Path(runs[name]), run) for name, run in found.items()}
    first = _alike(found, loading)
    every: list[Checkpoint] = [c for checkpoints in of.values() for c in checkpoints]
    under = [trained_under(system, every) for system in spec.systems]
    spec = spec.model_copy(update={"systems": tuple(dict.fromkeys(system for system, _ in under))})
    questions = read_questions(spec.questions)
    model = model_at(first.host, first.base, first.tokenizer)
    settings = spec.model_dump(mode="json", exclude={"rows", "samples", "only_last", "questions"})
    settings |= {"questions": digest_of(questions), "base": model.digest, "tokenizer": beside_digest(model.folder)}
    chat_kwargs = loading.chat_kwargs or first.chat_kwargs
    settings |= {"chat_kwargs": dict(chat_kwargs)} if chat_kwargs else {}
    meter = Meter(served.prices, served.max_cost)
    with Study(out, settings, versions()) as study, Tinker(meter, served.connections) as tinker:
        loaded = hosted_base(
            first.host,
            first.base,
            first.tokenizer,
            system=spec.systems[0],
            chat_kwargs=chat_kwargs,
            context=tinker.context_of(first.base),
        )
        for system, why in under:
            say(f"asked in: {loaded.chat.under(system).noted(why).describe()}")
        subjects = [Local("base", None)]
        subjects += [Local(name, c) for name, cs in of.items() for c in (cs[-1:] if spec.only_last else cs)]
        check_subjects(study, subjects)
        prompts = {p.name: p for p in prompts_of(loaded, questions, spec)}
        asking_at(tinker)(study, loaded, spec, prompts, subjects, progress)
        return write_answers(study)


def _run(folder: str) -> HostedRun:
    run = read_hosted(Path(folder).expanduser())
    if run is None:
        raise InputError(
            f"'{folder}' holds checkpoints on this machine, but other runs are at a host",
            "sample them in two calls, each with its own `out`",
        )
    return run


def _alike(runs: Mapping[str, HostedRun], loading: LoadSpec) -> HostedRun:
    """Return one of several runs of the same base.

    Raises:
        InputError: they are not, or a setting needs weights on this machine.
    """
    first = next(iter(runs.values()))
    other = next(
        (name for name, r in runs.items() if (r.host, r.base, r.tokenizer) != (first.host, first.base, first.tokenizer)), None
    )
    if other is not None:
        raise InputError(f"run '{other}' has another base than '{next(iter(runs))}'", "sample them in two calls")
    if "base" in runs:
        raise InputError("a run cannot be called 'base'", "that is the model without a checkpoint; choose another name")
    for name, needed in {"amplify": loading.amplify != (1.0,), "share": loading.share}.items():
        if needed:
            raise InputError(f"`{name}` needs weights on this machine, but these runs are at {first.host}", "leave it out")
    return first


def weights_of(base: str, checkpoint: object) -> Weights:
    """Return where a checkpoint is read; the base where there is none."""
    assert checkpoint is None or isinstance(checkpoint, HostedCheckpoint)
    return Weights(base, checkpoint.path if checkpoint else None)


def asking_at(tinker: Tinker) -> Callable[[Rows, Loaded, AskSpec, dict[str, Prompt], Sequence[Local], Progress], None]:
    """Return what draws answers at a host, as `ask_subjects` draws them here: what is missing, written as it comes."""

    def ask(
        study: Rows,
        loaded: Loaded,
        spec: AskSpec,
        prompts: dict[str, Prompt],
        subjects: Sequence[Local],
        progress: Progress,
    ) -> None:
        def draw(wanted: Sequence[Place]) -> Iterator[tuple[int, Answer]]:
            asks = [_ask(loaded, spec, prompts, place) for place in wanted]
            return sample_hosted(tinker, loaded.chat, asks, max_tokens=spec.max_tokens, temperature=spec.temperature)

        draw_missing(study, loaded.model.digest, spec, prompts, subjects, draw, progress)

    return ask


def charge_for_answers(loaded: Loaded, spec: AskSpec, prompts: Mapping[str, Prompt], subject: Local) -> Spent:
    """Return what all answers of one subject are charged at most, if no request is repeated."""
    places = answer_keys(loaded.model.digest, subject, prompts, spec)
    return sum((charge_for_sample(prompts[name].ids, spec.max_tokens) for name, _ in places), Spent())


def _ask(loaded: Loaded, spec: AskSpec, prompts: Mapping[str, Prompt], place: Place) -> Ask:
    subject, name, number = place
    weights = weights_of(loaded.model.reference, subject.checkpoint)
    return Ask(weights, name, prompts[name].ids, number, seed_of(spec, place))
