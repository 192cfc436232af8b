"""The memory of a deep model, counted from two shallow ones with the same blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emscope.models.types import Config

SHALLOW = 3, 6  # blocks of the two models that a deep one is counted from
UNLIKE = (
    "first_k_dense_replace",
    "mlp_only_layers",
    "num_kv_shared_layers",
    "moe_layers",
    "no_rope_layers",
)  # blocks of several kinds


def at_depth(config: Config, taken: Callable[[Config], tuple[int, ...]]) -> tuple[int, ...]:
    """Return what `taken` gives for a configuration.

    If its blocks are all of one kind, it comes from two shallow ones, since each block adds the same.
    """
    text = config.get_text_config()
    depth = int(text.num_hidden_layers)
    lists = [v for v in text.to_dict().values() if isinstance(v, list) and len(v) == depth]
    alike = all(len({repr(one) for one in v}) == 1 for v in lists)
    few, more = SHALLOW
    if depth <= more or not alike or any(getattr(text, name, None) for name in UNLIKE):
        return taken(config)
    low, high = taken(shallow(config, few)), taken(shallow(config, more))
    return tuple(b + (b - a) * (depth - more) // (more - few) for a, b in zip(low, high, strict=True))


def shallow(config: Config, depth: int) -> Config:
    """Return the configuration with its first `depth` blocks alone."""
    made = copy.deepcopy(config)
    text = made.get_text_config()
    before = int(text.num_hidden_layers)
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == before:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth
    return made
