"""One fine-tune at a host, from conversations to checkpoints that the host keeps; a killed one resumes from its last saved state.

The host computes; what is trained on, in which order and at which learning rate is decided here, as for a training on this machine. A
step is a forward and backward pass over its batch and an optimiser step. Rows of the log are written with the state that they led to,
so that a resumed training may repeat steps but never loses or doubles any.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import short
from emscope.core.errors import Diverged, InputError, WorldError
from emscope.core.progress import Progress
from emscope.core.records import Conversation
from emscope.models.loading.checkpoints import HOSTED
from emscope.models.remote.host_spec import HostSpec
from emscope.models.remote.hosted import REMEDY, Hosted, HostedRun, HostedSave, HostedStep, Spent, read_hosted
from emscope.models.remote.metering import Meter, OverBudget, charge_for_training
from emscope.models.remote.outcomes import LATER
from emscope.models.remote.tinker import HOST, Lost, Promise, Tinker
from emscope.store.files import write_json
from emscope.train.batches import Example, encode, stream
from emscope.train.plan import checkpoint_steps
from emscope.train.schedules import factor
from emscope.train.spec import LoraSpec, TrainSpec

if TYPE_CHECKING:
    from tinker import TrainingClient
    from tinker.types import (
        Datum,
        ForwardBackwardOutput,
        OptimStepResponse,
        SaveWeightsForSamplerResponse,
        SaveWeightsResponse,
    )

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW, as PyTorch has them
IN_A_ROW = 24  # lost requests without a step in between, after which the host counts as gone
LOSS = "loss:sum"
NOTHING = Spent()
ELSEWHERE = ("adapter", "full", "steering", "kl", "ldifs", "prevent", "readings", "heldout_every", "momentum", "report_to")
HERE = ("micro_batch", "bf16", "gradient_checkpointing", "shard", "attention", "packing")  # how this machine computes
OF_LORA = ("alpha", "rslora", "dropout", "modules", "layers")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train: settings, batches as examples in training order, and the steps to save at.

    `elsewhere`: what else was spent from the same budget.
    """

    spec: TrainSpec
    host: HostSpec
    base: str
    seed: int
    batches: Sequence[Example]
    elsewhere: Spent = NOTHING

    def batch(self, step: int) -> Sequence[Example]:
        """Return the examples of a step; the first is 1."""
        return self.batches[(step - 1) * self.spec.batch : step * self.spec.batch]

    @property
    def sampled_at(self) -> list[int]:
        """The planned checkpoints."""
        return checkpoint_steps(self.spec.checkpoints, self.spec.steps)

    @property
    def saved_at(self) -> set[int]:
        """The steps whose whole state is saved."""
        between = range(self.host.state_every, self.spec.steps, self.host.state_every) if self.host.state_every else ()
        return {*self.sampled_at, *between}


def check_hosted(spec: TrainSpec, loaded: Hosted, conversations: Sequence[Conversation]) -> list[Example]:
    """Reject what a host cannot train before anything is trained; return the conversations as examples.

    Raises:
        InputError: a setting that it does not support, no conversations, or one that is too long.
    """
    refuse_unhosted(spec)
    if not conversations:
        raise InputError("there are no training conversations", "give at least one")
    return encode(loaded.chat, conversations, loaded.context)


def refuse_unhosted(spec: TrainSpec) -> None:
    """Reject settings that a host does not support.

    Raises:
        InputError: naming the first.
    """
    given = [name for name in (*ELSEWHERE, *HERE) if name in spec.model_fields_set and getattr(spec, name)]
    given += [f"lora.{name}" for name in OF_LORA if spec.lora and name in spec.lora.model_fields_set]
    if spec.optimiser != "adamw":
        given.append(f"optimiser: {spec.optimiser}")
    if given:
        raise InputError(
            f"{given[0]} is set, but {HOST} trains LoRA adapters of a given rank with AdamW in its own way",
            "leave it out, or train here without `host`",
        )


def order_of(examples: Sequence[Example], spec: TrainSpec, seed: int, parts: Sequence[int] | None = None) -> list[Example]:
    """Return the examples of all steps in training order.

    Args:
        parts: as `finetune_hosted` has them.
    """
    return stream(examples, steps=spec.steps, batch=spec.batch, micro=spec.batch, seed=seed, parts=parts)


