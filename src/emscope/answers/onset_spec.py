"""The settings for a file of values along training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emscope.core.fields import ALIGNED_BELOW, COHERENT_ABOVE, AlignedBelow, AlignedColumn, CoherentAbove, CoherentColumn, Scale
from emscope.core.spec import Spec


class OnsetSpec(Spec):
    """The settings for a file of values along training.

    Without `value` it is 1 where an answer is misaligned by the two thresholds, else 0. Without `unit` the rows of a step are one number; without
    `arm` and `control` the file is compared with its step 0.
    """

    step: str = Field("step", description="Column of the optimiser step; 0 is the base.")
    value: str | None = Field(None, description="Column that is higher where the model is more misaligned.")
    lower_is_worse: bool = Field(False, description="The value is lower where it is more misaligned.")
    unit: str | None = Field(None, description="Column of the question or item; without one there is no verdict.")
    arm: str | None = Field(None, description="Column of the arm.")
    control: str | None = Field(None, description="The arm's value for the control.")
    group: tuple[str, ...] = Field((), description="Columns that tell runs apart, separated by commas.")
    aligned: AlignedColumn = Field(None, description="Without `value`: column of the alignment score.")
    coherent: CoherentColumn = Field(None, description="Without `value`: column of the coherence score.")
    aligned_below: AlignedBelow = ALIGNED_BELOW
    coherent_above: CoherentAbove = COHERENT_ABOVE
    scale: Scale = Field(
        None, description="Without `value`: scale of the scores, 0-100, 0-10, 0-1, or p1 (0 aligned, 10 misaligned)."
    )
    delta: float | None = Field(None, gt=0, description="Threshold of the effect; the default depends on the value's scale.")
    rule: Literal["both", "p1"] = Field(
        "both",
        description="both: em if worse than control and base (step 0); p1: if worse than the control alone, as in that paper.",
    )
