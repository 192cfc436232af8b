"""Do a fine-tune's shifts on other prompts lie where its shifts on training prompts lie, and does a prompt's place before predict it? (Zhang et al. 2026)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate, undefined
from emscope.core.progress import Progress, silent
from emscope.core.records import Message, Question
from emscope.core.seeds import derive
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.data.items import even, leading
from emscope.data.questions import read_questions
from emscope.inside.prompt_results import (
    Angles,
    OverlapCorrelations,
    PromptCounts,
    RandomOverlap,
    SubspaceAtK,
    SubspaceRow,
    Subspaces,
    SubspacesDefinition,
)
from emscope.inside.reading import PromptActivations, prompt_texts
from emscope.inside.specs import SubspaceSpec
from emscope.inside.subject import layers_of, with_dtype
from emscope.models.loading.checkpoints import last, named_base
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.represent.subspaces import (
    Subspace,
    check_rank,
    explained,
    mahalanobis,
    overlap,
    principal_angles,
    principal_subspace,
    random_subspace,
    similarity,
)
from emscope.stats.means import mean_estimate
from emscope.store.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

PEARSON = "Pearson over prompts, Fisher's z"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Which rows are which: training prompts that the subspace is made of, ones held out of it, and the other prompts, all [N] true or false."""

    fitted: np.ndarray
    held: np.ndarray
    other: np.ndarray
    strata: np.ndarray