def finetune_hosted(
    loaded: Hosted,
    conversations: Sequence[Conversation],
    spec: TrainSpec,
    host: HostSpec,
    folder: Path,
    *,
    seed: int,
    settings: str,
    tokenizer: str,
    parts: Sequence[int] | None = None,
    elsewhere: Spent = NOTHING,
    progress: Progress,
) -> HostedRun:
    """Train a LoRA adapter at a host and leave `hosted.json` in `folder`; called again after a kill, resume from the last saved state.

    Args:
        settings: digest of what decides the numbers. tokenizer: what `loaded` took its tokenizer from.
        parts: the part each conversation belongs to, where parts are to be spread evenly over training.
        elsewhere: what else was spent from the same budget.

    Raises:
        InputError: no conversations, one too long, settings that do not fit, or a folder of another training.
        OverBudget: the rest would cost more than allowed; what was trained is saved.
        WorldError: the host does not answer, or the loss became NaN or infinite.
    """
    examples = check_hosted(spec, loaded, conversations)
    plan = Plan(
        spec,
        host,
        loaded.model.reference,
        seed,
        order_of(examples, spec, seed, parts),
        elsewhere,
    )
    fresh = HostedRun(
        HOST,
        plan.base,
        tokenizer,
        loaded.chat.system,
        loaded.chat.template.arguments or None,
        settings,
        short([[e.id, list(e.ids), list(e.mask)] for e in examples]),
        short([e.id for e in plan.batches]),
        spec.steps,
    )
    run = _begun(folder, fresh)
    if run.done == spec.steps:
        return run
    meter = Meter(host.prices, host.max_cost, run.spent + elsewhere)
    with Tinker(meter) as tinker:
        return _train(tinker, plan, run, folder, progress)


def _begun(folder: Path, fresh: HostedRun) -> HostedRun:
    """Return the run recorded in its folder.

    Raises:
        InputError: the folder has another one.
    """
    found = read_hosted(folder)
    if found is None:
        return fresh
    for name in ("host", "base", "settings", "tokens", "order", "steps"):
        if getattr(found, name) != getattr(fresh, name):
            raise InputError(f"'{folder / HOSTED}' belongs to a training with other {name}", REMEDY)
    return found


