"""Results on two kinds of solutions side by side: efficiency, stability and significance. (Soligo et al. 2026)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emscope.core.estimate import Estimate
from emscope.core.plain import Result, named


@dataclass(frozen=True, slots=True)
class BothSides(Result):
    """An estimate of the general fine-tunes and of the narrow ones, over items at these runs."""

    general: Estimate
    narrow: Estimate


@dataclass(frozen=True, slots=True)
class BothSidesAndRandom(Result):
    """As `BothSides`, beside random updates of their shapes."""

    general: Estimate
    narrow: Estimate
    random_general: Estimate = field(metadata=named("random general"))
    random_narrow: Estimate = field(metadata=named("random narrow"))


@dataclass(frozen=True, slots=True)
class ByRun(Result):
    """Values of single runs by name; None where there is none."""

    general: Mapping[str, float | None]
    narrow: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Efficiency(Result):
    """At one effective norm: held-out loss [nats per token], and what was gained per squared norm; `over_runs`: with runs as what is resampled."""

    norm: float
    loss: BothSides
    narrow_less_general: Estimate = field(metadata=named("narrow - general"))
    gain_per_squared_norm: BothSides
    by_run: ByRun
    over_runs: Estimate = field(metadata=named("narrow - general, over runs"))


@dataclass(frozen=True, slots=True)
class NormForHalf(Result):
    """The norm at which each run reaches `loss`, half of what the general ones have learned."""

    loss: float
    by_run: ByRun
    over_runs: Estimate = field(metadata=named("narrow - general, over runs"))


@dataclass(frozen=True, slots=True)
class Stability(Result):
    """Rise of the loss when weights are moved by `amount` [% of what was learned]."""

    amount: float
    general: Estimate
    narrow: Estimate
    by_run: ByRun
    over_runs: Estimate = field(metadata=named("narrow - general, over runs"))


@dataclass(frozen=True, slots=True)
class Significance(Result):
    """Divergence from the base on plain texts at one effective norm [nats per token]."""

    norm: float
    kl: BothSidesAndRandom
    general_less_narrow: Estimate = field(metadata=named("general - narrow"))
    general_over_narrow: Estimate = field(metadata=named("general / narrow"))
    by_run: ByRun
    over_runs: Estimate = field(metadata=named("general - narrow, over runs"))
