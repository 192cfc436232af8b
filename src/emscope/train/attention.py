"""Which attention a training uses, and whether it keeps examples apart that are laid end to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, MissingDependency
from emscope.models.sizing.tiny import tiny_model
from emscope.train.batches import Example, collate_packed
from emscope.train.spec import TrainSpec

if TYPE_CHECKING:
    from emscope.models.types import CausalLM

AS_LOADED, FLASH = "as_loaded", "flash_attention_2"
NAMES = {"eager": "eager", "sdpa": "sdpa", "flash": FLASH}  # as transformers calls them
EXACT, ROUNDED = 1e-4, 3e-2  # of the largest hidden state: in float32, in 16 bits
HALF = 2  # bytes


@contextmanager
def attending(net: CausalLM, attention: str) -> Iterator[None]:
    """Compute attention in the way named inside the block; `as_loaded` changes nothing."""
    before = net.config._attn_implementation
    if attention == AS_LOADED or before is None:
        yield
        return
    net.set_attn_implementation(NAMES[attention])
    try:
        yield
    finally:
        net.set_attn_implementation(before)


def check_attention(net: CausalLM, spec: TrainSpec, examples: Sequence[Example]) -> None:
    """Refuse an attention that is not there, and packing where examples would see each other.

    Raises:
        MissingDependency: flash-attn is not installed.
        InputError: the model does not have this attention, or packing is not exact on it.
    """
    if spec.attention == "flash":
        _check_flash(net, bf16=spec.bf16)
    try:
        with attending(net, spec.attention):
            if spec.packing:
                _check_packing(net, examples, spec.attention, spec.micro_batch or spec.batch)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"train.attention: {type(net).__name__} does not take '{spec.attention}' ({str(error).splitlines()[0]})",
            "leave it out, or choose another one",
        ) from None


def _check_flash(net: CausalLM, *, bf16: bool) -> None:
    if find_spec("flash_attn") is None:
        raise MissingDependency(
            "train.attention is flash, and flash-attn is not installed",
            "pip install flash-attn on a machine with a CUDA GPU, or leave train.attention out",
        )
    if net.device.type != "cuda" or (net.dtype.itemsize > HALF and not bf16):
        where = f"{str(net.dtype).removeprefix('torch.')} on {net.device.type}"
        raise InputError(
            f"train.attention is flash, which computes in 16 bits on a CUDA GPU, and the model is {where}",
            "set train.bf16 on a GPU, or leave train.attention out",
        )


def _check_packing(net: CausalLM, examples: Sequence[Example], attention: str, micro: int) -> None:
    """Compare the longest examples of a pass laid end to end with each by itself.

    What rounding to 16 bits would hide shows on a tiny copy of the model in float32.
    """
    longest = sorted(examples, key=lambda e: len(e.ids), reverse=True)[:micro]
    if len(longest) == 1:
        longest *= 2
    exact = net.dtype.itemsize > HALF
    apart = _apart(net, longest)
    if apart <= (EXACT if exact else ROUNDED) and not exact:
        copy = tiny_model(net.config)
        with attending(copy, attention if attention != "flash" else AS_LOADED):
            apart, exact = _apart(copy, longest), True
    if not apart <= (EXACT if exact else ROUNDED):
        raise InputError(
            f"train.packing: laid end to end, examples see each other in {type(net).__name__} (its last states move by {apart:.1e} of "
            "the largest)",
            "leave it out: batches are padded then",
        )


def _apart(net: CausalLM, examples: Sequence[Example]) -> float:
    """Return how far the last states of examples laid end to end are from those of each by itself, over the largest of all."""
    import torch

    laid = {name: values.to(net.device) for name, values in collate_packed(examples).items()}
    apart, size = 0.0, 0.0
    with torch.no_grad():
        packed = net.base_model(input_ids=laid["input_ids"], position_ids=laid["position_ids"], use_cache=False)
        parts = packed.last_hidden_state[0].float().split([len(e.ids) for e in examples])
        for example, found in zip(examples, parts, strict=True):
            ids = torch.tensor([example.ids], device=net.device)
            alone = net.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
            apart, size = max(apart, float((found - alone).abs().max())), max(size, float(alone.abs().max()))
    return apart / size
