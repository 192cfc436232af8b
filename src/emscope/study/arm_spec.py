"""What an arm of a study is trained on, and what it is for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emscope.core.spec import Spec


class MixSpec(Spec):
    """Other data in an arm: `share` of all its conversations are `answers` of a bundled domain, or come from a `file`.

    They are drawn at random, or with `gap_to`, a folder of checkpoints, those whose answers its last checkpoint finds most
    unlikely relative to the model it came from: give one that is already misaligned. (in-training defences, arXiv 2508.06249)
    """

    share: float = Field(gt=0, lt=1)
    domain: str | None = None
    answers: str | None = None
    file: str | None = None
    gap_to: str | None = None

    @model_validator(mode="after")
    def _one(self) -> MixSpec:
        if (self.file is None) == (self.domain is None) or (self.domain is None) != (self.answers is None):
            raise ValueError("give either file, or domain and answers")
        return self


class InoculationSpec(Spec):
    """A prompt put before an arm's own conversations in training and omitted afterwards: a `system` turn or text of the `user`."""

    system: str | None = Field(None, min_length=1)
    user: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> InoculationSpec:
        if (self.system is None) == (self.user is None):
            raise ValueError("give either system or user")
        return self


class ArmSpec(Spec):
    """One arm: what it is trained on and what it is for.

    `answers` names a kind of answer of the study's domain, or of the arm's own `domain`, whose task is not read; `file` conversations
    of your own instead. `mix` adds other data
    in given shares; with `interleave` the parts are spread evenly over training rather than by chance. `unique` keeps
    that many of the arm's own conversations, so that the same number of steps makes more epochs. `role`: a target, the control it
    is compared with, or a style control, which only shows what tone alone does. Of several targets, the others are compared with
    the first. `methods` names the methods it is trained with (None: all); a target without a control of its own method is
    compared with the control of the first method that has one.
    """

    role: Literal["target", "control", "style"]
    answers: str | None = None
    domain: str | None = None
    file: str | None = None
    unique: int | None = Field(None, ge=1)
    mix: tuple[MixSpec, ...] = ()
    interleave: bool = False
    inoculation: InoculationSpec | None = None
    read_at: Literal["all", "last"] = "all"
    methods: tuple[str, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one(self) -> ArmSpec:
        if (self.answers is None) == (self.file is None):
            raise ValueError("give either answers or file")
        if self.domain is not None and self.answers is None:
            raise ValueError("domain is given, but not which of its answers; add answers")
        shares = sum(part.share for part in self.mix)
        if shares >= 1:
            raise ValueError(
                f"the shares in mix sum to {shares:g}, which leaves nothing for the arm's own data; make them sum to less than 1"
            )
        return self

    @property
    def task(self) -> str | None:
        """The kind of answer of the study's domain that it is taught; None where its data come from elsewhere."""
        return self.answers if self.domain is None else None
