"""What one hostile input is, and the registry of what makes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from attack.material import Material

CANARY = "canary"


@dataclass(frozen=True)
class Case:
    """One command on a hostile input.

    Attributes:
        words: its arguments. about: what is hostile, in words. keep: folders and files of the user that must be as before.
        out: where results go, if anywhere. stdin: nothing is read from it.
    """

    words: tuple[str, ...]
    about: str
    out: Path | None = None
    keep: tuple[Path, ...] = field(default=())


Maker = Callable[[Random, Path, Material], Case]
MAKERS: dict[str, dict[str, Maker]] = {}


def makes(group: str) -> Callable[[Maker], Maker]:
    """Register a maker of cases under its function's name."""

    def register(make: Maker) -> Maker:
        MAKERS.setdefault(group, {})[make.__name__] = make
        return make

    return register


def made(group: str, name: str, number: int, seed: int, folder: Path, material: Material) -> Case:
    """Return case `number` of one maker; the same for the same seed."""
    random = Random(zlib.crc32(f"{seed}/{group}/{name}/{number}".encode()))
    folder.mkdir(parents=True, exist_ok=True)
    return MAKERS[group][name](random, folder, material)
