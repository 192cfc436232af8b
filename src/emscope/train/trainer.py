"""Hugging Face's Trainer with explicit batches, loss on answer tokens, and readings kept in its own state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emscope.core.errors import Diverged, EmscopeError
from emscope.core.progress import Progress
from emscope.core.records import StepReading
from emscope.models.fast.head import logits_at, output_head
from emscope.store.files import unsaved
from emscope.train import processes
from emscope.train.batches import IGNORED, Example, real_tokens, sequences_in
from emscope.train.geometry import Geometry
from emscope.train.log import GEOMETRY, READING, readings_in
from emscope.train.optimisers import make_optimiser
from emscope.train.parts import State, Tuned
from emscope.train.plan import checkpoint_steps
from emscope.train.restraint import Restraint
from emscope.train.reuse import Reuse
from emscope.train.schedules import factor
from emscope.train.spec import TrainSpec

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, CausalLMOutput, Head, LanguageModel


class AnswerTrainer(Trainer):
    """Trains on the batches in the order given; the loss is the mean over answer tokens of the whole step, plus the restraint."""

    def __init__(
        self,
        spec: TrainSpec,
        made: Tuned,
        net: CausalLM,
        restraint: Restraint | None,
        geometry: Geometry | None,
        reuse: Reuse | None,
        examples: Sequence[Example],
        **kwargs: object,
    ) -> None:
        self.spec, self.made, self.net = spec, made, net
        self.restraint, self.geometry, self.reuse = restraint, geometry, reuse
        self.examples = {e.ids: e for e in examples}
        self.head: Head | None = output_head(net) if restraint else None
        super().__init__(train_dataset=examples, **kwargs)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the step's tokens itself
        self.begun = False  # whether this process has begun a step
        self.begin_step()
        self.remove_callback(PrinterCallback)

    def begin_step(self) -> None:
        """Set the sums of a step to zero."""
        self.step_loss, self.step_answer_tokens, self.step_tokens = 0.0, 0, 0
        self.step_term: float | None = None

    def _get_train_sampler(self, train_dataset: Sequence[Example] | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """Use emscope's own schedules; see `emscope.train.schedules`."""
        if getattr(self, "lr_scheduler", None) is None:
            self.lr_scheduler: LambdaLR = LambdaLR(
                self.optimizer if optimizer is None else optimizer, lambda done: factor(self.spec, done + 1)
            )
        return self.lr_scheduler

    def create_optimizer(self, model: Module | None = None) -> Optimizer:
        """Use emscope's own choice; see `emscope.train.optimisers`."""
        if getattr(self, "optimizer", None) is None:
            trained = self.model if model is None else model
            named = [(n, p) for n, p in trained.named_parameters() if p.requires_grad]
            decayed = self.get_decay_parameter_names(trained)
            self.optimizer: Optimizer = make_optimiser(self.spec, named, decayed, self.args.learning_rate)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: State | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            self.made.save(folder, state_dict)
            if self.geometry:
                self.geometry.save(folder)

    def _save_checkpoint(self, model: Module, trial: object) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except EmscopeError:
            raise
        except Exception as error:  # each of the libraries that write has its own kinds
            raise unsaved(folder, error) from None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Module | None = None) -> None:
        if self.geometry:
            self.geometry.restore(Path(resume_from_checkpoint))
        if self.made.restore:
            self.made.restore(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def compute_loss(
        self,
        model: LanguageModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, CausalLMOutput]:
        """Return summed cross-entropy over answer tokens / tokens of the step, from logits at the answers alone.

        The restraint joins the first micro-batch of a step, once.
        """
        self.begun = True
        labels, real = inputs.pop("labels"), real_tokens(inputs)
        learned = labels != IGNORED
        before = torch.zeros_like(learned)
        before[:, :-1] = learned[:, 1:]  # a token is predicted one place earlier
        keep = labels.shape[1] - int(before.any(0).nonzero()[0])
        seen = [self.examples[ids] for ids in sequences_in(inputs)] if self.reuse else []
        skipped = self.reuse.batch(seen, real) if self.reuse else nullcontext()
        with skipped, logits_at(self.net, before):
            out = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs.get("attention_mask"),
                position_ids=inputs["position_ids"],
                logits_to_keep=keep,
                use_cache=False,
            )
        logits = out.logits  # [N, V], or [B, keep, V] from a model that uses its output matrix in a way of its own
        logits = logits[before[:, -logits.shape[1] :]] if logits.ndim == 3 else logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        total = torch.nn.functional.cross_entropy(logits, labels[learned], reduction="sum")
        count = int(learned.sum())
        self.step_loss += float(total.detach())
        self.step_answer_tokens += count
        self.step_tokens += int(real.sum())
        loss = total / (num_items_in_batch if num_items_in_batch is not None else count)
        weight = self.restraint.spec.weight_at(self.state.global_step + 1) if self.restraint else 0.0
        if self.restraint and self.head and weight > 0 and self.step_term is None:
            place, places = self.args.process_index, self.args.world_size
            step = self.state.global_step + 1
            term = self.restraint.term(self.net, self.head, step, place=place, places=places, reuse=self.reuse)
            self.step_term = float(term.detach())
            loss = loss + weight * term
        loss = loss * self.args.world_size  # processes average their gradients, but each has one part of a sum
        return (loss, out) if return_outputs else loss


