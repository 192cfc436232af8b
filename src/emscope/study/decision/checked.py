"""What a check says about one fine-tune, part by part; each part writes itself as the documented JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.core.estimate import Estimate
from emscope.core.outcomes import State, Verdict
from emscope.core.plain import FLAT, LEFT_OUT, Json, Result, named
from emscope.study.reading.arms import Measure
from emscope.study.reading.ladders import Standing

SCHEMA = "emscope.check/2"
UNREAD = "preference"  # key of the sentence that says why it was not read
RULE = "both: control - target, and base - target at equal base preference less the same on placebo pairs"


@dataclass(frozen=True, slots=True)
class Onset(Result):
    """The onset lies after step `after` and at the latest at step `by`.

    Attributes:
        target_moved, control_moved: base - arm at `by`, so that a movement of the control is not taken for the onset of harm;
            None where not compared.
    """

    after: int
    by: int
    target_moved: Estimate | None = field(default=None, metadata=LEFT_OUT)
    control_moved: Estimate | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Episode(Result):
    """A stretch that was surely em, by its first and last step."""

    first: int = field(metadata=named("from"))
    last: int = field(metadata=named("to"))


@dataclass(frozen=True, slots=True)
class ConvergenceBracket(Result):
    """The task was learned after step `after` (0: no checkpoint is surely below) and surely by step `by` (None: no checkpoint surely reaches it)."""

    after: int
    by: int | None


@dataclass(frozen=True, slots=True)
class Late(Result):
    """Whether misalignment came after the task was learned, by each measure of the task; None where that is not settled."""

    value: bool | None
    on_loss: bool | None
    on_margin: bool | None
    on_loss_why: str
    on_margin_why: str


@dataclass(frozen=True, slots=True)
class Stop(Result):
    """The checkpoint to ship.

    Attributes:
        retained: share of the task gain that it keeps. upper: simultaneous upper bound of each contrast [nats per token].
        avoidable: `retained` is surely at least, or surely below, `avoidable_threshold`; None: not settled, or nothing to avoid.
    """

    step: int
    retained: Estimate
    upper: Mapping[str, float]
    avoidable: bool | None
    avoidable_threshold: float


@dataclass(frozen=True, slots=True)
class Power(Result):
    """Chances that a study of this size finds an effect of two and of three deltas, and safety where there is none."""

    em_at_2_delta: float
    em_at_3_delta: float
    safe_at_0: float
    correlation: float


@dataclass(frozen=True, slots=True)
class Loss(Result):
    """Loss on the held-out answers [nats]."""

    per_token: float
    per_sequence: float


@dataclass(frozen=True, slots=True)
class Flattening(Result):
    """Slope of the target's margins on the base's, over items and over placebo pairs; None where the base's do not vary."""

    items: float | None = field(default=None, metadata=LEFT_OUT)
    placebo: float | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class CheckpointReading(Result):
    """One compared checkpoint.

    Attributes:
        state, sure: by bounds for this checkpoint alone, and by bounds that hold for all of them at once.
        effect: control - target, or `base_effect` without a control. base_effect: base - target at equal base preference.
        contrasts: plain differences by name. margin, misaligned_preference, truth: of the target. by_category: of the effect.
        items_to_settle: about how many items would settle an undetermined state; else None.
    """

    step: int
    loss: Loss | None
    train_loss: float | None
    gain: Estimate | None
    gain_margin: Estimate | None
    state: State
    sure: State
    effect: Estimate
    base_effect: Estimate
    flattening: Flattening
    contrasts: Mapping[str, Estimate]
    margin: Estimate
    misaligned_preference: Estimate
    truth: Estimate | None
    items_to_settle: int | None
    by_category: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class BaseReading(Result):
    """The untouched model."""

    margin: Estimate
    misaligned_preference: Estimate
    loss: Loss | None
    truth: Estimate | None


@dataclass(frozen=True, slots=True)
class Definition(Result):
    """What was measured, and the rule that decided.

    Attributes:
        delta: the threshold [nats per token]. calibrated: it is known how much is harm. placebo: pairs that were read.
        looks: readings that a search was allowed, by which the error of each is divided; None without one.
    """

    measure: Measure | None = field(metadata=FLAT)
    delta: float
    delta_source: str
    calibrated: bool
    one_sided_level: float
    onset_level: float
    rule: str
    placebo: int
    looks: int | None = None

    @classmethod
    def fields_of(cls, row: Mapping[str, Json]) -> Mapping[str, Json]:
        """Return the fields from the flat object; earlier versions did not name the behaviour and its options."""
        of = {"behaviour": "misalignment", "options": ["aligned", "misaligned"], **row}
        return {**row, "measure": of if "items" in row else None}


@dataclass(frozen=True, slots=True)
class TruthReading(Result):
    """Truthfulness at one step."""

    step: int
    state: State
    contrasts: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Truthfulness(Result):
    """Conclusions about the share of questions whose true answer is the most likely, by the rules of the main measure."""

    delta: float
    verdict: State
    onset: Onset | None
    episodes: tuple[Episode, ...]
    stop: int | None
    checkpoints: tuple[TruthReading, ...]


@dataclass(frozen=True, slots=True)
class Refusal(Result):
    """How far declining harmful requests is preferred to agreeing, at the last step of the target.

    Values are margins [nats per token] of declining over agreeing.

    Attributes:
        base, target: of harmful requests. contrasts: their differences by name; `base - target` above 0 is lost by the fine-tune.
        twins: base - target on the requests' harmless twins. told_apart: by how much the margin is larger on a harmful request than on its
            twin, of `base` and `target`; where the base's is not above 0, it has nothing to lose.
    """

    step: int
    requests: int
    base: Estimate
    target: Estimate
    contrasts: Mapping[str, Estimate]
    twins: Estimate
    told_apart: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class CheckResult(Result):
    """The answer for one fine-tune.

    Attributes:
        state: how the last compared checkpoint reads, None without one. delta: the threshold [nats per token].
        convergence: step at which the task was learned. text_loss: rise in loss on neutral texts [nats per token].
        why: a sentence by name for what is missing, and for what to know about the rest.
        refusal: an axis of its own, on which no verdict rests; None where it was not read.
        standing: among known runs of the base; None where none are known, with the reason in `why`.
    """

    schema: ClassVar[str | int | None] = SCHEMA

    base: str
    verdict: Verdict
    state: State | None
    scope: str
    delta: float
    onset: Onset | None
    episodes: tuple[Episode, ...]
    convergence: int | None
    convergence_bracket: ConvergenceBracket | None
    late: Late | None
    stop: Stop | None
    power: Power | None
    text_loss: Estimate | None
    why: Mapping[str, str]
    checkpoints: tuple[CheckpointReading, ...]
    unpaired_steps: tuple[int, ...]
    base_reading: BaseReading
    definition: Definition
    truthfulness: Truthfulness | None = None
    standing: Standing | None = None
    refusal: Refusal | None = None

    @property
    def unread(self) -> str | None:
        """Why preference was not read; None where it was."""
        return self.why.get(UNREAD)
