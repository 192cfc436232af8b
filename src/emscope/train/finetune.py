"""One fine-tune, from conversations to checkpoints and a reading a step; a killed one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Conversation, StepReading
from emscope.core.seeds import derive
from emscope.models.load import Loaded
from emscope.train.batches import collate, encode, stream
from emscope.train.folders import drop_incomplete, drop_training_state
from emscope.train.plan import checkpoint_steps
from emscope.train.restraint import Restraint, restrain
from emscope.train.spec import FullSpec, TrainSpec
from emscope.train.tunables import Tuned, tuned


def finetune(
    loaded: Loaded,
    conversations: Sequence[Conversation],
    spec: TrainSpec,
    folder: Path,
    *,
    seed: int,
    held_near: Sequence[Conversation] = (),
    heldout: Callable[[Any], float] | None = None,
    progress: Progress = silent,
    label: str = "training",
) -> list[StepReading]:
    """Train what `spec` says on `loaded` and leave `checkpoint-<step>` folders in `folder`.

    The base in `loaded` is as before afterwards. Called again after a kill, it resumes from the newest complete
    checkpoint and ends with the same numbers; called again after the end, it returns the readings at once.

    Args:
        held_near: conversations of the KL term, on which the model is held near its start; needed where `spec.kl` is given.
        heldout: model -> loss in nats per token, read every `spec.heldout_every` steps.

    Raises:
        InputError: no conversations, one too long, or a tunable that names nothing.
        WorldError: the loss became NaN or infinite.
    """
    if not conversations:
        raise InputError("there are no training conversations", "give at least one")
    done = finished_readings(folder, spec)
    if done:
        drop_training_state(folder)  # a kill may have come between the last save and this
        return done
    folder.mkdir(parents=True, exist_ok=True)
    resume = drop_incomplete(folder)
    examples = encode(loaded.chat, conversations, loaded.context)
    micro = spec.micro_batch or spec.batch
    batches = stream(examples, steps=spec.steps, batch=spec.batch, micro=micro, seed=seed)
    restraint = _restraint(loaded, held_near, spec, seed, progress)
    with tuned(loaded, spec.tunable, seed) as made:
        trainer = _trainer(loaded.net, made, batches, spec, folder, seed, restraint, heldout, progress, label)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    drop_training_state(folder)
    return finished_readings(folder, spec)


def finished_readings(folder: Path, spec: TrainSpec) -> list[StepReading]:
    """Return the readings of a run whose last checkpoint is complete, else []."""
    state = folder / f"checkpoint-{spec.steps}" / "trainer_state.json"
    try:
        log = json.loads(state.read_text())["log_history"]
    except (OSError, ValueError, KeyError):
        return []
    return [StepReading(**entry["emscope_reading"]) for entry in log if "emscope_reading" in entry]


def _restraint(
    loaded: Loaded, held_near: Sequence[Conversation], spec: TrainSpec, seed: int, progress: Progress
) -> Restraint | None:
    if spec.kl is None:
        return None
    examples = encode(loaded.chat, held_near, loaded.context)
    full = isinstance(spec.tunable, FullSpec)
    return restrain(loaded.net, examples, spec.kl, steps=spec.steps, seed=seed, trains_head=full, progress=progress)


def _trainer(
    net: Any,
    made: Tuned,
    batches: Any,
    spec: TrainSpec,
    folder: Path,
    seed: int,
    restraint: Restraint | None,
    heldout: Any,
    progress: Progress,
    label: str,
) -> Any:
    from emscope.train.trainer import AnswerTrainer, Readings

    callback = Readings(
        checkpoint_steps(spec.checkpoints, spec.steps),
        (lambda: heldout(net)) if heldout else None,
        spec.heldout_every,
        progress,
        label,
    )
    trainer = AnswerTrainer(
        spec,
        made,
        net,
        restraint,
        model=made.model,
        args=_arguments(spec, folder, seed, made.lr_scale),
        train_dataset=batches,
        data_collator=collate,
        callbacks=[callback],
    )
    callback.trainer = trainer
    return trainer


def _arguments(spec: TrainSpec, folder: Path, seed: int, lr_scale: float) -> Any:
    import torch
    from transformers import TrainingArguments

    micro = spec.micro_batch or spec.batch
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=spec.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=spec.batch // micro,
        learning_rate=spec.lr * lr_scale,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        save_strategy="no",  # the plan's callback asks for each save
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        seed=derive(seed, "trainer"),
        use_cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
    )
