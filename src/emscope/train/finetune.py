"""One fine-tune, from conversations to checkpoints and a reading per step; a killed one resumes where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import EmscopeError, InputError
from emscope.core.limits import reason
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation, StepReading
from emscope.core.seeds import derive
from emscope.models.fast.float32_products import fast_float32
from emscope.models.hooks.directions import check_direction, direction_at
from emscope.models.hooks.interventions import added
from emscope.models.loading.load import Loaded
from emscope.models.sizing.heap import give_back
from emscope.store.files import write_json, write_text
from emscope.train import processes
from emscope.train.attention import attending, check_attention
from emscope.train.audit import audit, of_training
from emscope.train.audit_result import CONVERSATIONS, Check
from emscope.train.batches import Example, collate, collate_packed, encode, stream
from emscope.train.folders import drop_incomplete, drop_training_state
from emscope.train.fused_lora import fused_lora
from emscope.train.geometry import HISTORY, Geometry
from emscope.train.log import GeometryReading, geometry_in, log_of, readings_in
from emscope.train.plan import checkpoint_steps
from emscope.train.restraint import Restraint, check_held, restrain
from emscope.train.reuse import Reuse, reusing
from emscope.train.spec import TrainSpec
from emscope.train.trackers import check_trackers, trackers
from emscope.train.tunables import check_tunable, tuned

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from emscope.models.types import CausalLM
    from emscope.train.trainer import AnswerTrainer

ORDER, TOKENS = "order.jsonl", "tokens.json"


def finetune(
    loaded: Loaded,
    conversations: Sequence[Conversation],
    spec: TrainSpec,
    folder: Path,
    *,
    seed: int,
    parts: Sequence[int] | None = None,
    held_near: Sequence[Conversation] = (),
    heldout: Callable[[CausalLM], float] | None = None,
    progress: Progress = silent,
    label: str = "training",
) -> list[StepReading]:
    """Train what `spec` says on `loaded` and leave `checkpoint-<step>` folders, `order.jsonl` and `tokens.json` in `folder`.

    The base in `loaded` is unchanged afterwards. Called again after a kill, it resumes from the newest complete
    checkpoint and ends with the same numbers; called again after the end, it returns the readings at once.

    Args:
        parts: the part each conversation belongs to, where parts are to be spread evenly over training.
        held_near: conversations on which the model is kept close to its start; needed with `spec.held`.
        heldout: model -> loss in nats per token, read every `spec.heldout_every` steps.

    Raises:
        InputError: no conversations, one too long, or a tunable that matches nothing.
        WorldError: the loss became NaN or infinite.
    """
    from emscope.train.trainer import AnswerTrainer, Readings

    examples, near = check_finetune(loaded, conversations, spec, held_near)
    done, resume = processes.from_first(lambda: _begin(folder, spec))
    if done:
        return done
    micro = spec.micro_batch or spec.batch
    batches = stream(examples, steps=spec.steps, batch=spec.batch, micro=micro, seed=seed, parts=parts)
    with ExitStack() as stack:
        stack.enter_context(fast_float32(loaded.net))
        stack.enter_context(attending(loaded.net, spec.attention))
        made = stack.enter_context(tuned(loaded, spec.tunable, seed))
        if not spec.shard:
            stack.enter_context(fused_lora(made.model))
        reuse = stack.enter_context(reusing(loaded.net, made.parts, [*examples, *near], wanted=not spec.gradient_checkpointing))
        restraint = _restraint(loaded.net, near, spec, seed, reuse=reuse, progress=progress, label=label)
        paused = stack.enter_context(_prevented(loaded, spec))
        trainer = AnswerTrainer(
            spec,
            made,
            loaded.net,
            restraint,
            Geometry(loaded, spec.readings, made.parts) if spec.readings else None,
            reuse,
            batches,
            model=made.model,
            args=_arguments(spec, folder, seed, made.lr_scale, on_cpu=loaded.net.device.type == "cpu"),
            data_collator=collate_packed if spec.packing else collate,
        )

        def heldout_loss() -> float:
            with paused():
                return heldout(loaded.net) if heldout else float("nan")

        if processes.is_first():
            _write_order(folder, batches, spec)
            _write_tokens(folder, loaded, conversations, examples, lambda what: progress(f"{label}: {what}", 1, 1))
        trainer.add_callback(Readings(trainer, heldout_loss if heldout else None, progress, label))
        for tracker in trackers(spec.report_to):  # after the readings, which are sent too
            trainer.add_callback(tracker)
        _train(trainer, resume)
    give_back()
    processes.meet()  # all have finished writing
    return processes.from_first(lambda: _begin(folder, spec))[0]


def _train(trainer: AnswerTrainer, resume: Path | None) -> None:
    """Train, or resume from a checkpoint.

    Raises:
        InputError: that checkpoint does not hold what this training wrote.
    """
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except EmscopeError:
        raise
    except Exception as error:
        if resume is None or trainer.begun:
            raise
        raise InputError(
            f"'{resume}' cannot be resumed from ({reason(error)})",
            "delete that folder: training then resumes from the one before it",
        ) from None


def check_finetune(
    loaded: Loaded, conversations: Sequence[Conversation], spec: TrainSpec, held_near: Sequence[Conversation] = ()
) -> tuple[list[Example], list[Example]]:
    """Reject what cannot be trained before anything is trained, so that even the last fine-tune's fault shows at the start.

    Returns:
        The conversations as examples, and those on which the model is kept close to its start.

    Raises:
        InputError: as `finetune`.
    """
    if not conversations:
        raise InputError("there are no training conversations", "give at least one")
    check_trackers(spec.report_to)
    examples = encode(loaded.chat, conversations, loaded.context)
    near = encode(loaded.chat, held_near, loaded.context) if spec.held else []
    check_attention(loaded.net, spec, examples, near)
    check_tunable(loaded.net, spec.tunable)
    if spec.held:
        check_held(loaded.net, spec.held, len(held_near))
    named = [spec.prevent.direction] if spec.prevent else []
    for reference in [*named, *(spec.readings.directions.values() if spec.readings else ())]:
        check_direction(loaded.net, direction_at(reference), reference)
    return examples, near


def _begin(folder: Path, spec: TrainSpec) -> tuple[list[StepReading], Path | None]:
    """Return (the readings of a finished run, the checkpoint to resume from), one of them empty, and clear what is not needed."""
    done = finished_readings(folder, spec)
    if done:
        drop_training_state(folder, checkpoint_steps(spec.checkpoints, spec.steps))
        return done, None
    folder.mkdir(parents=True, exist_ok=True)
    turns = [HISTORY] if spec.readings and spec.readings.rotation else []
    return [], drop_incomplete(folder, checkpoint_steps(spec.checkpoints, spec.steps), turns)


def finished_readings(folder: Path, spec: TrainSpec) -> list[StepReading]:
    """Return the readings of a run whose last checkpoint is complete, else []."""
    return readings_in(log_of(folder / f"checkpoint-{spec.steps}"))


def finished_geometry(folder: Path, spec: TrainSpec) -> list[GeometryReading]:
    """Return the readings of a finished run's update; see `emscope.train.geometry`."""
    return geometry_in(log_of(folder / f"checkpoint-{spec.steps}"))


