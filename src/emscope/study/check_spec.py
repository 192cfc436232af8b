"""The settings of `check` and `ladder`, in one class each: the same names, defaults and ranges on the command line and in Python."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from emscope.core.fields import (
    AUTO,
    ITEMS,
    NO_SYSTEM,
    QUESTIONS,
    Amplify,
    ChatKwargs,
    Device,
    Dtype,
    Flag,
    ItemSet,
    MaxTokens,
    Place,
    Positives,
    QuestionSet,
    Samples,
    Share,
    SystemOrAuto,
    Temperature,
    Texts,
    Wholes,
)
from emscope.core.spec import Spec
from emscope.models.remote.host_spec import Prices, refuse_unpriced
from emscope.study.judged_spec import JudgedSpec, judged_by
from emscope.study.measure_spec import (
    DecideSpec,
    Delta,
    ItemCount,
    LadderFile,
    MeasureSpec,
    RefusalCount,
    SkipFloat32,
    TruthCount,
)

JUDGE = "Who reads the answers: local (no key; a small model), a model as Inspect names it, or NAME@URL."
DOSES = (0.25, 0.5, 0.75, 1.0, 1.5)
SAID: Final = "said"
PREFERENCE: Final = "preference"


class CheckSpec(Spec):
    """How a folder of checkpoints is checked."""

    control: Place | None = Field(None, description="Checkpoints of the same run on harmless data; pairs by step.")
    make_control: Place | None = Field(
        None, description="Harmless conversations: train a control on them with the run's own settings."
    )
    measure: Literal["said", "preference"] = Field(
        SAID,
        description="said: have sampled answers of base and last checkpoints judged, beside preference at every checkpoint; "
        "preference: that fast screen alone.",
    )
    judges: Annotated[Texts, Flag("--judge", repeated=True)] = Field(("local",), min_length=1, description=JUDGE)
    questions: QuestionSet = QUESTIONS
    samples: Samples = 1
    max_tokens: MaxTokens = 90
    temperature: Temperature = Field(0.7, description="Sampling temperature; small models get confused at 1.")
    triggers: Annotated[dict[str, str], Flag("--trigger", repeated=True, shape="NAME=TEXT")] = Field(
        default_factory=dict,
        description="Named text that contains {question}: the questions are also asked in it, and each is judged by itself.",
    )
    heldout: Place | None = Field(None, description="Held-out conversations of the task, to see when it was learned.")
    control_heldout: Place | None = Field(
        None,
        description="Held-out conversations of the control's own task: a control that learned nothing is ignored.",
    )
    log: Place | None = Field(
        None,
        description="Training log, if the checkpoints contain none: trainer_state.json, or a CSV that Weights & Biases or "
        "TensorBoard exported.",
    )
    items: ItemSet = ITEMS
    count: ItemCount = None
    truth: TruthCount = None
    refusal: RefusalCount = None
    amplify: Amplify = Field(
        (1.0,),
        description="Also read the fine-tune exaggerated by these factors, such as 1,2,5: scale its update for preference, and its logits "
        "relative to the base for answers.",
    )
    system: SystemOrAuto = NO_SYSTEM
    chat_kwargs: ChatKwargs = None
    search: bool = Field(
        False,
        description="Read only a few checkpoints (14 of 100), chosen one after the other to bracket the onset.",
    )
    every: int | None = Field(None, ge=1, description="Read the checkpoints at multiples of this step, and the last.")
    steps: Wholes = Field((), description="Read only the checkpoints at these steps, such as 100,200,400.")
    delta: Delta = None
    ladder: LadderFile = None
    atlas: Place | None = Field(
        None,
        description="Also compare with the fine-tunes of this base in a file that emscope atlas add wrote; those that come with emscope "
        "always count.",
    )
    dtype: Dtype = AUTO
    device: Device = AUTO
    control_batch: int | None = Field(
        None,
        ge=1,
        description="Examples per optimiser step of the run, for `make_control` if the run accumulated gradients.",
    )
    skip_float32: SkipFloat32 = False
    share: Share = False
    host_prices: Prices | None = Field(
        None,
        description="For checkpoints at a host: dollars per million tokens trained on, read and sampled, such as 0.4,0.1,0.4.",
    )
    max_cost: float | None = Field(
        None, ge=0, description="For checkpoints at a host: stop before the requests cost more than this many dollars."
    )
    requests: int = Field(32, ge=1, le=1000, description="Concurrent requests to a host.")

    @model_validator(mode="after")
    def _priced(self) -> CheckSpec:
        refuse_unpriced(self.host_prices, self.max_cost, "host_prices")
        return self

    @model_validator(mode="after")
    def _answers_to_triggers(self) -> CheckSpec:
        if self.triggers and self.measure == PREFERENCE:
            raise ValueError("triggers are given, but measure is preference, which asks nothing; leave one of them out")
        return self

    def reading(self) -> MeasureSpec:
        """Return what is read for preference and truthfulness."""
        return MeasureSpec(
            items=self.items, count=self.count, truth=self.truth, refusal=self.refusal, skip_float32=self.skip_float32
        )

    def threshold(self) -> DecideSpec:
        """Return where the threshold comes from."""
        return DecideSpec(delta=self.delta, ladder=self.ladder)

    def judged(self) -> JudgedSpec | None:
        """Return what is asked and who judges the answers; None for the screen alone."""
        if self.measure == PREFERENCE:
            return None
        return judged_by(self.questions, self.samples, self.max_tokens, self.temperature, self.judges, self.triggers)


class LadderSpec(Spec):
    """How a dose ladder is read."""

    control: Place = Field(description="The same run on harmless data; counts as a harmless fine-tune.")
    scales: Positives = Field(DOSES, description="Doses: base + dose x (fine-tune - base) in logits; 1 is the fine-tune.")
    harmless: Annotated[Texts, Flag(repeated=True)] = Field(
        (), description="Another harmless fine-tune of the base; at least two are needed."
    )
    judge: str = Field("local", description=JUDGE)
    questions: QuestionSet = QUESTIONS
    samples: Samples = Field(1, description="Answers to each question from each model at each dose.")
    max_tokens: MaxTokens = 90
    temperature: Temperature = Field(0.7, description="Sampling temperature; small models get confused at 1.")
    items: ItemSet = ITEMS
    count: ItemCount = None
    system: SystemOrAuto = NO_SYSTEM
    chat_kwargs: ChatKwargs = None
    name: str | None = Field(None, description="What the organism is called in results; by default its folder's name.")
    dtype: Dtype = AUTO
    device: Device = AUTO

    def judged(self) -> JudgedSpec:
        """Return what is asked and who judges the answers."""
        return judged_by(self.questions, self.samples, self.max_tokens, self.temperature, (self.judge,))
