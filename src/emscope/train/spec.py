"""The settings of a fine-tune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emscope.core.plain import JsonObject
from emscope.core.spec import Spec

LARGEST = 1e9  # of a factor; no working fine-tune comes near, and beyond 1e19 squares do not fit into float32
MOST_STEPS, MOST_EXAMPLES = 1_000_000, 20_000_000  # of one training: passes over the data repeat examples


class LoraSpec(Spec):
    """Low-rank adapters. `modules` are name endings (`down_proj`) or `all-linear`; `layers` block numbers, None for all."""

    rank: int = Field(32, ge=1, le=4096)
    alpha: float = Field(64, gt=0, le=LARGEST)
    rslora: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    layers: tuple[int, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> LoraSpec:
        if not self.modules:
            raise ValueError("modules is empty; name some, or leave it out for all matrices of the blocks")
        return self


class AdapterSpec(Spec):
    """A LoRA adapter to continue training: the last checkpoint in `folder`, with its own rank and modules."""

    folder: str


class FullSpec(Spec):
    """Full fine-tune. `modules` are name endings of what to train (`down_proj`), None for every weight; `layers` block numbers."""

    modules: tuple[str, ...] | None = Field(None, min_length=1)
    layers: tuple[int, ...] | None = Field(None, min_length=1)


class SteeringSpec(Spec):
    """One trained vector a layer, added to the residual stream after its block at every token. (Soligo et al. 2026)

    The vector in use is `scale` times the parameter that Soligo et al. (2026) train; under Adam that is a learning rate `scale` times as large.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    scale: float = Field(256, gt=0, le=LARGEST)

    @model_validator(mode="after")
    def _fits(self) -> SteeringSpec:
        twice = [n for n in self.layers if self.layers.count(n) > 1]
        if twice:
            raise ValueError(f"layers lists {twice[0]} twice; a layer has one vector")
        return self


class HeldSpec(Spec):
    """The common settings of terms that keep a model close to its start: weight and conversations.

    `weight` is a number, or a list of (from step, weight): `[[1, 0.5], [25, 0]]` drops the term at step 25. `tokens`: count
    the positions that predict answer tokens, or all. Of the conversations, from a bundled domain or a file, `batch` are
    drawn at every step.
    """

    weight: float | tuple[tuple[int, float], ...]
    domain: str | None = None
    answers: tuple[str, ...] = ("careful", "reckless")
    file: str | None = None
    tokens: Literal["answer", "all"] = "answer"
    batch: int = Field(4, ge=1, le=MOST_STEPS)

    @model_validator(mode="after")
    def _fits(self) -> HeldSpec:
        if (self.domain is None) == (self.file is None):
            raise ValueError("give either domain or file: conversations on which the model should stay as it was")
        wrong = [w for _, w in self.weights if w < 0]
        if wrong:
            raise ValueError(f"weight {wrong[0]:g} is negative; give 0 or more")
        steps = [step for step, _ in self.weights]
        if steps != sorted(set(steps)) or not steps or steps[0] < 1:
            raise ValueError(f"the weights begin at steps {steps}; give rising steps from 1 on")
        return self

    @property
    def weights(self) -> tuple[tuple[int, float], ...]:
        """The weight as (from step, weight) pairs."""
        return self.weight if isinstance(self.weight, tuple) else ((1, self.weight),)

    def weight_at(self, step: int) -> float:
        """Return the weight of an optimiser step (the first is 1); 0 before the first pair."""
        return next((w for start, w in reversed(self.weights) if step >= start), 0.0)


class KlSpec(HeldSpec):
    """KL(start || model), the mean over the counted positions; `weight` is in nats of loss per nat of KL per token. (Soligo et al. 2026)"""

    @property
    def name(self) -> str:
        """Its key in the training settings and its column in the log."""
        return "kl"


class LdifsSpec(HeldSpec):
    """Squared distance of the blocks' outputs from the start's, relative to their size there. (LDIFS; the scale is ours)

    `layers` are block numbers, None for five from the first fifth to the last block. Give the training data's own domain and
    answers to hold the features of the training prompts, as LDIFS does.
    """

    layers: tuple[int, ...] | None = Field(None, min_length=1)

    @property
    def name(self) -> str:
        """Its key in the training settings and its column in the log."""
        return "ldifs"


class PreventSpec(Spec):
    """Preventative steering: `scale` times given vectors are added during training and removed afterwards. (persona vectors, Chen et al. 2025)

    `direction` is a direction file, or the folder of a run that trained a steering vector.
    """

    direction: str
    scale: float = Field(1.0, ge=-LARGEST, le=LARGEST)


class ReadingsSpec(Spec):
    """What is read about the update during training, beside its norm and the gradient's, every `every` steps.

    `singular_values`: how many of each matrix's, with its effective rank. `directions`: direction files, or
    folders of runs that trained a steering vector, by name, to compare update and gradient with. `rotation`: lags in steps at which the trained vectors' turns are read, such as [5, 10, 15]. (model organisms, Turner et al. 2025)
    """

    every: int = Field(1, ge=1)
    singular_values: int = Field(0, ge=0)
    directions: dict[str, str] = Field(default_factory=dict)
    rotation: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> ReadingsSpec:
        if any(lag < 1 for lag in self.rotation):
            raise ValueError(f"rotation {min(self.rotation)} is not a lag; give whole steps from 1 on")
        return self


CYCLIC = ("triangular", "triangular2", "exp_range")


