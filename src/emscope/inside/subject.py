"""The model that a job examines, and what must fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from emscope.core.errors import InputError
from emscope.core.fields import FLOAT32
from emscope.core.plain import JsonObject
from emscope.inside.specs import (
    DiffSpec,
    ExtractSpec,
    ProbeSpec,
    RiskSpec,
    ShiftSpec,
    SolutionsSpec,
    SteerSpec,
    SubspaceSpec,
)
from emscope.models.hooks.directions import Direction, check_direction
from emscope.models.hooks.sites import blocks, check_layers
from emscope.models.loading.checkpoints import Checkpoint, last, named_base
from emscope.models.loading.load import Loaded, load, pick_dtype
from emscope.models.loading.source import Model, locate

if TYPE_CHECKING:
    from emscope.models.types import CausalLM


S = TypeVar("S", ExtractSpec, ShiftSpec, SteerSpec, DiffSpec, ProbeSpec, SolutionsSpec, SubspaceSpec, RiskSpec)


def with_dtype(spec: S, model: Model, device: str, checkpoints: Sequence[Checkpoint] = (), *, scaled: bool = False) -> S:
    """Return the settings with `auto` resolved to the dtype for this model and its fine-tunes on this machine, so that results show it."""
    return spec.model_copy(update={"dtype": pick_dtype(spec.dtype, model, device, checkpoints, scaled=scaled)})


def frozen_settings(spec: S) -> JsonObject:
    """Return the settings that a continued folder must share; float32 is left out, as in folders from before there was a choice."""
    settings: JsonObject = spec.model_dump(mode="json")
    if spec.dtype == FLOAT32:
        del settings["dtype"]
    return settings


def load_subject(
    base: str | None, checkpoint: str | None, device: str, spec: S, others: Sequence[Checkpoint] = ()
) -> tuple[Loaded, Checkpoint | None, S]:
    """Return the base in memory, the last checkpoint of a run, None for the base itself, and the settings with the dtype; `others` must name that base too.

    Raises:
        InputError: neither is given, or the checkpoint names no base.
    """
    tuned: Checkpoint | None = last(checkpoint) if checkpoint else None
    if base is None and tuned is None:
        raise InputError("no model is given", "give `base`, or `checkpoint` that names its base")
    every = [*([tuned] if tuned else []), *others]
    model = locate(base or named_base(every))
    spec = with_dtype(spec, model, device, every)
    return load(model, system=spec.system, dtype=spec.dtype, device=device, checkpoints=every), tuned, spec


def check_fits(loaded: Loaded, direction: Direction, name: str) -> None:
    """Reject a direction of another shape, one made on another model, and one that points nowhere.

    Raises:
        InputError: naming both sides, or the layer.
    """
    check_direction(loaded.net, direction, name)
    if direction.model not in (loaded.model.digest, "not recorded"):
        raise InputError(
            f"'{name}' was made on model {direction.model[:12]}, but this is {loaded.model.digest[:12]}",
            "give the model that it was made on with `base`",
        )
    for layer, vector in direction.vectors.items():
        length = float(vector.double().norm())
        if not 0 < length < float("inf"):
            raise InputError(
                f"'{name}' has a vector of length {length:g} for layer {layer}", "it points nowhere: make it again"
            )


def layers_of(net: CausalLM, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the layers asked for, all of them by default.

    Raises:
        InputError: a layer that the model does not have.
    """
    check_layers(net, layers, "layers")
    return tuple(dict.fromkeys(layers)) if layers else tuple(range(len(blocks(net))))
