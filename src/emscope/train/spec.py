"""What can be set about a fine-tune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emscope.core.spec import Spec


class LoraSpec(Spec):
    """Low-rank adapters. `modules` are name endings (`down_proj`) or `all-linear`; `layers` block numbers, None for all."""

    rank: int = Field(32, ge=1, le=4096)
    alpha: float = Field(64, gt=0)
    rslora: bool = True
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    layers: tuple[int, ...] | None = None


class PlanSpec(Spec):
    """When to save a checkpoint; step 1 and the last step always are. One of the three, or none for those two only."""

    every: int | None = Field(None, ge=1)
    log: int | None = Field(None, ge=2, description="this many checkpoints, log-spaced")
    at: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _one(self) -> PlanSpec:
        named = [name for name in ("every", "log", "at") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are both given; use one")
        return self


class TrainSpec(Spec):
    """A supervised fine-tune on responses only.

    `batch` examples make an optimiser step, `micro_batch` of them a forward pass (None: all). `warmup` counts steps where
    it is 1 or more, else it is a fraction. The loss is the mean over all answer tokens of the batch [nats].
    """

    steps: int = Field(36, ge=1)
    batch: int = Field(8, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    lr: float = Field(1e-4, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup: float = Field(2, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora: LoraSpec = LoraSpec()
    checkpoints: PlanSpec = PlanSpec(log=5)
    heldout_every: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> TrainSpec:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        late = [step for step in self.checkpoints.at or () if not 1 <= step <= self.steps]
        if late:
            raise ValueError(f"checkpoint at step {late[0]}, but the run has steps 1 to {self.steps}")
        return self

    @property
    def warmup_steps(self) -> int:
        """Warm-up in optimiser steps."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * self.steps)
