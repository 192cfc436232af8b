"""Dose ladders as files: what each says, which base and items it is for, and where a fine-tune falls on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.core.outcomes import Calibration
from emscope.core.plain import Json, Result, from_json, read_json
from emscope.models.loading.load import Loaded
from emscope.stats.ladder import BASE, dose
from emscope.study.reading.sets import EM, PLACEBO, ItemSets

SCHEMA = "emscope.ladder/1"
AGAIN = "make it again with emscope ladder"


@dataclass(frozen=True, slots=True)
class Measured(Result):
    """What preference was read on, and how the model was asked: a ladder is valid where all digests are equal.

    Attributes:
        n_items, placebo: items and placebo pairs that were read.
    """

    base: str
    base_digest: str
    chat: str
    chat_digest: str
    items: str
    n_items: int
    items_digest: str
    placebo: int
    placebo_digest: str

    def lacks(self, other: Measured) -> str | None:
        """Name the first thing in which `other` differs; None where a ladder on this is valid for it."""
        named = {
            "base": ("base_digest", f"it was made for the base {self.base}, and this base is {other.base}"),
            "chat": ("chat_digest", f"it was made with the chat format {self.chat}, and this format is {other.chat}"),
            "items": (
                "items_digest",
                f"it was made on {self.n_items} items of {self.items}, and these are {other.n_items} of {other.items}",
            ),
            "placebo": ("placebo_digest", f"it was made on {self.placebo} placebo pairs, and these are {other.placebo}"),
        }
        for key, words in named.values():
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                return f"{words} ({key} {mine[:12]} and {theirs[:12]})"
        return None


def measured(loaded: Loaded, sets: ItemSets) -> Measured:
    """Return what a check of this model on these items reads."""
    return Measured(
        loaded.model.reference,
        loaded.model.digest,
        loaded.chat.describe(),
        loaded.chat.digest,
        sets.em_name,
        len(sets.em),
        sets.digest(EM),
        len(sets.placebo),
        sets.digest(PLACEBO),
    )


@dataclass(frozen=True, slots=True)
class Harmless(Result):
    """A harmless fine-tune: its shift from the base, measured as base - target, and its mean margin [nats per token]."""

    name: str
    shift: float
    margin: float


@dataclass(frozen=True, slots=True)
class RungRead(Result):
    """The readings at one dose; contrasts by name, with 90 % intervals. `coherence_lost`: points of mean coherence below the base, by arm."""

    scale: float
    broken: bool
    judged: Mapping[str, Estimate] | None
    preference: Mapping[str, Estimate]
    coherence_lost: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FloorRead(Result):
    """The limit below which another harmless fine-tune stays with a chance of 95 %: the larger of both contrasts' limits [nats per token]."""

    value: float
    control: float
    base: float
    runs: int


@dataclass(frozen=True, slots=True)
class Asked(Result):
    """Who judged how many answers to what; `delta` points of mean alignment count as harm, `failed` verdicts never came."""

    judge: str
    questions: str
    samples: int
    max_tokens: int
    temperature: float
    delta: float
    answers: int
    failed: int


@dataclass(frozen=True, slots=True)
class LadderResult(Result):
    """What a ladder says.

    Attributes:
        delta: the resulting threshold [nats per token]; None where there is none, with the reason in `why`.
        scale, shown: the lowest dose with shown harm, and the smaller preference contrast there. floor: the floor set by harmless
            runs.
    """

    schema: ClassVar[str | int | None] = SCHEMA

    name: str
    status: Calibration
    delta: float | None
    scale: float | None
    shown: float | None
    floor: FloorRead | None
    why: str | None
    rungs: tuple[RungRead, ...]
    harmless: tuple[Harmless, ...]
    measured: Measured
    judged: Asked
    dtype: str
    operation: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Dose(Result):
    """The dose at which the known organism shifts from the base as far as a fine-tune: `value`, or None `above` the highest dose read."""

    of: str
    value: float | None
    above: bool


@dataclass(frozen=True, slots=True)
class MoreThan(Result):
    """How many `of` the known harmless fine-tunes moved less."""

    more_than: int
    of: int


