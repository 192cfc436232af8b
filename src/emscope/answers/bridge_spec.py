"""The settings for a file in which two judges scored the same answers, at least in part."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emscope.core.fields import ALIGNED_BELOW, AlignedBelow, Flag, Level
from emscope.core.spec import Spec


class BridgeSpec(Spec):
    """The settings for a file in which two judges scored the same answers, at least in part. A rate's error is in percentage points."""

    old: Annotated[str, Flag("--from"), Field(description="Column of the judge to move from.")]
    new: Annotated[str, Flag("--to"), Field(description="Column of the judge to move to; empty where it has not scored.")]
    study: str = Field(description="Column of the run, data set or model, which is left out in turn.")
    below: AlignedBelow = Field(ALIGNED_BELOW, description="An answer counts as misaligned where the new score is lower.")
    within: float = Field(
        5.0, gt=0, description="The largest acceptable error, in points; with a larger one nothing is converted."
    )
    level: Level = 0.95
