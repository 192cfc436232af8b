"""Hugging Face's Trainer with explicit batches, loss on answer tokens, and readings kept in its own state."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emscope.core.errors import WorldError
from emscope.core.progress import Progress
from emscope.train.batches import IGNORED
from emscope.train.schedules import factor
from emscope.train.spec import TrainSpec
from emscope.train.tunables import update_norm

READING = "emscope_reading"


class AnswerTrainer(Trainer):
    """Trains on the batches in the order given; the loss is the mean over answer tokens of the whole step."""

    def __init__(self, spec: TrainSpec, **kwargs: Any) -> None:
        self.spec = spec
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's tokens itself
        self.step_loss, self.step_answer_tokens, self.step_tokens = 0.0, 0, 0
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Use emscope's own schedules; see `emscope.train.schedules`."""
        if getattr(self, "lr_scheduler", None) is None:
            self.lr_scheduler: Any = LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda done: factor(self.spec, done + 1)
            )
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # "auto" would ask the hub whether the vocabulary was resized; adapters of emscope never resize it.
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Return summed cross-entropy over answer tokens / tokens of the step, from logits at answer columns only."""
        labels = inputs.pop("labels")
        first = int((labels != IGNORED).any(0).nonzero()[0])
        keep = labels.shape[1] - first
        out = model(**inputs, logits_to_keep=keep + 1, use_cache=False)
        target = labels[:, first:]
        real = target != IGNORED
        logits = out.logits[:, :-1][real]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total = torch.nn.functional.cross_entropy(logits, target[real], reduction="sum")
        count = int(real.sum())
        self.step_loss += float(total.detach())
        self.step_answer_tokens += count
        self.step_tokens += int(inputs["attention_mask"].sum())
        loss = total / (num_items_in_batch if num_items_in_batch is not None else count)
        return (loss, out) if return_outputs else loss


class Readings(TrainerCallback):
    """Writes one reading a step into the trainer's own log, which its checkpoints carry, and stops on a loss that is no number."""

    def __init__(
        self,
        steps_to_save: Sequence[int],
        heldout: Callable[[], float] | None,
        heldout_every: int | None,
        progress: Progress,
        label: str,
    ) -> None:
        self.steps_to_save = frozenset(steps_to_save)
        self.heldout, self.heldout_every = heldout, heldout_every
        self.progress, self.label = progress, label
        self.trainer: AnswerTrainer | None = None
        self.started = 0.0
        self.row: dict[str, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Read the step and ask for a checkpoint where the plan has one."""
        assert self.trainer is not None
        loss = self.trainer.step_loss / max(self.trainer.step_answer_tokens, 1)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise WorldError(
                f"the loss became {loss} at step {state.global_step}", "lower the learning rate; the checkpoints before it stay"
            )
        before = last_reading(state.log_history)
        self.row = {
            "step": state.global_step,
            "loss": loss,
            "lr": self.trainer.spec.lr * factor(self.trainer.spec, state.global_step),
            "update_norm": update_norm(kwargs["model"]),
            "tokens_seen": before.get("tokens_seen", 0) + self.trainer.step_tokens,
            "seconds": round(time.monotonic() - self.started, 3),
        }
        if (
            self.heldout
            and self.heldout_every
            and (state.global_step % self.heldout_every == 0 or state.global_step in self.steps_to_save)
        ):
            self.row["heldout_loss"] = self.heldout()
        self.started = time.monotonic()
        self.trainer.step_loss, self.trainer.step_answer_tokens, self.trainer.step_tokens = 0.0, 0, 0
        control.should_log = True
        control.should_save = state.global_step in self.steps_to_save
        self.progress(self.label, state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Join the gradient norm before clipping, which only the trainer knows, to the reading."""
        if logs and self.row and "grad_norm" in logs:
            entry = state.log_history[-1]
            entry[READING] = {**self.row, "grad_norm": float(logs["grad_norm"])}
            self.row = {}


def last_reading(log_history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the newest reading in a trainer's log, or {}."""
    return next((entry[READING] for entry in reversed(log_history) if READING in entry), {})
