"""The settings for judged answers to the same questions before and after fine-tuning."""

from __future__ import annotations

from pydantic import Field

from emscope.core.fields import AlignedColumn, CoherentColumn, Level, QuestionColumn, Scale, Seed
from emscope.core.spec import Spec


class ShiftsSpec(Spec):
    """The settings for judged answers to the same questions before and after fine-tuning."""

    group: str = Field(description="Column that tells the models apart; with several files, use the column `file`.")
    before: str = Field(description="Its value for the model before fine-tuning.")
    after: tuple[str, ...] = Field(
        (), description="Its values for the models after it, separated by commas; all others by default."
    )
    within: tuple[str, ...] = Field((), description="Compare within each combination of these columns, such as model,dataset.")
    aligned: AlignedColumn = Field(None, description="Column of the score; by default that of alignment, auto-detected.")
    coherent: CoherentColumn = None
    question: QuestionColumn = None
    scale: Scale = None
    level: Level = 0.95
    seed: Seed = Field(0, description="Seed of the swaps within questions.")