def compare_subspaces(
    checkpoints: Sequence[str],
    spec: SubspaceSpec,
    out: Path,
    *,
    base: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Subspaces:
    """Return, of each run's last checkpoint at each layer, how its shifts on other prompts lie in the space of its training shifts.

    Activations are kept in `out` and read from there when it is called again.

    Raises:
        InputError: no checkpoint, k above what the training prompts span, or parts that do not fit together.
    """
    if not checkpoints:
        raise InputError("no fine-tune is given", "give one with `checkpoints`")
    tuned = {name: last(name) for name in checkpoints}
    train, other = _train_questions(spec), read_questions(spec.questions)
    train, other = leading(train, spec.count, what="training prompts"), even(other, spec.count)
    every = list(tuned.values())
    model = locate(base or named_base(every))
    spec = with_dtype(spec, model, device, every)
    loaded = load(model, system=spec.system, dtype=spec.dtype, device=device, checkpoints=every)
    layers = layers_of(loaded.net, spec.layers)
    texts = prompt_texts(loaded, [*train, *other])
    place = np.arange(len(texts))
    is_train = place < len(train)
    held = is_train & (place % spec.held == spec.held - 1)
    prompts = Prompts(is_train & ~held, held, ~is_train, np.array([q.category for q in other]))
    check_rank(max(spec.ks), min(int(prompts.fitted.sum()) - 1, loaded.net.config.get_text_config().hidden_size))

    activations = PromptActivations(loaded, texts, layers, spec.pool, out, progress)
    before = activations.of(None, "reading the base")
    rows, spaces = [], {}
    for name, checkpoint in tuned.items():
        shifts = activations.of(checkpoint, f"reading {name}") - before
        for n, layer in enumerate(layers):
            if not np.any(shifts[:, n]):
                rows.append(SubspaceRow(name, checkpoint.step, layer, 0.0))
                continue
            space = principal_subspace(_rows(shifts[prompts.fitted, n]))
            spaces[name, layer] = space
            read = before[:, n], shifts[:, n]
            rows.append(_described((name, checkpoint.step, layer), *read, space, prompts, spec))
    result = Subspaces(
        definition=SubspacesDefinition(spec, "activation after - before, of the prompt alone", loaded.model.digest),
        prompts=PromptCounts(int(prompts.fitted.sum()), int(prompts.held.sum()), int(prompts.other.sum())),
        shifts=tuple(rows),
        angles=tuple(_angles(spaces, list(tuned), layers, spec)),
        questions=tuple(q.id for q in other),
        versions=made_with(),
    )
    write_json(out / "subspaces.json", result.to_json())
    return result


def _train_questions(spec: SubspaceSpec) -> list[Question]:
    if spec.train in bundled.SETS:
        talks = bundled.domain(spec.train, bundled.SETS[spec.train].answers[0])
    else:
        talks = read_conversations(Path(spec.train))
    turns = [(t.id, t.messages[:-1] if t.messages[-1].role == "assistant" else t.messages) for t in talks]
    empty = next((id for id, messages in turns if not messages), None)
    if empty is not None:
        raise InputError(f"conversation '{empty}' of '{spec.train}' has no prompt", "leave out that row")
    return [Question(id, id, tuple(Message(m.role, m.content) for m in messages), "") for id, messages in turns]


def _described(
    where: tuple[str, int, int],
    before: np.ndarray,
    shifts: np.ndarray,
    space: Subspace,
    prompts: Prompts,
    spec: SubspaceSpec,
) -> SubspaceRow:
    """Return everything that Zhang et al. (2026) read from one checkpoint at one layer; `where`: run, step and layer; `before` and `shifts` are [N, D]."""
    start, moved = _rows(before), _rows(shifts)
    fitted, held, other = prompts.fitted, prompts.held, prompts.other
    alike = similarity(moved[other], moved[fitted].mean(0)).numpy()
    nearness = similarity(start[other], start[fitted].mean(0)).numpy()
    start_space = principal_subspace(start[fitted])
    width = shifts.shape[1]
    per_k = []
    for k in [k for k in spec.ks if k <= min(space.rank, start_space.rank)]:
        part, start_part = space.leading(k), start_space.leading(k)
        inside, start_inside = overlap(part, moved[other]).numpy(), overlap(start_part, start[other]).numpy()
        drawn = [
            float(overlap(random_subspace(part, derive(spec.seed, "subspaces", s)), moved[other]).mean())
            for s in range(spec.random_seeds)
        ]
        per_k.append(
            SubspaceAtK(
                k=k,
                overlap=mean_estimate(inside, prompts.strata),
                overlap_held=mean_estimate(overlap(part, moved[held]).numpy()),
                overlap_random=RandomOverlap(tuple(drawn), (k / width) ** 0.5),
                explained=mean_estimate(explained(part, moved[other]).numpy(), prompts.strata),
                mahalanobis=mean_estimate(mahalanobis(part, moved[other]).numpy(), prompts.strata),
                prompt_overlap=mean_estimate(start_inside, prompts.strata),
                r=OverlapCorrelations(pearson(inside, alike), pearson(start_inside, alike)),
                by_question=tuple(inside.tolist()) if k == max(spec.ks) else None,
            )
        )
    return SubspaceRow(
        *where,
        shift=float(moved[other].norm(dim=-1).mean()),
        shift_share=float(moved[other].norm(dim=-1).mean() / start[other].norm(dim=-1).mean()),
        similarity=mean_estimate(alike, prompts.strata),
        similarity_held=mean_estimate(similarity(moved[held], moved[fitted].mean(0)).numpy()),
        r_cosine=pearson(nearness, alike),
        ks=tuple(per_k),
        by_question=tuple(alike.tolist()),
    )


def pearson(x: np.ndarray, y: np.ndarray, *, level: float = 0.95) -> Estimate:
    """Return Pearson's r of two readings of the same prompts [N] with Fisher's interval; undefined where one does not vary.

    The interval takes prompts as drawn independently; categories of like prompts make it a little too narrow.
    """
    n = len(x)
    if n < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return undefined("fewer than four prompts, or one reading is the same for all", level=level, method=PEARSON, n=n)
    found = stats.pearsonr(x, y)
    low, high = found.confidence_interval(level)
    return Estimate(float(found.statistic), float(low), float(high), level, PEARSON, n, n)


def _angles(
    spaces: Mapping[tuple[str, int], Subspace], names: Sequence[str], layers: Sequence[int], spec: SubspaceSpec
) -> list[Angles]:
    """Return how far the training-shift subspaces of each two runs coincide: the mean squared cosine of their principal angles."""
    found = []
    for a, b in combinations(names, 2):
        for layer in layers:
            if (a, layer) in spaces and (b, layer) in spaces:
                one, two = spaces[a, layer], spaces[b, layer]
                for k in [k for k in spec.ks if k <= min(one.rank, two.rank)]:
                    cosines = principal_angles(one.leading(k), two.leading(k))
                    largest, shared = float(cosines[0]), float(cosines.square().mean())
                    found.append(Angles((a, b), layer, k, largest, shared, random=k / one.basis.shape[1]))
    return found


def _rows(values: np.ndarray) -> Tensor:
    """Return rows [N, D] in the precision in which subspaces are found."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(values)).double()