@dataclass(frozen=True, slots=True)
class Standing(Result):
    """Where a fine-tune's shift from the base (at equal base preference, less placebo) stands among known runs of that base."""

    harmless: MoreThan
    dose: Dose | None


@dataclass(frozen=True, slots=True)
class Ladder:
    """A dose ladder as `emscope check` uses it.

    Attributes:
        name: of the known organism. delta: the threshold [nats per token]; None where the ladder gives none, with the reason in
            `why`.
        source: where delta comes from, in words.
        scales, shifts: doses that are not broken, ascending, and the organism's shift from the base at each. harmless: the
            harmless runs' shifts.
    """

    name: str
    measured: Measured
    status: Calibration
    delta: float | None
    source: str
    why: str | None
    scales: tuple[float, ...]
    shifts: tuple[float, ...]
    harmless: tuple[float, ...]

    def standing(self, shift: float) -> Standing | None:
        """Return where a fine-tune with this shift stands; None where no harmless run is known."""
        if not self.harmless:
            return None
        share = dose(shift, self.scales, self.shifts) if self.scales else None
        known = Dose(self.name, share, share is None) if self.scales else None
        return Standing(MoreThan(sum(h < shift for h in self.harmless), len(self.harmless)), known)


def ladder_for(path: str | None, loaded: Loaded, sets: ItemSets) -> Ladder | None:
    """Return the ladder in a file, or without a file the bundled ladder that fits; None where none does.

    Raises:
        InputError: the file is not a ladder, or a ladder for another base, chat format or item set.
    """
    wanted = measured(loaded, sets)
    if path is None:
        return next((one for one in shipped() if one.measured.lacks(wanted) is None), None)
    found = read_ladder(Path(path))
    if (lacks := found.measured.lacks(wanted)) is not None:
        raise InputError(
            f"the ladder '{path}' does not fit: {lacks}", "make one for this base, items and system prompt with emscope ladder"
        )
    return found


def shipped() -> Iterator[Ladder]:
    """Yield the ladders that come with emscope, made by bench/ladders.py."""
    folder = files("emscope.study") / "files" / "ladders"
    if folder.is_dir():
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            if file.name.endswith(".json"):
                yield _ladder(json.loads(file.read_text(encoding="utf-8")), file.name)


def read_ladder(path: Path) -> Ladder:
    """Return the ladder in a file, or in the folder into which `emscope ladder` wrote it.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return _ladder(_content(path), str(path))


def ladder_digest(path: str) -> str:
    """Return a digest of what a ladder's file holds.

    Raises:
        InputError: as `read_ladder`.
    """
    return short(_content(Path(path)))


def _content(path: Path) -> Json:
    file = path / "ladder.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no ladder '{file}'", "make one with emscope ladder")
    return read_json(file, AGAIN)


def _ladder(value: Json, where: str) -> Ladder:
    if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
        raise InputError(f"'{where}' is not an {SCHEMA} file", "give the ladder.json that this version of emscope ladder wrote")
    found = from_json(LadderResult, value, where, AGAIN)
    rungs = sorted((r for r in found.rungs if not r.broken), key=lambda r: r.scale)
    shifts = [r.preference[BASE].value if BASE in r.preference else None for r in rungs]
    if None in shifts or (found.delta is not None and (found.floor is None or found.shown is None)):
        raise InputError(
            f"'{where}' is damaged (a dose lacks its shift from the base, or the threshold lacks its floor)", AGAIN
        )
    return Ladder(
        found.name,
        found.measured,
        found.status,
        found.delta,
        _source(found),
        found.why,
        tuple(r.scale for r in rungs),
        tuple(shift for shift in shifts if shift is not None),
        tuple(h.shift for h in found.harmless),
    )


def _source(found: LadderResult) -> str:
    """Say where a ladder's threshold comes from; "" where it gives none."""
    if found.delta is None or found.shown is None or found.floor is None:
        return ""
    shown = f"{found.shown:.3f} at dose {found.scale:g}, the lowest with answers surely {found.judged.delta:g} points worse by {found.judged.judge}"
    above = "above" if found.shown >= found.floor.value else "raised to"
    return f"dose ladder of {found.name}: {shown}; {above} the {found.floor.value:.3f} set by {found.floor.runs} harmless fine-tunes"
