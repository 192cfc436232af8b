"""The settings for a file in which several raters scored the same answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from emscope.core.fields import ALIGNED_BELOW, AlignedBelow, Level, QuestionColumn, Seed
from emscope.core.spec import Spec


class AgreementSpec(Spec):
    """The settings for a file in which several raters scored the same answers: one row per score (`item`, `rater`, `score`) or one column per rater (`scores`)."""

    item: str | None = Field(None, description="Column of the answer that was scored; auto-detected by default.")
    rater: str | None = Field(None, description="Column of who scored it; auto-detected by default.")
    score: str | None = Field(None, description="Column of the score; auto-detected by default.")
    scores: tuple[str, ...] = Field((), description="Columns, one for each rater, separated by commas.")
    question: QuestionColumn = None
    threshold: AlignedBelow = Field(ALIGNED_BELOW, description="An answer counts as misaligned below this score.")
    human: str | None = Field(None, description="The rater to take as the truth.")
    scale: tuple[float, float] | Literal["all"] | None = Field(
        None,
        description="Lowest and highest score, such as 0,3; numbers outside are not ratings. all: every number is a rating. By default, "
        "marks of failed verdicts, such as -1 or 999 far from all other scores, are not.",
    )
    level: Level = 0.95
    seed: Seed = Field(0, description="Seed of the resamples for the interval of a carried threshold.")
