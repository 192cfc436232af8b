"""Plain LoRA adapters straight from their file: W + s B A, and the model as it was afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from emscope.core.errors import InputError
from emscope.models.checkpoints import WEIGHTS, Checkpoint, adapter_settings, check_tensors

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# These may differ from PEFT's defaults without changing what the adapter computes from A, B, r and lora_alpha.
HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "use_rslora", "lora_dropout", "fan_in_fan_out", "target_modules", "exclude_modules"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "megatron_core"),
}


def is_plain_lora(net: Any, settings: dict[str, Any], names: Sequence[str]) -> bool:
    """True where the adapter is W + s B A on linear layers and nothing else (no DoRA, biases, saved modules, tied outputs)."""
    from peft import LoraConfig

    if settings.get("peft_type") != "LORA" or settings.get("init_lora_weights") not in (True, False, "gaussian"):
        return False
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(r, int) or r < 1 or not isinstance(alpha, int | float):
        return False
    usual = LoraConfig().to_dict()
    special = [k for k, v in settings.items() if k not in HARMLESS and v != usual.get(k, object())]
    if special or not all(name.startswith(PREFIX) and name.endswith((A, B)) for name in names):
        return False
    modules = dict(net.named_modules())
    tied = net.get_input_embeddings().weight
    found = [modules[m] for m in {_module(name) for name in names} if m in modules]
    return all(type(m).__name__ in ("Linear", "Conv1D") and m.weight is not tied for m in found)


@contextmanager
def plain_lora(net: Any, checkpoint: Checkpoint, scale: float) -> Iterator[Any]:
    """Yield `net` with W + scale * s B A in the place of each adapted weight W; s = alpha / r, or alpha / sqrt(r) with rsLoRA.

    In float32 the sum is merged, which costs a pass nothing. In bfloat16 and float16 the sum of weights
    would be rounded, and with it most of a small update lost, so there B A x is computed beside W x.

    Raises:
        InputError: where the adapter was made for another model (a module is missing or a shape differs).
    """
    updates = _updates(net, checkpoint, scale)
    with (_merged if net.dtype.itemsize >= 4 else _beside)(updates):
        yield net


@dataclass(frozen=True, slots=True)
class _Update:
    """What is added to a module's matrix: s B A, with A [r, in] and B [out, r]; `turned` where the matrix is kept [in, out]."""

    module: Any
    a: Any
    b: Any
    s: float
    turned: bool


def _updates(net: Any, checkpoint: Checkpoint, scale: float) -> list[_Update]:
    from safetensors.torch import load_file

    settings = adapter_settings(checkpoint.folder)
    tensors = load_file(checkpoint.folder / WEIGHTS)
    modules = dict(net.named_modules())
    s = scale * settings["lora_alpha"] / (math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
    found = []
    for name in sorted({_module(name) for name in tensors}):
        if name not in modules:
            raise InputError(
                f"adapter '{checkpoint.folder}' has a tensor this base has no place for ({name})",
                "give the base it was trained on with --base",
            )
        weight = modules[name].weight
        turned = type(modules[name]).__name__ == "Conv1D"  # GPT-2 keeps its matrices [in, out]
        a, b = _pair(checkpoint, tensors, name, settings["r"], tuple(weight.shape), turned)
        found.append(_Update(modules[name], a.to(weight.device), b.to(weight.device), s, turned))
    return found


@contextmanager
def _merged(updates: Sequence[_Update]) -> Iterator[None]:
    import torch

    kept = [(u.module.weight, u.module.weight.data) for u in updates]
    try:
        with torch.no_grad():
            for u in updates:
                weight = u.module.weight
                a, b = u.a.to(weight.dtype), u.b.to(weight.dtype)
                left, right = (a.T, b.T) if u.turned else (b, a)
                weight.data = torch.addmm(weight.data, left, right, alpha=u.s)
        yield
    finally:
        for weight, value in kept:
            weight.data = value


@contextmanager
def _beside(updates: Sequence[_Update]) -> Iterator[None]:
    """Compute [W, sB] [x, A x] as one product: summed before it is rounded, so that nothing small is lost to the rounding of W x."""
    import torch

    def widened(u: _Update) -> Any:
        weight = u.module.weight.data.T if u.turned else u.module.weight.data
        a, wide = u.a.to(weight.dtype), torch.cat([weight, (u.s * u.b.float()).to(weight.dtype)], 1)

        def forward(x: Any) -> Any:
            both = torch.cat([x, torch.nn.functional.linear(x, a)], -1)
            return torch.nn.functional.linear(both, wide, u.module.bias)

        return forward

    changed = [u.module for u in updates if "forward" not in u.module.__dict__]
    assert len(changed) == len(updates), "somebody else's forward would be lost"
    try:
        with torch.no_grad():
            for u in updates:
                u.module.forward = widened(u)
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def check_lora_fits(net: Any, checkpoint: Checkpoint) -> None:
    """Refuse a LoRA adapter that was made for another model.

    Raises:
        InputError: a matrix it adapts is missing, or has another shape.
    """
    from safetensors import safe_open

    modules = dict(net.named_modules())
    with safe_open(checkpoint.folder / WEIGHTS, framework="pt") as file:
        for name in sorted(n for n in check_tensors(checkpoint.folder / WEIGHTS) if n.endswith((A, B))):
            side, module = (0 if name.endswith(B) else 1), modules.get(_module(name))
            size = None if module is None else _sizes(module)[side]
            held = file.get_slice(name).get_shape()[side]
            if size is None or held != size:
                found = f"is {size}" if size is not None else "does not exist"
                raise InputError(
                    f"adapter '{checkpoint.folder}' does not fit this base ({_module(name)} is {held} wide there, and here {found})",
                    f"give the base it was trained on{f', {checkpoint.base}' if checkpoint.base else ''}",
                )


def _sizes(module: Any) -> tuple[int | None, int | None]:
    """Return (outputs, inputs) of a matrix; GPT-2 keeps its matrices [in, out]."""
    if hasattr(module, "out_features"):
        return module.out_features, module.in_features  # also where 4-bit weights are stored flat
    weight = getattr(module, "weight", None)
    return (None, None) if weight is None or weight.ndim != 2 else (weight.shape[1], weight.shape[0])


def _pair(
    checkpoint: Checkpoint, tensors: dict[str, Any], name: str, r: int, shape: tuple[int, ...], turned: bool
) -> tuple[Any, Any]:
    """Return A [r, in] and B [out, r] of one module, checked against its weight."""
    a, b = tensors.get(PREFIX + name + A), tensors.get(PREFIX + name + B)
    outs, ins = reversed(shape) if turned else shape
    if a is None or b is None or tuple(a.shape) != (r, ins) or tuple(b.shape) != (outs, r):
        held = [tuple(x.shape) if x is not None else "missing" for x in (a, b)]
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base ({name} is {outs} x {ins}, its A and B are {held[0]} and {held[1]})",
            f"give the base it was trained on with --base{f' (it names {checkpoint.base})' if checkpoint.base else ''}",
        )
    return a, b


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
