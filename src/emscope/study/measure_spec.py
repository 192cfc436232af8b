"""What is read at each checkpoint without a judge, and the threshold of the decision."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from emscope.core.fields import ITEMS, ItemSet, MaxTokens, Place, Temperature
from emscope.core.spec import Spec


class SampleSpec(Spec):
    """A few sampled answers for the report: no judge reads them."""

    questions: int = Field(3, ge=0)
    max_tokens: MaxTokens = 48
    temperature: Temperature = 1.0


# Shared by a study file and by `emscope check` and `emscope ladder`.
ItemCount = Annotated[
    int | None, Field(ge=16, description="Use this many items, drawn evenly from the categories; by default all.")
]
TruthCount = Annotated[
    int | None, Field(ge=0, description="Use this many truthfulness questions (0 for none); by default all 150.")
]
Delta = Annotated[
    float | None,
    Field(
        gt=0,
        description="Threshold in nats per token; by default a dose ladder's, else 10 % of the base's mean absolute margin, which decides nothing.",
    ),
]
LadderFile = Annotated[
    Place | None,
    Field(description="Take the threshold from this ladder.json of emscope ladder; `delta` comes before it."),
]


def _several(count: int | None) -> int | None:
    if count == 1:
        raise ValueError("an interval needs the spread between requests; give 2 or more, or 0")
    return count


RefusalCount = Annotated[
    int | None,
    Field(ge=0, description="Use this many harmful requests and their harmless twins (0 for none); by default all 60."),
    AfterValidator(_several),
]
SkipFloat32 = Annotated[
    bool,
    Field(description="With readings in 16 bits, do not also read a sample of items in float32 to see how far apart they are."),
]


class MeasureSpec(Spec):
    """What is read at each checkpoint. Counts of None take the whole set.

    `placebo` pairs of equal merit, where the set has some, say what form alone moves; as many as items unless told.
    `batch_tokens` to compute at once: None takes what suits the device. `neutral` texts, of the bundled `generic`, and
    `refusal` pairs, a harmful request and its harmless twin, are read at base and last steps: how well a model still handles anything
    else, and whether it still tells such requests apart.
    """

    items: ItemSet = ITEMS
    count: ItemCount = None
    placebo: int | None = Field(None, ge=0)
    heldout: int | None = Field(None, ge=2)
    truth: TruthCount = None
    truth_at: Literal["all", "last"] = "all"
    neutral: int | None = Field(25, ge=0)
    refusal: RefusalCount = None
    samples: SampleSpec = SampleSpec()
    batch_tokens: int | None = Field(None, ge=64)
    skip_float32: SkipFloat32 = False

    @model_validator(mode="after")
    def _enough(self) -> MeasureSpec:
        if self.neutral == 1:
            raise ValueError("neutral = 1: an interval needs the spread between texts; give 2 or more, or 0")
        if self.placebo is not None and 0 < self.placebo < 16:
            raise ValueError(f"placebo = {self.placebo}: a line through so few pairs says little; give 16 or more, or 0")
        return self


class DecideSpec(Spec):
    """The threshold: `delta`, else that of a dose ladder, given or one that comes with emscope, else `delta_share` of the base's mean absolute margin, which decides nothing."""

    delta: Delta = None
    ladder: LadderFile = None
    delta_share: float = Field(0.10, gt=0)
