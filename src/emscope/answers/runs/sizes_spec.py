"""The settings for a table of models and their sizes."""

from __future__ import annotations

from pydantic import Field

from emscope.core.fields import Level, Seed
from emscope.core.spec import Spec


class SizesSpec(Spec):
    """The settings for a table of models and their sizes. Every row is a model, or a model on one data set (`within`)."""

    size: str = Field(description="Column of the number of parameters, such as 7e9 or 7B.")
    effect: str = Field(description="Column of the effect, such as a rate or a difference to the control.")
    family: str = Field(description="Column of the model family; each has its own intercept.")
    se: str | None = Field(None, description="Column of the effect's standard error; or give `low` and `high`.")
    low: str | None = Field(None, description="Column of the lower end of the effect's 95 % interval.")
    high: str | None = Field(None, description="Column of its upper end.")
    active: str | None = Field(
        None, description="Column of the active parameters, for a second line if models are mixtures of experts."
    )
    gain: str | None = Field(None, description="Column of the gain on the task: compare sizes at equal gain.")
    model: str | None = Field(None, description="Column of the model's name.")
    within: tuple[str, ...] = Field((), description="A line for each combination of these columns, such as dataset.")
    rho: float = Field(0.67, gt=0, lt=1, description="The correlation that power is computed for.")
    level: Level = 0.95
    seed: Seed = Field(0, description="Of the permutations.")
