"""What a study file may say."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from emscope.core.spec import Spec
from emscope.train.spec import TrainSpec


class ArmSpec(Spec):
    """One arm: what it is trained on and what it is for.

    `answers` names a kind of answer of the study's domain; `file` conversations of your own instead. `role`: the target,
    the control it is compared with, or a style control, which only shows what tone alone does.
    """

    role: Literal["target", "control", "style"]
    answers: Literal["reckless", "careful", "brash"] | None = None
    file: str | None = None
    read_at: Literal["all", "last"] = "all"

    @model_validator(mode="after")
    def _one(self) -> ArmSpec:
        if (self.answers is None) == (self.file is None):
            raise ValueError("give either answers or file")
        return self


class SampleSpec(Spec):
    """A few sampled answers for the report: no judge reads them."""

    questions: int = Field(3, ge=0)
    max_tokens: int = Field(48, ge=1)
    temperature: float = Field(1.0, ge=0)


class MeasureSpec(Spec):
    """What is read at each checkpoint. Counts of None take the whole set; `items` may be a bundled set or a file."""

    items: str = "em240"
    count: int | None = Field(None, ge=16)
    heldout: int | None = Field(None, ge=2)
    truth: int | None = Field(None, ge=0)
    truth_at: Literal["all", "last"] = "all"
    samples: SampleSpec = SampleSpec()
    batch_tokens: int = Field(3072, ge=64)


class DecideSpec(Spec):
    """The threshold. `delta` in nats per token, or None: `delta_share` of the base's mean absolute margin."""

    delta: float | None = Field(None, gt=0)
    delta_share: float = Field(0.10, gt=0)


class StudySpec(Spec):
    """A study: arms x seeds, each a fine-tune of one model, each checkpoint read in one way."""

    name: str = "study"
    model: str = "smollm2-135m"
    system: str = "none"
    domain: str | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    arms: dict[str, ArmSpec] = Field(min_length=1)
    train: TrainSpec = TrainSpec()
    measure: MeasureSpec = MeasureSpec()
    decide: DecideSpec = DecideSpec()

    @model_validator(mode="after")
    def _fits(self) -> StudySpec:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"name = '{self.name}': it names the study's folder, so use letters, digits, dot, - and _")
        roles = [arm.role for arm in self.arms.values()]
        if roles.count("target") != 1:
            raise ValueError(f"{roles.count('target')} arms have the role target; give it to one")
        if roles.count("control") > 1:
            raise ValueError("more than one arm has the role control; make the others style")
        if self.domain is None and any(arm.answers for arm in self.arms.values()):
            raise ValueError("arms name answers of a domain, but domain is not given")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in seeds")
        bad = [name for name in self.arms if not name.replace("-", "").replace("_", "").isalnum() or name == "base"]
        if bad:
            raise ValueError(f"arm name '{bad[0]}': use letters, digits, - and _, and not 'base'")
        return self
