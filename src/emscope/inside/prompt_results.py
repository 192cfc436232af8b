"""Results of the jobs that read prompts: subspaces of shifts, and the prior probe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from emscope.core.estimate import Estimate
from emscope.core.plain import FLAT, LEFT_OUT, JsonObject, Result, named
from emscope.core.shown import Shown, flat
from emscope.inside.specs import ProbeSpec, SubspaceSpec


@dataclass(frozen=True, slots=True)
class SubspacesDefinition(Result):
    """What was compared, what a shift is, and the digest of the base."""

    settings: SubspaceSpec = field(metadata=FLAT)
    shift: str
    model: str


@dataclass(frozen=True, slots=True)
class PromptCounts(Result):
    """Training prompts that the subspace is made of, ones held out of it, and other prompts."""

    train: int
    held: int
    other: int


@dataclass(frozen=True, slots=True)
class RandomOverlap(Result):
    """Overlap with random subspaces, each and expected."""

    draws: tuple[float, ...]
    expected: float


@dataclass(frozen=True, slots=True)
class OverlapCorrelations(Result):
    """Pearson's r, over the other prompts, between an overlap and the similarity of a prompt's shift to the mean training shift."""

    overlap: Estimate
    prompt_overlap: Estimate


@dataclass(frozen=True, slots=True)
class SubspaceAtK(Result):
    """How far shifts on other prompts lie in the `k` main directions of the training shifts.

    Attributes:
        overlap: share of the shift's length inside; overlap_held: of training prompts held out. explained: share of the squared length.
        prompt_overlap: the same of the prompts' activations before the fine-tune. by_question: each overlap, at the largest k alone.
    """

    k: int
    overlap: Estimate
    overlap_held: Estimate
    overlap_random: RandomOverlap
    explained: Estimate
    mahalanobis: Estimate
    prompt_overlap: Estimate
    r: OverlapCorrelations
    by_question: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class SubspaceRow(Result):
    """A run's last checkpoint at one layer; where it changes nothing, `shift` is 0 and nothing else is there.

    Attributes:
        shift: mean length on the other prompts; shift_share: of the activations' length. similarity: cosine with the mean training shift.
        r_cosine: Pearson's r of that cosine with the cosine before the fine-tune.
    """

    run: str
    step: int
    layer: int
    shift: float
    shift_share: float | None = field(default=None, metadata=LEFT_OUT)
    similarity: Estimate | None = field(default=None, metadata=LEFT_OUT)
    similarity_held: Estimate | None = field(default=None, metadata=LEFT_OUT)
    r_cosine: Estimate | None = field(default=None, metadata=LEFT_OUT)
    ks: tuple[SubspaceAtK, ...] = ()
    by_question: tuple[float, ...] | None = field(default=None, metadata=LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Angles(Result):
    """How far the subspaces of two runs coincide: largest cosine of their principal angles, mean squared cosine, and that of random subspaces."""

    runs: tuple[str, str]
    layer: int
    k: int
    largest: float
    shared: float
    random: float


@dataclass(frozen=True, slots=True)
class Subspaces(Shown):
    """Where the shifts of fine-tunes lie; `questions`: ids of the other prompts, in the order of `by_question`."""

    schema: ClassVar[str] = "emscope.subspaces/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.subspaces:subspace_figures"
    told_by: ClassVar[str] = "emscope.report.inside.subspaces:subspaces_said"

    definition: SubspacesDefinition
    prompts: PromptCounts
    shifts: tuple[SubspaceRow, ...] = field(metadata=named("rows"))
    angles: tuple[Angles, ...]
    questions: tuple[str, ...]
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each run, layer and k; one without k where a run changes nothing."""
        found = []
        for shift in self.shifts:
            row = shift.to_json()
            about = flat({name: row.get(name) for name in ("run", "step", "layer", "shift", "shift_share")})
            alike = flat({name: row[name] for name in ("similarity", "similarity_held", "r_cosine") if name in row})
            found += [about | _at_k(at) | alike for at in shift.ks] or [about | {"k": None}]
        return found