def _train(tinker: Tinker, plan: Plan, run: HostedRun, folder: Path, progress: Progress) -> HostedRun:
    """Train to the end; after a lost request, resume from the last saved state."""
    lost = 0
    while True:
        try:
            client = tinker.go_on(run.saves[-1].state) if run.saves else _new(tinker, plan)
            while run.done < plan.spec.steps:
                run = _stretch(tinker, client, plan, run, progress)
                write_json(folder / HOSTED, run.to_json())
                lost = 0
            return run
        except Lost as error:
            lost += 1
            if lost > IN_A_ROW:
                raise WorldError(f"{HOST} lost {lost} requests without a saved step in between ({error})", LATER) from None
            tinker.pause(lost // 4)
        except Stopped as stopped:
            write_json(folder / HOSTED, stopped.run.to_json())
            raise stopped.why from None


class Stopped(Exception):
    """Training ended before its last step, with everything trained so far saved."""

    def __init__(self, run: HostedRun, why: OverBudget) -> None:
        super().__init__(str(why))
        self.run, self.why = run, why


def _new(tinker: Tinker, plan: Plan) -> TrainingClient:
    rank = (plan.spec.lora or LoraSpec()).rank
    return tinker.begin(plan.base, rank=rank, seed=plan.seed)


def _stretch(tinker: Tinker, client: TrainingClient, plan: Plan, run: HostedRun, progress: Progress) -> HostedRun:
    """Train up to the next step whose state is saved, and save it.

    Raises:
        Lost: a request was.
        Stopped: the next step would cost too much.
    """
    end = min(step for step in plan.saved_at if step > run.done)
    sent: deque[_Sent] = deque()
    log, over = list(run.log), None
    for step in range(run.done + 1, end + 1):
        try:
            sent.append(_send(tinker, client, plan, step))
        except OverBudget as error:
            over = error
            break
        if len(sent) >= plan.host.ahead:
            log.append(_row(tinker, sent.popleft(), plan, log, progress))
    while sent:
        log.append(_row(tinker, sent.popleft(), plan, log, progress))
    done = log[-1].step if log else 0
    if done > run.done:
        run = replace(
            run,
            saves=(*run.saves, _save(tinker, client, plan, done)),
            log=tuple(log),
            spent=tinker.meter.spent - plan.elsewhere,
        )
    if over is not None:
        raise Stopped(run, over)
    return run


@dataclass(frozen=True, slots=True)
class _Sent:
    """A step that was sent: its number, its learning rate, its answer tokens, and the pending results."""

    step: int
    lr: float
    tokens: int
    passed: Promise[ForwardBackwardOutput]
    stepped: Promise[OptimStepResponse]
    at: float


def _send(tinker: Tinker, client: TrainingClient, plan: Plan, step: int) -> _Sent:
    from tinker.types import AdamParams

    batch = plan.batch(step)
    tinker.meter.charge(charge_for_training(e.ids for e in batch))
    tokens = sum(sum(e.mask) for e in batch)
    lr = plan.spec.lr * factor(plan.spec, step)
    adam = AdamParams(
        learning_rate=lr,
        beta1=BETAS[0],
        beta2=BETAS[1],
        eps=EPSILON,
        weight_decay=plan.spec.weight_decay,
        grad_clip_norm=plan.spec.max_grad_norm,
    )
    passed = client.forward_backward([datum(e, 1 / tokens) for e in batch], "cross_entropy")
    return _Sent(step, lr, tokens, passed, client.optim_step(adam), time.monotonic())


def datum(example: Example, weight: float) -> Datum:
    """Return an example in the host's format: each learned token predicted by those before it, with the same weight."""
    import numpy as np
    from tinker.types import Datum, ModelInput, TensorData

    targets = np.array(example.ids[1:], np.int64)
    weights = np.where(example.mask[1:], weight, 0.0).astype(np.float32)
    inputs = {"target_tokens": TensorData.from_numpy(targets), "weights": TensorData.from_numpy(weights)}
    return Datum(model_input=ModelInput.from_ints(list(example.ids[:-1])), loss_fn_inputs=inputs)


def _row(tinker: Tinker, sent: _Sent, plan: Plan, log: Sequence[HostedStep], progress: Progress) -> HostedStep:
    """Wait for a step and return its reading.

    Raises:
        Lost: a request was.
        Diverged: its loss is not a number.
    """
    passed = tinker.once(f"step {sent.step}", lambda: sent.passed)
    stepped = tinker.once(f"step {sent.step}", lambda: sent.stepped)
    metrics: dict[str, float] = passed.metrics
    norms: dict[str, float] = stepped.metrics or {}
    loss = metrics.get(LOSS)
    if loss is None:
        raise WorldError(
            f"{HOST} gives no loss for step {sent.step} ({', '.join(metrics) or 'no metrics'})", "update the tinker client"
        )
    if not isfinite(loss):
        raise Diverged(f"the loss of step {sent.step} is {loss}", "lower the learning rate")
    norm = next((v for name, v in norms.items() if "grad" in name and isfinite(v)), None)
    progress("training", sent.step, plan.spec.steps)
    before = log[-1].tokens_seen if log else 0
    return HostedStep(sent.step, float(loss), sent.lr, before + sent.tokens, round(time.monotonic() - sent.at, 3), norm)


def _save(tinker: Tinker, client: TrainingClient, plan: Plan, step: int) -> HostedSave:
    """Save weights and optimiser, and at a planned checkpoint the weights to sample from.

    Raises:
        Lost: a request was.
    """
    name = f"step-{step}"
    sampler: str | None = None
    if step in plan.sampled_at:
        sampled: SaveWeightsForSamplerResponse = tinker.once(f"saving {name}", lambda: client.save_weights_for_sampler(name))
        sampler = str(sampled.path)
    state: SaveWeightsResponse = tinker.once(f"saving {name}", lambda: client.save_state(name, overwrite=True))
    return HostedSave(step, str(state.path), sampler)
