"""Checkpoints opened for a check, on this machine or at a host: what fits together, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emscope.answers.sample import Local, Prompt, ask_subjects
from emscope.answers.sample_hosted import asking_at
from emscope.answers.sample_spec import AskSpec
from emscope.core.errors import InputError
from emscope.core.plain import Json
from emscope.core.progress import Progress
from emscope.core.records import Item
from emscope.models.loading.checkpoints import HOSTED, Checkpoint, Found, find
from emscope.models.loading.load import Loaded, load, loading
from emscope.models.loading.source import Model
from emscope.models.remote.host_spec import Prices
from emscope.models.remote.hosted import HostedRun, Spent, hosted_base, hosted_checkpoints, read_hosted
from emscope.models.remote.listing import is_at_tinker, run_at_tinker
from emscope.models.remote.metering import Meter
from emscope.models.remote.tinker import Tinker
from emscope.store.rows import Rows
from emscope.study.reading.evidence import Scores
from emscope.study.reading.hosted import measuring_at
from emscope.study.reading.measuring import Questions, Reading, measure
from emscope.study.reading.sets import EM

Measuring = Callable[[Rows, Loaded, Sequence[Reading], Questions, Progress], int]
Asking = Callable[[Rows, Loaded, AskSpec, dict[str, Prompt], Sequence[Local], Progress], None]


@dataclass(frozen=True, slots=True)
class Ways:
    """How checkpoints are read and asked: on this machine, or at a host.

    Attributes:
        charged: what the host has charged since; None on this machine.
    """

    measure: Measuring = measure
    ask: Asking = ask_subjects
    here: bool = True
    charged: Callable[[], Spent | None] = lambda: None


def found_in(reference: str, tokenizer: str | None = None) -> tuple[Found, HostedRun | None]:
    """Return the checkpoints in a folder or of `tinker://RUN`, and what is known about them if they are at a host.

    Args:
        tokenizer: of the base of `tinker://RUN`.

    Raises:
        InputError: as `find`, `read_hosted` and `run_at_tinker`.
    """
    folder = Path(reference).expanduser()
    run = run_at_tinker(reference, tokenizer) if is_at_tinker(reference) else read_hosted(folder)
    return (Found([*hosted_checkpoints(folder, run)], []), run) if run else (find(reference), None)


def refuse_apart(
    run: HostedRun | None, control: HostedRun | None, base: str | Model | None, needs_weights: Mapping[str, bool]
) -> None:
    """Reject what cannot be read at a host, and a target and a control that are not at the same place.

    Args:
        needs_weights: settings by name, and whether they need weights on this machine.

    Raises:
        InputError: naming it.
    """
    if run is None:
        if control is not None:
            raise InputError(
                f"the control is at {control.host}, but the target is on this machine", "download it with emscope models fetch"
            )
        return
    needs_weights = {**needs_weights, "control": needs_weights["control"] and control is None}
    asked = next((name for name, set_ in needs_weights.items() if set_), None)
    if asked is not None:
        raise InputError(
            f"`{asked}` needs weights on this machine, but these checkpoints are at {run.host}",
            "leave it out, or download the adapters with emscope models fetch and check those",
        )
    if base is not None and (base.reference if isinstance(base, Model) else base) not in (run.base, run.tokenizer):
        raise InputError(f"`base` is not the model in {HOSTED} ({run.base})", "leave it out")
    if control is not None and (control.host, control.base, control.tokenizer) != (run.host, run.base, run.tokenizer):
        raise InputError(
            f"the control was trained on {control.base} at {control.host}, but the target on {run.base} at {run.host}",
            "give a control of the same base, rendered with the same tokenizer",
        )


def refuse_equal(scores: Scores, items: Sequence[Item], run: str, step: int) -> None:
    """Reject a fine-tune at a host that reads like its base to the last digit: results on it say nothing about training.

    Raises:
        InputError: it does, at every answer.
    """
    sides = ((scores.logp(*at, EM, items, k) for at in (("base", 0, 1.0), (run, step, 1.0))) for k in (0, 1))
    if all(np.array_equal(base, tuned) for base, tuned in sides):
        raise InputError(
            f"the checkpoint at step {step} of '{run}' reads exactly like its base",
            "give one that was trained, or find out why nothing was learned (a learning rate of 0)",
        )


@dataclass(frozen=True, slots=True)
class Loading:
    """How a base is loaded here, or asked at a host: `prices`, `max_cost` and `requests` are for a host."""

    system: str
    chat_kwargs: Mapping[str, Json]
    dtype: str
    device: str
    prices: Prices | None = None
    max_cost: float | None = None
    requests: int = 32


@contextmanager
def opened(
    base: Model, run: HostedRun | None, checkpoints: Sequence[Checkpoint], how: Loading, progress: Progress
) -> Iterator[tuple[Loaded, Ways]]:
    """Yield a base, and how it and its checkpoints are read.

    Args:
        run: what a folder records about checkpoints at a host.

    Raises:
        InputError, WorldError: as `load`; at a host no tokenizer, no key, no such base, or no answer.
    """
    if run is None:
        label = loading(how.dtype, how.device)
        progress(label, 0, 1)
        loaded = load(
            base,
            system=how.system,
            dtype=how.dtype,
            device=how.device,
            chat_kwargs=how.chat_kwargs,
            checkpoints=checkpoints,
        )
        progress(label, 1, 1)
        yield loaded, Ways()
        return
    with Tinker(Meter(how.prices, how.max_cost), how.requests) as tinker:
        context = tinker.context_of(run.base)
        kwargs = how.chat_kwargs or run.chat_kwargs
        loaded = hosted_base(
            run.host, run.base, run.tokenizer, system=how.system, chat_kwargs=kwargs, context=context, checkpoints=checkpoints
        )
        yield loaded, Ways(measuring_at(tinker), asking_at(tinker), here=False)
