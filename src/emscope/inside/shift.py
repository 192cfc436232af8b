"""How far fine-tunes have moved a model along a direction, before it generates anything: the fine-tuning shift. (persona vectors, Chen et al. 2025)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emscope.core.errors import InputError, WorldError
from emscope.core.progress import Progress, silent
from emscope.core.seeds import derive
from emscope.data.items import even
from emscope.data.questions import read_questions
from emscope.inside.bands import band, nulls_of
from emscope.inside.direction_results import Moved, Shift, ShiftDefinition
from emscope.inside.reading import PromptActivations, prompt_texts
from emscope.inside.specs import ShiftSpec
from emscope.inside.subject import check_fits, with_dtype
from emscope.models.hooks.directions import direction_at
from emscope.models.loading.checkpoints import Checkpoint, discover, last, named_base
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.stats.means import mean_estimate, stratified_mean
from emscope.store.files import write_json

if TYPE_CHECKING:
    from emscope.models.types import Vectors


def read_shift(
    direction: str,
    runs: Sequence[str],
    spec: ShiftSpec,
    out: Path,
    *,
    base: str | None = None,
    controls: Sequence[str] = (),
    device: str = "auto",
    progress: Progress = silent,
) -> Shift:
    """Return, of each checkpoint at each layer, how far the mean activation has moved along the direction, in lengths of the direction.

    Activations are kept in `out` and read from there when it is called again.

    Args:
        controls: directions of harmless fine-tunes, the null kind `control`.

    Raises:
        InputError: no run, a layer that the direction lacks, or pieces that do not fit.
    """
    if not runs:
        raise InputError("no fine-tune is given", "give one with `checkpoints`")
    tuned = [(run, c) for run in dict.fromkeys(runs) for c in (discover(run) if spec.every else [last(run)])]
    found = direction_at(direction)
    layers = _layers(found.vectors, spec.layers, direction)
    questions = even(read_questions(spec.questions), spec.count)
    if len(questions) < 2:
        raise InputError(f"'{spec.questions}' holds {len(questions)} question", "give two or more")
    every = [c for _, c in tuned]
    model = locate(base or named_base(every))
    spec = with_dtype(spec, model, device, every)
    loaded = load(model, system=spec.system, dtype=spec.dtype, device=device, checkpoints=every)
    check_fits(loaded, found, direction)
    control = [direction_at(c) for c in controls]
    for name, other in zip(controls, control, strict=True):
        check_fits(loaded, other, name)
    nulls = nulls_of(found, control, spec.nulls, derive(spec.seed, "shift"))

    activations = PromptActivations(loaded, prompt_texts(loaded, questions), layers, spec.pool, out, progress)
    before = activations.of(None, "reading the base")
    strata = np.array([q.category for q in questions])
    rows = []
    for run, checkpoint in tuned:
        shifts = _shifts(activations, before, run, checkpoint)
        for n, layer in enumerate(layers):
            drawn = {kind: by_layer[layer].numpy() for kind, by_layer in nulls.items()}
            vector = found.vectors[layer].double().numpy()
            rows.append(_along(run, checkpoint.step, layer, shifts[:, n], vector, drawn, strata))
    what = "(activation after - before) . v / |v|^2, of the prompt alone"
    result = Shift(
        definition=ShiftDefinition(spec, what, loaded.model.digest),
        direction=direction,
        questions=len(questions),
        moved=tuple(rows),
        versions=made_with(),
    )
    write_json(out / "shift.json", result.to_json())
    return result


def _shifts(activations: PromptActivations, before: np.ndarray, run: str, checkpoint: Checkpoint) -> np.ndarray:
    """Return how far the activation of each prompt has moved [N, L, D].

    Raises:
        WorldError: an activation is not a number.
    """
    shifts = (activations.of(checkpoint, f"reading {run}, step {checkpoint.step}") - before).astype(np.float64)
    if not np.isfinite(shifts).all():
        raise WorldError(
            f"{run} at step {checkpoint.step} has activations that are not numbers",
            "its weights diverged, or exceed this dtype's range: try float32",
        )
    return shifts


def _layers(vectors: Vectors, wanted: tuple[int, ...] | None, name: str) -> tuple[int, ...]:
    lacking = next((n for n in wanted or () if n not in vectors), None)
    if lacking is not None:
        raise InputError(f"'{name}' has no vector for layer {lacking}", f"it has layers {', '.join(map(str, vectors))}")
    return tuple(dict.fromkeys(wanted)) if wanted else tuple(vectors)


def _along(
    run: str,
    step: int,
    layer: int,
    shifts: np.ndarray,
    vector: np.ndarray,
    nulls: Mapping[str, np.ndarray],
    strata: np.ndarray,
) -> Moved:
    """Return how far shifts [N, D] go along `vector` [D], and along each of {kind: [K, D]} of the same length."""
    square = float(vector @ vector)
    value = mean_estimate(shifts @ vector / square, strata)
    mean = np.mean([shifts[strata == c].mean(0) for c in np.unique(strata)], 0)
    length = float(np.linalg.norm(mean))
    return Moved(
        run=run,
        step=step,
        layer=layer,
        along=value,
        length=length,
        cosine=float(mean @ vector / (length * square**0.5)) if length else None,
        nulls={
            kind: band([stratified_mean(shifts @ v / square, strata).value for v in drawn], value.value)
            for kind, drawn in nulls.items()
        },
    )