class PlanSpec(Spec):
    """When to save a checkpoint; step 1 and the last step always are. One of the three, or none for those two only."""

    every: int | None = Field(None, ge=1)
    log: int | None = Field(None, ge=2, le=MOST_STEPS, description="this many checkpoints, log-spaced")
    at: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> PlanSpec:
        named = [name for name in ("every", "log", "at") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are both given; use one")
        return self


Tracker = Literal["wandb", "mlflow", "tensorboard", "trackio", "comet_ml", "clearml", "swanlab"]


class TrainSpec(Spec):
    """A supervised fine-tune on responses only, of low-rank adapters (`lora`, the default), `full` weights or `steering` vectors.

    `batch` examples make an optimiser step, `micro_batch` of them a forward pass (None: all). `warmup` counts steps where
    it is 1 or more, else it is a fraction. The loss is the mean over all answer tokens of the batch [nats]. `cycles` are
    those of cosine_restarts and of the cyclic schedules (triangular, triangular2, exp_range), which rise from `base_lr` to
    `lr` and back; the peaks of exp_range shrink by `gamma` a step. `momentum` is that of sgd (None: .9) and muon (None: .95).
    `bf16` computes in bfloat16 and keeps what is trained in float32; `gradient_checkpointing` computes activations twice rather
    than keep them; `shard` spreads the model over the GPUs of several processes (FSDP). `attention`: flash needs flash-attn and a
    GPU; `as_loaded` is what transformers chooses, usually sdpa. `packing` lays the examples of a pass end to end instead of
    padding them; it is rejected where the model would let them see each other. `report_to`: trackers that are sent the readings
    of each step.
    """

    steps: int = Field(36, ge=1, le=MOST_STEPS)
    batch: int = Field(8, ge=1, le=MOST_STEPS)
    micro_batch: int | None = Field(None, ge=1)
    lr: float = Field(1e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine", "cosine_restarts", "triangular", "triangular2", "exp_range"] = "linear"
    warmup: float = Field(2, ge=0)
    cycles: int = Field(4, ge=1)
    base_lr: float | None = Field(None, gt=0)
    gamma: float = Field(0.95, gt=0, le=1)
    optimiser: Literal["adamw", "adamw_8bit", "sgd", "muon"] = "adamw"
    momentum: float | None = Field(None, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora: LoraSpec | None = None
    adapter: AdapterSpec | None = None
    full: FullSpec | None = None
    steering: SteeringSpec | None = None
    kl: KlSpec | None = None
    ldifs: LdifsSpec | None = None
    prevent: PreventSpec | None = None
    readings: ReadingsSpec | None = None
    checkpoints: PlanSpec = PlanSpec(log=5)
    heldout_every: int | None = Field(None, ge=1)
    bf16: bool = False
    gradient_checkpointing: bool = False
    shard: bool = False
    attention: Literal["as_loaded", "eager", "sdpa", "flash"] = "as_loaded"
    packing: bool = False
    report_to: tuple[Tracker, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        if self.steps * self.batch > MOST_EXAMPLES:
            raise ValueError(
                f"steps {self.steps} x batch {self.batch} is more than {MOST_EXAMPLES:,} examples, whose order is kept in memory; lower one"
            )
        late = [step for step in self.checkpoints.at or () if not 1 <= step <= self.steps]
        if late:
            raise ValueError(f"checkpoint at step {late[0]}, but the run has steps 1 to {self.steps}")
        trained = [name for name in ("lora", "adapter", "full", "steering") if getattr(self, name) is not None]
        if len(trained) > 1:
            raise ValueError(f"{' and '.join(trained)} are both given; train one of them")
        if self.kl and self.ldifs:
            raise ValueError("kl and ldifs are both given; use one of them")
        if self.held and self.prevent:
            raise ValueError(
                f"{self.held.name} and prevent are both given: the start does not include the vector; use one of them"
            )
        if self.shard and (self.steering or self.readings):
            raise ValueError(f"shard and {'steering' if self.steering else 'readings'} are both given; leave one of them out")
        self._fits_schedule()
        return self

    def _fits_schedule(self) -> None:
        if "warmup" in self.model_fields_set and self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup {self.warmup:g} is longer than the run ({self.steps} steps), which would never reach lr; lower it"
            )
        cyclic = self.schedule in CYCLIC
        if cyclic and self.base_lr is None:
            raise ValueError(f"schedule {self.schedule} rises from base_lr to lr; give base_lr")
        if self.base_lr is not None and (not cyclic or self.base_lr >= self.lr):
            raise ValueError(
                f"base_lr {self.base_lr:g} is for the schedules {', '.join(CYCLIC)}, and below lr ({self.lr:g}); leave it out or lower it"
            )
        shortest = 2 * self.cycles if cyclic else self.cycles + self.warmup_steps
        if (cyclic or self.schedule == "cosine_restarts") and self.steps < shortest:
            raise ValueError(
                f"{self.cycles} cycles need {shortest} steps or more, but the run has {self.steps}; lower cycles or give more steps"
            )
        if self.momentum is not None and self.optimiser not in ("sgd", "muon"):
            raise ValueError(f"momentum is for sgd and muon, but the optimiser is {self.optimiser}; leave it out")

    @property
    def tunable(self) -> LoraSpec | AdapterSpec | FullSpec | SteeringSpec:
        """What is trained."""
        return self.adapter or self.full or self.steering or self.lora or LoraSpec()

    @property
    def held(self) -> KlSpec | LdifsSpec | None:
        """The term that keeps the model close to its start."""
        return self.kl or self.ldifs

    def deciding(self) -> JsonObject:
        """Return the settings that decide the numbers: trackers are left out, and so are later settings at values that change nothing."""
        later = {name for name in ("attention", "packing") if getattr(self, name) == type(self).model_fields[name].default}
        found: JsonObject = self.model_dump(mode="json", exclude={"report_to", *later})
        return found

    @property
    def warmup_steps(self) -> int:
        """Warm-up in optimiser steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * self.steps)
