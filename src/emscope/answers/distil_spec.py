"""What is learned from a file of judged answers."""

from __future__ import annotations

from pydantic import Field

from emscope.core.fields import (
    ALIGNED_BELOW,
    COHERENT_ABOVE,
    AlignedBelow,
    AlignedColumn,
    AnswerText,
    CoherentAbove,
    CoherentColumn,
    DrawnColumn,
    QuestionText,
    Scale,
    Seed,
)
from emscope.core.spec import Spec


class DistilSpec(Spec):
    """How a classifier is fitted on a file of judged answers, and how it is tested."""

    split: str | None = Field(None, description="Column whose values are held out whole, such as run; the question by default.")
    group: tuple[str, ...] = Field((), description="Further columns to look for failures in, separated by commas.")
    aligned: AlignedColumn = None
    coherent: CoherentColumn = None
    question: QuestionText = None
    answer: AnswerText = None
    aligned_below: AlignedBelow = ALIGNED_BELOW
    coherent_above: CoherentAbove = COHERENT_ABOVE
    scale: Scale = None
    drawn: DrawnColumn = None
    seed: Seed = Field(0, description="Of the folds.")
