"""Which checkpoints of a folder are read: all, named ones, every Nth, or the few that bracket the onset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emscope.core.errors import InputError
from emscope.core.outcomes import State
from emscope.models.loading.checkpoints import Checkpoint
from emscope.stats.search import looks, next_look

Runs = dict[str, list[Checkpoint]]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which checkpoints to read.

    Attributes:
        steps: only these; empty: all. every: those whose step is a multiple, and the last. search: a few, chosen by what they
            show.
    """

    steps: tuple[int, ...] = ()
    every: int | None = None
    search: bool = False

    def of(self, runs: Mapping[str, Sequence[Checkpoint]]) -> Runs:
        """Return the checkpoints of each run to read or to search.

        Raises:
            InputError: a step that the first run does not have, or two selections that exclude each other.
        """
        if self.steps and (self.every or self.search):
            raise InputError(
                "`steps` is given with `every` or `search`", "`steps` already names what to read: leave the other out"
            )
        if self.every is not None and self.every < 1:
            raise InputError(f"`every` is {self.every}", "give the number of steps between checkpoints, such as 50")
        first = next(iter(runs.values()))
        missing = sorted(set(self.steps) - {c.step for c in first})
        if missing:
            raise InputError(
                f"`steps` names step {missing[0]}, which does not exist", f"there are {_listed([c.step for c in first])}"
            )
        return {name: self.among(found) for name, found in runs.items()}

    def among(self, found: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the selected checkpoints of a run."""
        if self.steps:
            return [c for c in found if c.step in self.steps]
        return [c for c in found if self.every is None or c.step % self.every == 0 or c is found[-1]]


def common_steps(runs: Mapping[str, Sequence[Checkpoint]]) -> list[int]:
    """Return the steps that all runs have, in order."""
    shared = set.intersection(*({c.step for c in found} for found in runs.values()))
    return sorted(shared)


def at(runs: Mapping[str, Sequence[Checkpoint]], steps: Sequence[int]) -> Runs:
    """Return the checkpoints of each run at some steps."""
    return {name: [c for c in found if c.step in set(steps)] for name, found in runs.items()}


def searched(runs: Runs, read: Callable[[Runs, int], tuple[Sequence[State], State]], seed: int = 0) -> tuple[Runs, int]:
    """Read checkpoints one after the other, each chosen by what the others showed; return those that were read, and how many might have been.

    Args:
        read: reads the given checkpoints (those known already cost nothing) of which so many may be read in all, and returns the state of each by
            bounds that hold for all that may be read, and of the last one alone.

    Raises:
        InputError: the runs share no step.
    """
    steps = common_steps(runs)
    if not steps:
        raise InputError("target and control share no step", "give a control with checkpoints at the target's steps")
    allowed = looks(len(steps))
    seen: dict[int, State] = {}
    last: State | None = None
    while (place := next_look(len(steps), seen, last, seed)) is not None:
        places = sorted([*seen, place])
        sure, last = read(at(runs, [steps[n] for n in places]), allowed)
        seen = dict(zip(places, sure, strict=True))
    return at(runs, [steps[n] for n in sorted(seen)]), allowed


def _listed(steps: Sequence[int]) -> str:
    few = [str(s) for s in steps]
    return ", ".join(few) if len(few) <= 12 else f"{', '.join(few[:5])} … {few[-1]}"
