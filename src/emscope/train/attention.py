"""Which attention a training uses, and whether examples that share a pass, packed or padded, are read as they are alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, MissingDependency
from emscope.models.sizing.tiny import tiny_model
from emscope.train import processes
from emscope.train.batches import Example, collate, collate_packed, real_tokens
from emscope.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM

    Collate = Callable[[Sequence[Example]], dict[str, Tensor]]

AS_LOADED, FLASH = "as_loaded", "flash_attention_2"
SDPA, SDPA_FLOAT32 = "sdpa", "emscope_sdpa_float32"
NAMES = {"eager": "eager", "sdpa": SDPA, "flash": FLASH}  # as transformers calls them
EXACT, ROUNDED = 1e-4, 3e-2  # of the largest hidden state: in float32, in 16 bits
HALF = 2  # bytes


@contextmanager
def attending(net: CausalLM, attention: str) -> Iterator[None]:
    """Compute attention in the way named inside the block, `as_loaded` as the model does.

    sdpa of 16 bits on a CPU is computed in float32: torch's gradient of it is 2 to 3 times as slow in bfloat16.
    """
    before = net.config._attn_implementation
    wanted = before if attention == AS_LOADED else NAMES[attention]
    if wanted == SDPA and net.device.type == "cpu" and net.dtype.itemsize <= HALF:
        wanted = SDPA_FLOAT32
        _register()
    if before is None or wanted == before:
        yield
        return
    net.set_attn_implementation(wanted)
    try:
        yield
    finally:
        net.set_attn_implementation(before)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if SDPA_FLOAT32 not in AttentionInterface._global_mapping:
        AttentionInterface.register(SDPA_FLOAT32, _sdpa_float32)
        AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)


def _sdpa_float32(
    module: Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: object
) -> tuple[Tensor, None]:
    """Compute transformers' sdpa attention on float32 copies; return it in the type of `query`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    mask = attention_mask.float() if attention_mask is not None and attention_mask.is_floating_point() else attention_mask
    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    found, _ = attend(module, query.float(), key.float(), value.float(), mask, **kwargs)
    return found.to(query.dtype), None


def check_attention(net: CausalLM, spec: TrainSpec, examples: Sequence[Example], near: Sequence[Example] = ()) -> None:
    """Reject an attention that is not available, and examples of one pass that would affect each other.

    Args:
        near: those on which the model is kept close to its start, which are padded.

    Raises:
        MissingDependency: flash-attn is not installed.
        InputError: the model does not have this attention, or reads examples differently when they are packed or padded.
    """
    if spec.attention == "flash":
        _check_flash(net, bf16=spec.bf16)
    micro = processes.share(spec.micro_batch or spec.batch)
    try:
        with attending(net, spec.attention):
            if micro > 1 and spec.packing:
                _check_packing(net, examples, spec.attention, micro)
            elif micro > 1:
                _check_padding(net, examples, spec.attention, "train.batch", "set train.micro_batch to 1")
            if spec.held and spec.held.batch > 1:
                held = f"train.{spec.held.name}.batch"
                _check_padding(net, near, spec.attention, held, f"set {held} to 1")
    except (ValueError, ImportError) as error:
        raise InputError(
            f"train.attention: {type(net).__name__} does not support '{spec.attention}' ({str(error).splitlines()[0]})",
            "leave it out, or choose another one",
        ) from None


def _check_flash(net: CausalLM, *, bf16: bool) -> None:
    if find_spec("flash_attn") is None:
        raise MissingDependency(
            "train.attention is flash, but flash-attn is not installed",
            "pip install flash-attn on a machine with a CUDA GPU, or leave train.attention out",
        )
    if net.device.type != "cuda" or (net.dtype.itemsize > HALF and not bf16):
        where = f"{str(net.dtype).removeprefix('torch.')} on {net.device.type}"
        raise InputError(
            f"train.attention is flash, which computes in 16 bits on a CUDA GPU, but the model is {where}",
            "set train.bf16 on a GPU, or leave train.attention out",
        )


