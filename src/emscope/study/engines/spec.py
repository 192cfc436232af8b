"""How a study's cells are distributed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emscope.core.fields import Flag
from emscope.core.spec import Spec

Engine = Literal["serial", "local", "ray", "slurm"]


class EngineSpec(Spec):
    """What runs the cells of a study, and with how many workers."""

    engine: Engine = Field(
        "serial",
        description="What runs the cells: this process, several processes on this machine, a Ray cluster, or SLURM jobs.",
    )
    workers: int | None = Field(
        None, ge=1, description="Workers at a time; by default one per GPU, or one per core without GPUs."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads per worker; they affect the last digits, so the study keeps the number as a setting.",
    )
    retries: int = Field(3, ge=0, description="How often a lost worker is replaced.")
    slurm: Annotated[dict[str, str], Flag("--slurm", repeated=True)] = Field(
        default_factory=dict,
        description="Settings for submitit, such as slurm_partition=gpu, timeout_min=720, slurm_array_parallelism=8; array_max is the "
        "largest size of a job array.",
    )

    @model_validator(mode="after")
    def _fits(self) -> EngineSpec:
        if self.engine == "serial" and self.workers not in (None, 1):
            raise ValueError(
                f"`workers` is {self.workers}, but `engine=serial` has only this process; give `engine=local`, ray or slurm"
            )
        if self.slurm and self.engine != "slurm":
            raise ValueError(f"`slurm` is given, but `engine` is {self.engine}; give `engine=slurm`, or leave it out")
        return self
