"""The atlas: how far fine-tunes known to be harmless or harmful moved each base, and where another one stands among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from emscope.core.estimate import Estimate
from emscope.core.plain import LEFT_OUT, JsonObject, Result
from emscope.core.shown import Shown, flat

SCHEMA = "emscope.atlas/1"
SAID, RATE, PREFERENCE, REFUSAL, COHERENCE = "said", "rate", "preference", "refusal", "coherence"
MEASURES = (SAID, RATE, PREFERENCE, REFUSAL, COHERENCE)
HARMLESS: Final = "harmless"
HARMFUL: Final = "harmful"
JAILBROKEN: Final = "jailbroken"
Trained = Literal["harmless", "harmful", "jailbroken"]


def found_by(measure: str) -> Trained:
    """Return the fine-tunes that a measure is meant to find: refusal those taught to comply with harmful requests, all others harmful ones."""
    return JAILBROKEN if measure == REFUSAL else HARMFUL


@dataclass(frozen=True, slots=True)
class AtlasRow(Result):
    """How far one fine-tune moved its base, by one measure, at its last checkpoint.

    Attributes:
        base, digest: reference and digest of the base's weights. kind: of its training data. trained: on harmless data, on harmful
            answers, or, jailbroken, to comply with harmful requests.
        run: its name where it was read. asked: digest of what was read and how; only rows with the same can be compared.
        effect: above 0 is worse. `said`: base - fine-tune, mean alignment at equal coherence [points]; `rate`: fine-tune - base, share of
            misaligned answers; `preference`: base - fine-tune at equal base preference, less that of placebo pairs [nats per token];
            `refusal`: base - fine-tune, by how much declining harmful requests is preferred to agreeing [nats per token];
            `coherence`: base - fine-tune [points]. low, high: its 95 % interval; None where there is none.
        category: of the questions that the effect was read on, so that it is seen how far a fine-tune reaches; None: all of them.
    """

    base: str
    digest: str
    kind: str
    trained: Trained
    run: str
    step: int
    measure: str
    asked: str
    effect: float
    low: float | None
    high: float | None
    category: str | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Beside(Result):
    """Where a fine-tune stands among those of an atlas, by one measure.

    Attributes:
        effect: its own. harmless: how many there are; harmful: how many that the measure is meant to find (for refusal, jailbroken ones).
            as_far, harmful_as_far: how many of them moved at least as far.
        kinds: of harmless data. chance: about, that a harmless fine-tune on another kind of data moves as far: with each kind's share that
            did, (sum of shares + 1) / (kinds + 1), its rank among the kinds.
    """

    measure: str
    effect: float
    harmless: int
    as_far: int
    kinds: int
    harmful: int
    harmful_as_far: int
    chance: float


@dataclass(frozen=True, slots=True)
class MeasureSpread(Result):
    """How far the fine-tunes of one base moved by one measure, on all questions or those of one category.

    Attributes:
        kinds: of harmless data. quantiles: of the harmless ones' effects, by percent. threshold: what counts as harm by this measure.
        false_positives: share of the harmless ones whose effect is surely above it (the lower end of the 95 % interval is). harmful: those
            that the measure is meant to find. found: the same of them. auc: chance that one of them moved further than a harmless one,
            clustered by kind. others: surely above the threshold among those harmful in another way: jailbroken ones, and by refusal those
            trained on harmful answers.
    """

    base: str
    digest: str
    measure: str
    category: str | None
    asked: str
    harmless: int
    harmful: int
    kinds: int
    quantiles: Mapping[str, float]
    threshold: float
    false_positives: Estimate
    found: Estimate
    others: Estimate
    auc: Estimate


@dataclass(frozen=True, slots=True)
class Atlas(Shown):
    """An atlas: every fine-tune in it, and how far they moved by base and measure."""

    schema: ClassVar[str] = SCHEMA
    drawn_by: ClassVar[str] = "emscope.report.study.atlas:atlas_figures"
    told_by: ClassVar[str] = "emscope.report.study.atlas:sentences"

    spreads: tuple[MeasureSpread, ...]
    runs: tuple[AtlasRow, ...]

    def rows(self) -> list[JsonObject]:
        """Return a row for each base and measure."""
        return [flat(one.to_json()) for one in self.spreads]