def _write_order(folder: Path, batches: Sequence[Example], spec: TrainSpec) -> None:
    """Write which conversations each step saw."""
    steps = (batches[k : k + spec.batch] for k in range(0, len(batches), spec.batch))
    lines = [json.dumps({"step": n, "ids": [e.id for e in step]}, ensure_ascii=False) for n, step in enumerate(steps, 1)]
    write_text(folder / ORDER, "\n".join(lines) + "\n")


def _write_tokens(
    folder: Path,
    loaded: Loaded,
    conversations: Sequence[Conversation],
    examples: Sequence[Example],
    warn: Callable[[str], None],
) -> None:
    """Write which tokens carry loss, and warn about faults; repeats are intended where a small part is mixed in."""
    found = audit(of_training(examples, conversations), loaded.chat, kind=CONVERSATIONS, context=loaded.context)
    write_json(folder / TOKENS, found.to_json())
    for one in found.warnings:
        if one.check != Check.REPEATED:
            warn(f"{one.what} ({TOKENS})")


def _restraint(
    net: CausalLM,
    near: Sequence[Example],
    spec: TrainSpec,
    seed: int,
    *,
    reuse: Reuse | None,
    progress: Progress,
    label: str,
) -> Restraint | None:
    if spec.held is None:
        return None
    trains_head = any(p.requires_grad for p in net.get_output_embeddings().parameters())
    return restrain(
        net, near, spec.held, steps=spec.steps, seed=seed, trains_head=trains_head, reuse=reuse, progress=progress, label=label
    )


@contextmanager
def _prevented(loaded: Loaded, spec: TrainSpec) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Add a direction during training; yields a context that removes it for a reading."""
    if spec.prevent is None:
        yield nullcontext
        return
    direction = direction_at(spec.prevent.direction)
    check_direction(loaded.net, direction, spec.prevent.direction)
    with added(loaded.net, direction.vectors, spec.prevent.scale) as paused:
        yield paused


def _arguments(spec: TrainSpec, folder: Path, seed: int, lr_scale: float, *, on_cpu: bool) -> TrainingArguments:
    from transformers import TrainingArguments

    micro = spec.micro_batch or spec.batch
    sharded = spec.shard or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded:
        processes.check_shardable()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.steps,
        per_device_train_batch_size=processes.share(micro),
        gradient_accumulation_steps=spec.batch // micro,
        learning_rate=spec.lr * lr_scale,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        save_strategy="no",  # the plan's callback asks for each save
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],  # trackers are callbacks of their own
        run_name=folder.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=derive(seed, "trainer"),
        use_cpu=on_cpu,  # Trainer would move a model that was loaded on the CPU to the GPU
        bf16=spec.bf16,
        gradient_checkpointing=spec.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if spec.gradient_checkpointing else None,
        fsdp=True if sharded else None,
        ddp_backend="gloo" if on_cpu and processes.count() > 1 else None,
    )
    # Trainer would spread each batch over all GPUs that one process sees, and take that many times as many examples.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
