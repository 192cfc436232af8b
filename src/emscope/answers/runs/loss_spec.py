"""The settings for a table of runs with loss and alignment."""

from __future__ import annotations

from pydantic import Field

from emscope.core.fields import Level
from emscope.core.spec import Spec


class LossSpec(Spec):
    """The settings for a table of runs with loss and alignment. Every row is a run, or one checkpoint of it."""

    loss: str = Field(description="Column of the loss, in training or held out.")
    score: str = Field(description="Column of the score, such as mean alignment.")
    within: tuple[str, ...] = Field((), description="Columns that make the strata, such as model,dataset.")
    one_stratum: bool = Field(False, description="All rows are of one model and one data set, in place of `within`.")
    schedule: str | None = Field(
        None, description="Column of the schedule, or of any other setting, whose values are compared at equal loss."
    )
    level: Level = 0.95
