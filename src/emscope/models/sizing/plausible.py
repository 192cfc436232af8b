"""Whether a configuration can belong to the weights beside it: rejected before anything of its size is built.

A configuration of a few bytes may ask for a million blocks, or for matrices of terabytes that would be drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.limits import TooMuch, bounded
from emscope.models.loading.prequantised import method_of
from emscope.models.loading.sharded import weight_files
from emscope.models.loading.tensors import check_tensors

if TYPE_CHECKING:
    from emscope.models.types import Config

SECONDS = 15.0  # of processor time to build a model without storage; the largest take two
SLACK = 2**26  # elements beyond what the files hold: buffers, and a head that is tied
A_BYTE = {True: 16, False: 2}  # elements that a byte can hold, quantised or not, a tied matrix counted twice
SIZES = (
    *("hidden_size", "intermediate_size", "moe_intermediate_size", "vocab_size", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "num_experts", "num_local_experts", "n_routed_experts"),
)
MEND = "fix config.json, or copy the whole model again"


def refuse_implausible_folder(folder: Path) -> None:
    """Reject a model's folder whose configuration asks for more than its weights hold.

    Raises:
        InputError: as `refuse_implausible`; not a configuration that transformers knows.
    """
    from emscope.models.sizing.memory import read_config

    files = weight_files(folder)
    tensors = sum(len(check_tensors(path)) for path in files)
    stored = sum(path.stat().st_size for path in files)
    refuse_implausible(read_config(folder), tensors, stored, f"{folder}/config.json", quantised=method_of(folder) is not None)


def refuse_implausible(config: Config, tensors: int, stored: int, what: str, *, quantised: bool = True) -> None:
    """Reject a configuration that asks for more than is stored.

    Args:
        tensors, stored: how many there are, and their bytes. what: whose configuration it is. quantised: a byte may hold several weights.

    Raises:
        InputError: naming the setting, or how many weights it asks for.
    """
    if (name := _not_a_number(config.to_dict())) is not None:
        raise InputError(f"'{what}' says that {name} is NaN", MEND)
    text = config.get_text_config()
    limits = {"num_hidden_layers": max(tensors, 1)} | dict.fromkeys(SIZES, 8 * stored)
    for name, most in limits.items():
        value = getattr(text, name, None)
        if isinstance(value, int) and not 0 <= value <= most:
            raise InputError(f"'{what}' says {name} is {value}, but the weights hold {tensors} tensors in {stored} bytes", MEND)
    wanted = _elements(config, what)
    if wanted > A_BYTE[quantised] * stored + SLACK:
        raise InputError(f"'{what}' asks for {wanted} weights, but only {stored} bytes are stored", MEND)


def _not_a_number(value: object, name: str = "") -> str | None:
    """Return the name of a setting that is NaN, with those that it is within; None where none is. Infinite ones are limits that some have."""
    if isinstance(value, float) and isnan(value):
        return name
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    found = (_not_a_number(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((one for one in found if one is not None), None)


def _elements(config: Config, what: str) -> int:
    """Return how many elements parameters and buffers of a configuration have; 0 where it cannot be built, which loading reports better."""
    import torch

    from emscope.models.sizing.simulated import whole_model

    try:
        with bounded(SECONDS), torch.device("meta"):
            net = whole_model(config)
    except TooMuch:
        raise InputError(f"'{what}' asks for a model that takes too long to build", MEND) from None
    except Exception:
        return 0
    return sum(t.numel() for held in (net.parameters(), net.buffers()) for t in held)
