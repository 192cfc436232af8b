"""Results of the jobs on directions: their quality, their effects, cosines, how far models moved along them, and which samples push that way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, LEFT_OUT, JsonObject, Result, named
from emscope.core.shown import Shown, flat
from emscope.inside.specs import RiskSpec, ShiftSpec, SteerSpec


@dataclass(frozen=True, slots=True)
class Band(Result):
    """What null directions do; `p`: the share of them with as large an effect in either direction, counting the direction itself."""

    draws: tuple[float, ...]
    low: float
    high: float
    mean: float
    p: float | None


def bands_flat(nulls: Mapping[str, Band]) -> JsonObject:
    """Return the ends and the p-value of each band, under the names of their kinds."""
    return {f"{kind}_{name}": getattr(band, name) for kind, band in nulls.items() for name in ("low", "high", "p")}


@dataclass(frozen=True, slots=True)
class SidesSource(Result):
    """Where the two sides come from: items with two answers, judged answers, or two system texts; `minus`: digest of the model that was subtracted."""

    items: str | None = field(default=None, metadata=LEFT_OUT)
    half: str | None = field(default=None, metadata=LEFT_OUT)
    minus: str | None = field(default=None, metadata=LEFT_OUT)
    answers: str | None = field(default=None, metadata=LEFT_OUT)
    systems: tuple[str, ...] | None = field(default=None, metadata=LEFT_OUT)
    questions: str | None = field(default=None, metadata=LEFT_OUT)
    digest: str | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Made(Result):
    """How a direction was made; `checkpoint`: digest of the fine-tune that was read, None for the base; texts on either side."""

    method: str
    pool: str
    source: SidesSource = field(metadata=named("from"))
    checkpoint: str | None
    positive: int = field(metadata=named("with"))
    negative: int = field(metadata=named("without"))


@dataclass(frozen=True, slots=True)
class DirectionDefinition(Result):
    """How a direction was made, under which system prompt, in which dtype, and how the first token was handled."""

    made: Made = field(metadata=FLAT)
    system: str
    dtype: str
    token_0: str


@dataclass(frozen=True, slots=True)
class HalvesCosine(Result):
    """Cosine of the directions of two random halves: mean, and the range that holds 95 % of `splits` splits."""

    mean: float
    low: float
    high: float
    splits: int


@dataclass(frozen=True, slots=True)
class DirectionLayer(Result):
    """Length of the direction after a block, of the activations there, and how alike two halves are; None with too few questions."""

    layer: int
    norm: float
    residual_norm: float
    halves: HalvesCosine | None


@dataclass(frozen=True, slots=True)
class Direction(Shown):
    """A direction that was found; `direction`: the file with its vectors. `model`: digest of the base."""

    schema: ClassVar[str] = "emscope.direction/1"
    told_by: ClassVar[str] = "emscope.report.inside.directions:extracted_said"

    direction: str
    model: str
    definition: DirectionDefinition
    layers: tuple[DirectionLayer, ...]

    def rows(self) -> list[JsonObject]:
        """Return a row for each layer; `halves`: the mean cosine of two halves, with its range."""
        found = []
        for layer in self.layers:
            halves = layer.halves.to_json() | {"value": layer.halves.mean} if layer.halves else {"value": None}
            found.append(flat(layer.to_json() | {"halves": halves}))
        return found


@dataclass(frozen=True, slots=True)
class SteeringDefinition(Result):
    """What was tried, and what an effect is."""

    settings: SteerSpec = field(metadata=FLAT)
    effect: str


@dataclass(frozen=True, slots=True)
class TriedDirection(Result):
    """A direction, the run that it acts in (`base` for none), and its digest."""

    direction: str
    acts_in: str
    digest: str


@dataclass(frozen=True, slots=True)
class Dose(Result):
    """What acting at these layers with this strength does; `scale` is None where directions are taken out.

    Attributes:
        effect: margin lost, above 0 towards the behaviour [nats per token]; by_direction: of each direction.
        neutral: change of the log-probability of plain texts; neutral_kl: divergence on them [both nats per token].
        truth: change of the share of true answers. nulls: the effect of null directions, by kind.
    """

    layers: tuple[int, ...]
    scale: float | None
    effect: Estimate
    by_direction: tuple[float, ...]
    neutral: Estimate | None
    neutral_kl: Estimate | None
    truth: Estimate | None
    nulls: Mapping[str, Band]


@dataclass(frozen=True, slots=True)
class Steering(Shown):
    """What a direction does; `margin`, `truth`: of the model as it is."""

    schema: ClassVar[str] = "emscope.steered/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.directions:dose_figures"
    told_by: ClassVar[str] = "emscope.report.inside.directions:steered_said"

    definition: SteeringDefinition
    directions: tuple[TriedDirection, ...]
    margin: Estimate
    truth: Estimate | None
    doses: tuple[Dose, ...] = field(metadata=named("rows"))
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each place and strength, with the band of each kind of null."""
        return [{"layers": ",".join(map(str, d.layers))} | flat(d.to_json()) | bands_flat(d.nulls) for d in self.doses]


