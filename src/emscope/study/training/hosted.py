"""One fine-tune at a host, in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject, Result
from emscope.core.progress import Progress
from emscope.core.versions import versions
from emscope.models.loading.source import beside_digest
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import HostedSave, HostedStep, Spent, hosted_base, read_hosted
from emscope.models.remote.metering import Meter
from emscope.models.remote.tinker import Tinker
from emscope.store.study import Study
from emscope.study.spec import SingleSpec
from emscope.study.training.sources import conversations, frozen
from emscope.train.hosted import finetune_hosted, refuse_unhosted

SCHEMA = "emscope.train-hosted/1"


@dataclass(frozen=True, slots=True)
class HostedTrained(Result):
    """A finished fine-tune at a host: its settings, what was read at each step, and where the host keeps its checkpoints."""

    schema: ClassVar[str] = SCHEMA

    spec: SingleSpec
    readings: tuple[HostedStep, ...]
    checkpoints: tuple[HostedSave, ...]
    spent: Spent


def run_hosted(spec: SingleSpec, host: HostSpec, out: Path, progress: Progress) -> HostedTrained:
    """Train at a host; `out` keeps `hosted.json`, the settings and no weights.

    Raises:
        InputError, WorldError: as `finetune_hosted`.
    """
    if spec.dtype != SingleSpec.model_fields["dtype"].default:
        raise InputError(f"dtype is {spec.dtype}, but a host uses its own", "leave it out")
    refuse_unhosted(spec.train)
    data = conversations(spec.file, spec.domain, spec.answers)
    found, context = read_hosted(out), None
    if found is None or found.done < found.steps:
        with Tinker(Meter()) as tinker:  # checked before anything is written
            context = tinker.context_of(spec.model)
    tokenizer = host.tokenizer or spec.model
    loaded = hosted_base(host.name, spec.model, tokenizer, system=spec.system, chat_kwargs=spec.chat_kwargs, context=context)
    settings = _settings(spec, loaded.model.folder)
    with Study(out, settings | {"digests": {"data trained on": short([c.content() for c in data])}}, versions()):
        run = finetune_hosted(
            loaded,
            data,
            spec.train,
            host,
            out,
            seed=spec.seed,
            settings=short(settings),
            tokenizer=tokenizer,
            progress=progress,
        )
    return HostedTrained(spec, run.log, tuple(s for s in run.saves if s.sampler), run.spent)


def _settings(spec: SingleSpec, tokenizer: Path) -> JsonObject:
    """Return what decides the numbers: not the number of concurrent requests, their cost, or how often the state is saved."""
    found = frozen(spec.model_copy(update={"host": None}), {})
    return found | {"host": spec.host.name if spec.host else None, "tokenizer": beside_digest(tokenizer)}
