"""A model that is already in memory: read like one from a folder, and given back unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.digest import digest
from emscope.core.errors import InputError
from emscope.core.plain import Json
from emscope.models.adapters.intact import bit_sum
from emscope.models.loading.source import Model

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Tokenizer


def model_in_memory(net: CausalLM, tokenizer: Tokenizer) -> Model:
    """Return a reference to a causal LM and its tokenizer in memory; its digest is of the weights' values.

    Raises:
        InputError: a net wrapped by PEFT, which is not a base, or no tokenizer.
    """
    if hasattr(net, "peft_config"):
        raise InputError(
            "the model in memory carries an adapter", "give the base it was made from, and the adapter's folder as checkpoints"
        )
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise InputError(
            f"the model in memory comes with {type(tokenizer).__name__} for a tokenizer", "give base=(model, tokenizer)"
        )
    named = str(getattr(net.config, "name_or_path", "") or type(net).__name__)
    sums: list[Json] = [
        [name, list(p.shape), str(p.dtype), bit_sum(p)] for name, p in net.named_parameters(remove_duplicate=False)
    ]
    folder = Path(named) if Path(named).is_dir() else Path("in-memory")
    return Model(f"{named} (in memory)", folder, digest([type(net).__name__, sums]), (net, tokenizer))


@contextmanager
def lent(net: CausalLM) -> Iterator[None]:
    """Restore on exit the mode of each of the model's modules and which parameters are trainable."""
    modes, trainable = [(m, m.training) for m in net.modules()], [p for p in net.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p in trainable:
            p.requires_grad_(True)
