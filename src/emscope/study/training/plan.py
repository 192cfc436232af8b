"""A study expanded into runs: where each is read, and what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emscope.core.plain import Result
from emscope.data import bundled
from emscope.models.loading.checkpoints import Checkpoint, read_checkpoint
from emscope.study.arm_spec import ArmSpec
from emscope.study.spec import StudySpec, way
from emscope.train.plan import checkpoint_steps
from emscope.train.spec import TrainSpec


@dataclass(frozen=True, slots=True)
class Run:
    """One fine-tune of a study: an arm, trained by a method, at a seed. `way` is its name without the seed."""

    way: str
    arm: str
    spec: ArmSpec
    method: str
    train: TrainSpec
    seed: int
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """The run's name, and that of its folder."""
        return f"{self.way}-seed{self.seed}"


@dataclass(frozen=True, slots=True)
class LeftOut(Result):
    """A run that did not finish, and is in no comparison."""

    run: str
    why: str


def plan(spec: StudySpec) -> list[Run]:
    """Return the runs of a study in order."""
    variants = {
        method: (train, tuple(checkpoint_steps(train.checkpoints, train.steps))) for method, train in spec.variants().items()
    }
    return [
        Run(way(method, name), name, a, method, train, seed, steps)
        for seed in spec.seeds
        for method, (train, steps) in variants.items()
        for name, a in spec.arms.items()
        if a.methods is None or method in a.methods
    ]


def controls_of(runs: Sequence[Run]) -> dict[str, Run]:
    """Return the control for each run, by the run's name: the one with its seed and method, or with the first method that has one.

    Runs without a control are left out.
    """
    own: dict[tuple[int, str], Run] = {}
    first: dict[int, Run] = {}
    for one in runs:
        if one.spec.role == "control":
            own.setdefault((one.seed, one.method), one)
            first.setdefault(one.seed, one)
    found = {one.name: own.get((one.seed, one.method), first.get(one.seed)) for one in runs}
    return {name: control for name, control in found.items() if control is not None}


def read_steps(one: Run) -> tuple[int, ...]:
    """Return the steps at which a run is read."""
    return one.steps if one.spec.read_at == "all" else one.steps[-1:]


def taught(spec: StudySpec, a: ArmSpec) -> tuple[int, int]:
    """Return (own answer, counterpart) as option numbers of the held-out items."""
    assert spec.domain and a.task
    kinds = bundled.SETS[spec.domain].answers
    return kinds.index(a.task), kinds.index(bundled.counterpart(spec.domain, a.task))


def checkpoint(root: Path, one: Run, step: int) -> Checkpoint:
    """Return a run's checkpoint at a step, in the study folder `root`."""
    return read_checkpoint(root / "runs" / one.name / f"checkpoint-{step}", step)
