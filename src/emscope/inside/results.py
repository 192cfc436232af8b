"""Results of the jobs that compare models by their updates: trajectories, differences, solutions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, JsonObject, Result
from emscope.core.shown import Shown, flat
from emscope.inside.specs import DiffSpec, SolutionsSpec
from emscope.represent.compared import Efficiency, NormForHalf, Significance, Stability


@dataclass(frozen=True, slots=True)
class Axes(Result):
    """How the points of trajectories were made, and the digest of the base."""

    axes: str
    model: str


@dataclass(frozen=True, slots=True)
class Point(Result):
    """A checkpoint: its effective norm, its place on the main axes, and its cosine with the end of each run by name."""

    run: str
    step: int
    norm: float
    point: tuple[float, ...]
    cosine_with_end: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Trajectories(Shown):
    """The paths of fine-tunes; `shares`: of all updates' squared length that each axis holds."""

    schema: ClassVar[str] = "emscope.trajectories/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.trajectories:trajectory_figures"
    told_by: ClassVar[str] = "emscope.report.inside.trajectories:trajectories_said"

    definition: Axes
    shares: tuple[float, ...]
    checkpoints: tuple[Point, ...]
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each checkpoint: norm, place on each axis, and cosine with each run's end."""
        return [
            {
                "run": c.run,
                "step": c.step,
                "norm": c.norm,
                **{f"axis_{n}": value for n, value in enumerate(c.point, 1)},
                **{f"cosine_with_end_of_{run}": value for run, value in c.cosine_with_end.items()},
            }
            for c in self.checkpoints
        ]


@dataclass(frozen=True, slots=True)
class DiffDefinition(Result):
    """What was read from the two models, and how the divergence is defined."""

    settings: DiffSpec = field(metadata=FLAT)
    kl: str


@dataclass(frozen=True, slots=True)
class LayerDivergence(Result):
    """After a block: KL(base || fine-tune) [nats per token], and the share of places with the same most likely token."""

    layer: int
    kl: Estimate
    same_top: Estimate


@dataclass(frozen=True, slots=True)
class PositionDivergence(Result):
    """Divergence at one token of the answers, counted from 0."""

    place: int
    kl: Estimate


@dataclass(frozen=True, slots=True)
class TokenDivergence(Result):
    """Divergence at places where a token was written: its share of all divergence, how often it was seen, and the mean [nats]."""

    token: str
    share: float
    times: int
    mean: float


@dataclass(frozen=True, slots=True)
class PlaceDivergence(Result):
    """A single place: the text before and there, the likeliest token of both models, divergence, and how much likelier the text's own became [nats]."""

    text: str
    place: int
    after: str
    written: str
    base_says: str
    tuned_says: str
    kl: float
    gain: float


@dataclass(frozen=True, slots=True)
class ModuleUpdate(Result):
    """What the fine-tune adds to one module; `singular_values`: the largest."""

    module: str
    layer: int | None
    norm: float
    effective_rank: float
    singular_values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AdapterScalar(Result):
    """The scalar of a rank-1 adapter: weight in the fit, mean on both kinds of answers; `held`: what the margin gains when it is held at the former."""

    module: str
    weight: float
    aligned: float
    misaligned: float
    held: Estimate | None


@dataclass(frozen=True, slots=True)
class Scalars(Result):
    """How well the scalars of rank-1 adapters separate misaligned from aligned answers; `low`, `high`: AUC with labels shuffled."""

    auc: float
    low: float
    high: float
    weights: tuple[float, ...]
    adapters: tuple[AdapterScalar, ...]


@dataclass(frozen=True, slots=True)
class Diff(Shown):
    """What a fine-tune changes; `model`: digest of the base; `scalars`: None where the update is not of rank-1 adapters alone."""

    schema: ClassVar[str] = "emscope.diff/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.diff:diff_figures"
    told_by: ClassVar[str] = "emscope.report.inside.diff:diff_said"

    definition: DiffDefinition
    run: str
    step: int
    model: str
    items: int
    layers: tuple[LayerDivergence, ...]
    positions: tuple[PositionDivergence, ...]
    tokens: tuple[TokenDivergence, ...]
    places: tuple[PlaceDivergence, ...]
    update: tuple[ModuleUpdate, ...]
    scalars: Scalars | None
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each block."""
        return [flat(layer.to_json()) for layer in self.layers]


@dataclass(frozen=True, slots=True)
class SolutionsDefinition(Result):
    """What was compared, what stability is, and the mean effective norm of the general fine-tunes."""

    settings: SolutionsSpec = field(metadata=FLAT)
    stability: str
    unit_norm: float


@dataclass(frozen=True, slots=True)
class SolutionRun(Result):
    """One fine-tune: its side, `general` or `narrow`, and its effective norm."""

    side: str
    run: str
    step: int
    norm: float


@dataclass(frozen=True, slots=True)
class Solutions(Shown):
    """Why one of two kinds of fine-tune wins: efficiency, stability and significance; `base_loss`: of the held-out answers [nats per token]."""

    schema: ClassVar[str] = "emscope.solutions/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.solutions:solution_figures"
    told_by: ClassVar[str] = "emscope.report.inside.solutions:solutions_said"

    definition: SolutionsDefinition
    solutions: tuple[SolutionRun, ...]
    base_loss: Estimate
    efficiency: tuple[Efficiency, ...]
    norm_for_half: NormForHalf
    stability: tuple[Stability, ...]
    significance: tuple[Significance, ...]
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each estimate of the three tables: `what` it is, `at` which norm or amount, and of which `side` or difference."""
        found = [
            *(("loss", e.norm, e.loss.to_json() | e.to_json()) for e in self.efficiency),
            *(("rise of the loss", s.amount, s.to_json()) for s in self.stability),
            *(("divergence", s.norm, s.kl.to_json() | s.to_json()) for s in self.significance),
        ]
        return [
            flat({"what": what, "at": at, "side": side, "value": estimate})
            for what, at, estimates in found
            for side, estimate in estimates.items()
            if isinstance(estimate, dict) and "value" in estimate
        ]
