"""The model that a job looks into, and what must fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.hooks.directions import Direction, check_direction
from emscope.models.hooks.sites import blocks, check_layers
from emscope.models.loading.checkpoints import Checkpoint, last, named_base
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import locate

if TYPE_CHECKING:
    from emscope.models.types import CausalLM


def load_subject(
    base: str | None, checkpoint: str | None, device: str, system: str, others: Sequence[Checkpoint] = ()
) -> tuple[Loaded, Checkpoint | None]:
    """Return the base in memory and the last checkpoint of a run, None for the base itself; `others` must name that base too.

    Raises:
        InputError: neither is given, or the checkpoint names no base.
    """
    tuned = last(checkpoint) if checkpoint else None
    if base is None and tuned is None:
        raise InputError("no model is given", "give `base`, or `checkpoint` that names its base")
    every = [*([tuned] if tuned else []), *others]
    return load(locate(base or named_base(every)), system=system, device=device, checkpoints=every), tuned


def check_fits(loaded: Loaded, direction: Direction, name: str) -> None:
    """Refuse a direction of another shape, one that was made on another model, and one that points nowhere.

    Raises:
        InputError: naming both sides, or the layer.
    """
    check_direction(loaded.net, direction, name)
    if direction.model not in (loaded.model.digest, "not recorded"):
        raise InputError(
            f"'{name}' was made on model {direction.model[:12]}, and this is {loaded.model.digest[:12]}",
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