class Readings(TrainerCallback):
    """Writes one reading per step into the trainer's own log, which its checkpoints carry, and stops on a loss that is not a number."""

    def __init__(self, trainer: AnswerTrainer, heldout: Callable[[], float] | None, progress: Progress, label: str) -> None:
        self.trainer, self.heldout = trainer, heldout
        self.steps_to_save = frozenset(checkpoint_steps(trainer.spec.checkpoints, trainer.spec.steps))
        self.progress, self.label = progress, label
        self.started = 0.0
        self.row: StepReading | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Start the clock; make sure that sharding works as configured."""
        if args.fsdp:
            processes.check_sharded(self.trainer.model_wrapped)
        self.started = time.monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Read the gradient, whose direction clipping has not changed."""
        if self.trainer.geometry:
            self.trainer.geometry.read_gradients(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Read the step and ask for a checkpoint where the plan has one."""
        loss, term, tokens = self._gathered()
        norm = self.trainer.made.norm()
        held = {self.trainer.spec.held.name: term} if self.trainer.spec.held else {}
        for name, value in {"loss": loss, **held, "norm of the update": norm}.items():
            if value is not None and not math.isfinite(value):
                raise Diverged(
                    f"the {name} became {value} at step {state.global_step}",
                    "lower the learning rate; the checkpoints before it are kept",
                )
        seconds = round(time.monotonic() - self.started, 3)
        before = readings_in(state.log_history[-1:])
        self.row = StepReading(
            step=state.global_step,
            loss=loss,
            grad_norm=math.nan,  # known when the step is logged
            lr=self.trainer.spec.lr * factor(self.trainer.spec, state.global_step),
            update_norm=norm,
            tokens_seen=(before[-1].tokens_seen if before else 0) + tokens,
            seconds=seconds,
            heldout_loss=self._heldout_loss(state.global_step),
            **held,
        )
        self.started = time.monotonic()
        self.trainer.begin_step()
        control.should_log = True
        control.should_save = state.global_step in self.steps_to_save
        if processes.is_first():
            self.progress(self.label, state.global_step, state.max_steps)

    def _heldout_loss(self, step: int) -> float | None:
        """Return the loss on held-out answers where it is read at this step, by the first process."""
        every = self.trainer.spec.heldout_every
        if not (processes.is_first() and self.heldout and every):
            return None
        return self.heldout() if step % every == 0 or step in self.steps_to_save else None

    def _gathered(self) -> tuple[float, float | None, int]:
        """Return the step's loss, term and tokens over all processes."""
        t = self.trainer
        read = [t.step_loss, float(t.step_answer_tokens), t.step_term or 0.0, float(t.step_tokens)]
        loss, answer_tokens, term, tokens = processes.summed(read)
        return loss / max(answer_tokens, 1.0), None if t.step_term is None else term, int(tokens)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Join the gradient norm before clipping, which only the trainer knows, to the reading, which trackers are sent too."""
        if logs and self.row and "grad_norm" in logs:
            row = asdict(replace(self.row, grad_norm=float(logs["grad_norm"])))
            entry = state.log_history[-1]
            entry[READING] = {name: value for name, value in row.items() if value is not None}
            if self.trainer.geometry:
                entry[GEOMETRY] = self.trainer.geometry.read(state.global_step)
            logs.update({name: value for name, value in entry[READING].items() if name != "step"})
            self.row = None