def _check_packing(net: CausalLM, examples: Sequence[Example], attention: str, micro: int) -> None:
    """Compare the longest and the shortest examples of a pass, packed, with each alone.

    What rounding to 16 bits would hide shows on a tiny copy of the model in float32.
    """
    by_length = sorted(examples, key=lambda e: len(e.ids), reverse=True)
    together = [*by_length[: micro - 1], by_length[-1]]
    exact = net.dtype.itemsize > HALF
    apart = _apart(net, together, collate_packed)
    if apart <= (EXACT if exact else ROUNDED) and not exact:
        copy = tiny_model(net.config)
        with attending(copy, attention if attention != "flash" else AS_LOADED):
            apart, exact = _apart(copy, together, collate_packed), True
    if not apart <= (EXACT if exact else ROUNDED):
        raise InputError(
            f"train.packing: packed examples see each other in {type(net).__name__} (its last states change by {apart:.1e} of "
            "the largest)",
            "leave it out: batches are then padded",
        )


def _check_padding(net: CausalLM, examples: Sequence[Example], attention: str, name: str, remedy: str) -> None:
    """Compare examples of different lengths, padded in one pass, with each alone.

    Layers that keep a state may ignore the mask (RecurrentGemma, RWKV), and some rotary embeddings depend on the longest of a
    pass. Structure decides both: a tiny copy of the model in float32 shows them, without the rounding of the model itself, where
    one can be made.

    Args:
        name: of the setting that makes the batch. remedy: what makes passes of one example.
    """
    pairs = _unlike(examples)
    if not pairs:
        return
    lengths = [(e.answer, len(e.ids)) for pair in pairs for e in pair]
    known = (repr(net.config.to_dict()), str(net.config._attn_implementation), str(lengths))
    if known not in _PADDED:
        try:
            read, exact = tiny_model(net.config), True
        except InputError:
            read, exact = net, net.dtype.itemsize > HALF
        with attending(read, attention if attention != "flash" else AS_LOADED):
            apart = max(_apart(read, pair, collate) for pair in pairs)
        _PADDED[known] = apart, apart <= (EXACT if exact else ROUNDED)
    apart, same = _PADDED[known]
    if not same:
        raise InputError(
            f"{name}: {type(net).__name__} reads examples differently when they are padded to one length (its last states change by "
            f"{apart:.1e} of the largest)",
            f"{remedy}: then nothing is padded",
        )


_PADDED: dict[tuple[str, str, str], tuple[float, bool]] = {}  # what was found: a study checks each of its fine-tunes


def _unlike(examples: Sequence[Example]) -> list[tuple[Example, Example]]:
    """Return the longest example with the shortest, and the one with the longest prompt with that of the shortest: these need padding."""
    by_length, by_prompt = sorted(examples, key=lambda e: len(e.ids)), sorted(examples, key=lambda e: e.answer)
    pairs = dict.fromkeys([(by_length[-1], by_length[0]), (by_prompt[-1], by_prompt[0])])
    return [(a, b) for a, b in pairs if (a.answer, len(a.ids)) != (b.answer, len(b.ids))]


def _apart(net: CausalLM, examples: Sequence[Example], lay: Collate) -> float:
    """Return how far the last states of examples in one pass are from those of each alone, over the largest of all."""
    import torch

    laid = {name: values.to(net.device) for name, values in lay(examples).items() if name != "labels"}
    apart, size = 0.0, 0.0
    with torch.no_grad():
        states = net.base_model(
            input_ids=laid["input_ids"],
            attention_mask=laid.get("attention_mask"),
            position_ids=laid["position_ids"],
            use_cache=False,
        ).last_hidden_state
        together = states[real_tokens(laid)].float()
        for example, found in zip(examples, together.split([len(e.ids) for e in examples]), strict=True):
            ids = torch.tensor([example.ids], device=net.device)
            alone = net.base_model(input_ids=ids, use_cache=False).last_hidden_state[0].float()
            apart, size = max(apart, float((found - alone).abs().max())), max(size, float(alone.abs().max()))
    return apart / size
