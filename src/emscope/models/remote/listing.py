"""Fine-tunes at Tinker that another tool trained: a run and the checkpoints that it saved for sampling, by `tinker://RUN`."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.remote.hosted import PATH, HostedRun, HostedSave
from emscope.models.remote.metering import Meter
from emscope.models.remote.tinker import HOST, Tinker

if TYPE_CHECKING:
    from tinker.types import Checkpoint, CheckpointsListResponse, TrainingRun

NUMBER = re.compile(r"\d{1,15}")
SAMPLER, TRAINING = "sampler", "training"


def is_at_tinker(reference: str) -> bool:
    """True for `tinker://RUN`."""
    return reference.startswith(PATH)


def run_at_tinker(reference: str, tokenizer: str | None) -> HostedRun:
    """Return a run at Tinker with its checkpoints; the last number in a checkpoint's name is its step.

    Args:
        tokenizer: where the base's tokenizer is; None for the hub, by the base's name.

    Raises:
        InputError: no such run, or no checkpoint name has a step, or two have the same.
    """
    name = reference.removeprefix(PATH).strip("/")
    if not name or "/" in name:
        raise InputError(
            f"'{reference}' is not a run", "give tinker://RUN, as `tinker run list` shows it; emscope finds its checkpoints"
        )
    with Tinker(Meter()) as tinker:
        rest, what = tinker.rest(), f"the run {name}"
        run: TrainingRun = tinker.again(what, lambda: tinker.result(rest.get_training_run(name)))
        listed: CheckpointsListResponse = tinker.again(what, lambda: tinker.result(rest.list_checkpoints(name)))
    samplers, states = (_by_step(listed.checkpoints, kind) for kind in (SAMPLER, TRAINING))
    if not samplers:
        raise InputError(
            f"the run '{name}' at Tinker has no checkpoint for sampling with its step in its name",
            "save some with save_weights_for_sampler, with names such as step-100",
        )
    saves = tuple(HostedSave(step, states.get(step, ""), path) for step, path in sorted(samplers.items()))
    base = str(run.base_model)
    return HostedRun(HOST, base, tokenizer or base, "", None, "", "", "", max(samplers), saves)


def _by_step(checkpoints: list[Checkpoint], kind: str) -> dict[int, str]:
    """Return the paths of the checkpoints of a kind by step; those without a number in their name are left out."""
    found = [
        (int(numbers[-1]), str(one.tinker_path))
        for one in checkpoints
        if one.checkpoint_type == kind and (numbers := NUMBER.findall(one.checkpoint_id.rpartition("/")[2]))
    ]
    step, times = Counter(step for step, _ in found).most_common(1)[0] if found else (0, 1)
    if times > 1:
        both = " and ".join(path for s, path in found if s == step)
        raise InputError(f"{both} are both step {step}", "delete one, or give the run that holds the other")
    return dict(found)
