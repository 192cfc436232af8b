"""The errors emscope raises on purpose: one sentence with the bad value, one with the remedy.

Only the command line prints and exits; `exit_code` says how. Instances survive pickling (they cross process boundaries).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class EmscopeError(Exception):
    """Base of all deliberate errors.

    Args:
        fault: what is wrong, with the offending value in it.
        remedy: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(fault, remedy)
        self.fault = fault
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.fault}; {self.remedy}" if self.remedy else self.fault


class InputError(EmscopeError):
    """The user's input is wrong (exit code 2)."""

    exit_code = 2


class WorldError(EmscopeError):
    """The machine, the disk or the network is at fault (exit code 1)."""


class Diverged(WorldError):
    """A training whose loss or update is no number any more; what it saved before stays."""


class MissingDependency(InputError):
    """An optional package is not installed; the remedy is the install line."""


def near(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest known name, else the list of what exists."""
    names = sorted(known)
    match = get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"did you mean '{match[0]}'?"
    return "known: " + ", ".join(names) if names else "none is known"