def _at_k(at: SubspaceAtK) -> JsonObject:
    row = at.to_json()
    del row["by_question"]  # of each prompt, not of the run
    drawn = {"overlap_random": float(np.mean(at.overlap_random.draws)), "overlap_random_expected": at.overlap_random.expected}
    correlations = {"r_overlap": at.r.overlap.to_json(), "r_prompt_overlap": at.r.prompt_overlap.to_json()}
    return flat(row | drawn | correlations)


@dataclass(frozen=True, slots=True)
class Correction(Result):
    """How p-values are corrected, in words."""

    p_mean_adjusted: str
    p_permutation_adjusted: str
    over: str


@dataclass(frozen=True, slots=True)
class ProbesDefinition(Result):
    """What was probed: the column and file of the scores, what the features are, and how p-values are corrected."""

    settings: ProbeSpec = field(metadata=FLAT)
    score: str
    scores: str
    features: str
    corrected: Correction


@dataclass(frozen=True, slots=True)
class Predicted(Result):
    """How well one predictor does on held-out questions.

    Attributes:
        p_mean: against the training questions' mean. p_permutation: of shuffled scores, None without shuffles.
        r2_categories_left_out: R^2 with whole categories held out, None with a single one.
    """

    r2: Estimate
    p_mean: float
    p_permutation: float | None
    r2_categories_left_out: float | None


@dataclass(frozen=True, slots=True)
class Over(Result):
    """How much more a probe explains than a baseline; `p_adjusted`: corrected over all probes."""

    r2_difference: Estimate
    p: float
    p_adjusted: float | None


@dataclass(frozen=True, slots=True)
class Corrected(Result):
    """P-values of one probe corrected over all of them, and what it adds to each baseline by name."""

    p_mean_adjusted: float | None
    p_permutation_adjusted: float | None
    over: Mapping[str, Over]


@dataclass(frozen=True, slots=True)
class Probe(Result):
    """One probe: on which model, layer and directions (`pca`, or `random` of a seed), by which estimator, and its R^2."""

    model: str
    model_digest: str
    layer: int
    basis: str
    seed: int
    estimator: str
    found: Predicted = field(metadata=FLAT)
    corrected: Corrected = field(metadata=FLAT)


@dataclass(frozen=True, slots=True)
class Baseline(Result):
    """What can be predicted without the model: from the words (`text`) or the question's category."""

    name: str
    found: Predicted = field(metadata=FLAT)


@dataclass(frozen=True, slots=True)
class Probes(Shown):
    """What activations before a fine-tune say about its answers; of `questions` questions there are `prompts` forms."""

    schema: ClassVar[str] = "emscope.probe/1"
    drawn_by: ClassVar[str] = "emscope.report.inside.probe:probe_figures"
    told_by: ClassVar[str] = "emscope.report.inside.probe:probes_said"

    definition: ProbesDefinition
    questions: int
    prompts: int
    probes: tuple[Probe, ...] = field(metadata=named("rows"))
    baselines: tuple[Baseline, ...]
    versions: Mapping[str, str]

    def rows(self) -> list[JsonObject]:
        """Return a row for each probe, then one for each baseline, whose name is in `baseline`."""
        found = [{"baseline": None} | flat(probe.to_json()) | _over(probe.corrected) for probe in self.probes]
        return found + [{"baseline": b.name} | flat(b.found.to_json()) for b in self.baselines]


def _over(corrected: Corrected) -> JsonObject:
    found: JsonObject = {}
    for name, over in corrected.over.items():
        found |= flat({f"r2_over_{name}": over.r2_difference.to_json()})
        found |= {f"p_over_{name}": over.p, f"p_over_{name}_adjusted": over.p_adjusted}
    return found