@dataclass(frozen=True, slots=True)
class LayerCosines(Result):
    """Cosines between all directions at a layer, and their lengths; `layer` is None for plain vectors."""

    layer: int | None
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class BetweenLayers(Result):
    """Cosines between the layers of one direction."""

    layers: tuple[int, ...]
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Cosines(Shown):
    """Directions compared; `random_sd`: standard deviation of the cosine of random directions of this width."""

    schema: ClassVar[str] = "emscope.cosines/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.directions:cosine_figures"
    told_by: ClassVar[str] = "emscope.report.inside.directions:compared_said"

    directions: tuple[str, ...]
    width: int
    random_sd: float
    layers: tuple[LayerCosines, ...]
    between_layers: Mapping[str, BetweenLayers]

    def rows(self) -> list[JsonObject]:
        """Return a row for each two directions at each layer."""
        return [
            {"layer": at.layer, "first": first, "second": self.directions[b], "cosine": at.cosines[a][b]}
            for at in self.layers
            for a, first in enumerate(self.directions)
            for b in range(a + 1, len(self.directions))
        ]


@dataclass(frozen=True, slots=True)
class ShiftDefinition(Result):
    """What was read, what a shift is, and the digest of the base."""

    settings: ShiftSpec = field(metadata=FLAT)
    shift: str
    model: str


@dataclass(frozen=True, slots=True)
class Moved(Result):
    """How far a checkpoint has moved at a layer.

    Attributes:
        along: the direction, in its lengths. length: of the mean shift. cosine: of that with the direction, None where nothing moved.
        nulls: `along` for null directions, by kind.
    """

    run: str
    step: int
    layer: int
    along: Estimate
    length: float
    cosine: float | None
    nulls: Mapping[str, Band]


@dataclass(frozen=True, slots=True)
class Shift(Shown):
    """How far fine-tunes have moved along a direction, over `questions` prompts."""

    schema: ClassVar[str] = "emscope.shift/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.directions:shift_figures"
    told_by: ClassVar[str] = "emscope.report.inside.directions:shift_said"

    definition: ShiftDefinition
    direction: str
    questions: int
    moved: tuple[Moved, ...] = field(metadata=named("rows"))
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each checkpoint at each layer, with the band of each kind of null."""
        return [flat(m.to_json()) | bands_flat(m.nulls) for m in self.moved]


@dataclass(frozen=True, slots=True)
class RiskDefinition(Result):
    """How a training set was ranked: its name, the layer, and the direction's digest."""

    settings: RiskSpec = field(metadata=FLAT)
    data: str
    layer: int
    direction: str


@dataclass(frozen=True, slots=True)
class WeighedSample(Result):
    """A training sample and its projection; `own`: the model's own answer, None where there was no comparison."""

    id: str
    projection: float
    question: str
    answer: str
    own: str | None


@dataclass(frozen=True, slots=True)
class DataRisk(Shown):
    """Which samples of a training set would push a model along a direction, most first; `mean`: of all projections."""

    schema: ClassVar[str] = "emscope.risk/1"
    told_by: ClassVar[str] = "emscope.report.inside.directions:risk_said"

    definition: RiskDefinition
    mean: Estimate
    share_above_0: float
    samples: tuple[WeighedSample, ...]

    def rows(self) -> list[JsonObject]:
        """Return a row for each sample, most first."""
        return [sample.to_json() for sample in self.samples]
