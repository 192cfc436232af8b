"""How a study's cells are shared out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emscope.core.fields import Flag
from emscope.core.spec import Spec

Engine = Literal["serial", "local", "ray", "slurm"]


class EngineSpec(Spec):
    """Who does the cells of a study, and with how many hands."""

    engine: Engine = Field(
        "serial",
        description="Who does the cells: this process, several processes of this machine, a Ray cluster, or jobs of a SLURM site.",
    )
    workers: int | None = Field(
        None, ge=1, description="How many at a time; by default one for each card, or for each core where there is none."
    )
    threads: int | None = Field(
        None, ge=1, description="CPU threads of each; it decides last digits, and is kept as a setting of the study."
    )
    retries: int = Field(3, ge=0, description="How often a worker that is lost is replaced.")
    slurm: Annotated[dict[str, str], Flag("--slurm", repeated=True)] = Field(
        default_factory=dict,
        description="What submitit is told, such as slurm_partition=gpu, timeout_min=720, slurm_array_parallelism=8; array_max is the "
        "most jobs of one array.",
    )

    @model_validator(mode="after")
    def _fits(self) -> EngineSpec:
        if self.engine == "serial" and self.workers not in (None, 1):
            raise ValueError(f"`workers` is {self.workers}, and this process is alone; give `engine=local`, ray or slurm")
        if self.slurm and self.engine != "slurm":
            raise ValueError("`slurm` is given, and the engine is another; give `engine=slurm`, or leave it out")
        return self
