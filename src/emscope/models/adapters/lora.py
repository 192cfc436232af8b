"""Plain LoRA adapters straight from their file: W + s B A, and the model as it was afterwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

from emscope.core.errors import InputError
from emscope.core.limits import TooMuch, bounded, reason, strangers
from emscope.core.plain import Json
from emscope.models.adapters.intact import bit_sum, check_unchanged
from emscope.models.fast.cpu_kernels import row_by_row
from emscope.models.hooks.sites import decoder_name
from emscope.models.loading.checkpoints import ADAPTER, WEIGHTS, Checkpoint, adapter_settings, check_tensors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, Matrix

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
SECONDS = 5.0  # of processor time to match name patterns against a model
LARGEST = 1e30  # largest factor of B A; float32 ends at 3e38
TOWER = re.compile(r"(?:model\.)?(?:vision_tower|vision_model|visual|multi_modal_projector)\.")
# These may differ from PEFT's defaults without changing what the adapter computes from A, B, r and lora_alpha.
HARMLESS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "fan_in_fan_out"),
    *("target_modules", "exclude_modules"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "megatron_core"),
}


def is_plain_lora(net: CausalLM, settings: Mapping[str, Json], names: Sequence[str]) -> bool:
    """True where the adapter is W + s B A on linear layers of `net`, none of them tied, and nothing else."""
    modules = dict(net.named_modules())
    found = [modules.get(m) for m in {_module(name) for name in renamed(net, names).values()}]
    tied = net.get_input_embeddings().weight
    return is_factored(settings, names) and all(is_matrix(m) and m.weight is not tied for m in found)


def is_matrix(module: Module | None) -> TypeGuard[Matrix]:
    """True for a linear layer, not for one whose weights are kept in few bits."""
    return type(module).__name__ in ("Linear", "Conv1D")


def is_factored(settings: Mapping[str, Json], names: Sequence[str]) -> bool:
    """True where an adapter adds s B A to matrices and does nothing else: no DoRA, biases, saved modules, or changed base (PiSSA)."""
    if settings.get("peft_type") != "LORA":
        return False
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(r, int) or r < 1 or not isinstance(alpha, int | float):
        return False
    return not special_settings(settings) and all(name.startswith(PREFIX) and name.endswith((A, B)) for name in names)


def special_settings(settings: Mapping[str, Json]) -> list[str]:
    """Return the settings by which a LoRA adapter does more than add s B A to matrices."""
    from peft import LoraConfig

    usual = LoraConfig().to_dict()
    begun = settings.get("init_lora_weights", True) in (True, False, "gaussian")
    # A setting unknown to this version of PEFT counts if it is switched on.
    special = [k for k, v in settings.items() if k not in HARMLESS and (v or None) != (usual.get(k) or None)]
    return special if begun else [*special, "init_lora_weights"]


def ranks_and_scales(settings: Mapping[str, Json], modules: Iterable[str]) -> dict[str, tuple[int, float]]:
    """Return by module the rank r of its A and B and what B A is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA.

    `rank_pattern` and `alpha_pattern` name modules that have a rank or an alpha of their own.

    Raises:
        InputError: a setting is invalid, or matching its patterns against all modules takes forever.
    """
    import peft.utils.other  # noqa: F401  takes longer than patterns may

    found, module = {}, ""
    try:
        with bounded(SECONDS):
            for module in modules:
                r = int(_of_module(module, settings, "r", "rank_pattern"))
                alpha = float(_of_module(module, settings, "lora_alpha", "alpha_pattern"))
                scale = alpha / (math.sqrt(r) if settings.get("use_rslora") else r)
                if not abs(scale) < LARGEST:  # also rejects infinity and NaN
                    raise ValueError(f"B A would be multiplied by {scale:g}")
                found[module] = r, scale
    except (TooMuch, ArithmeticError, AttributeError, KeyError, TypeError, ValueError, re.error, RecursionError) as error:
        raise InputError(
            f"an adapter's rank and alpha for {module} cannot be read ({reason(error)})",
            f"fix rank_pattern, alpha_pattern, r and lora_alpha in its {ADAPTER}",
        ) from None
    return found


def _of_module(module: str, settings: Mapping[str, Json], name: str, pattern: str) -> str | float:
    """Return a module's own value of a setting, where a pattern names the module, else the usual one."""
    from peft.utils.other import get_pattern_key

    own = settings.get(pattern) or {}
    if not isinstance(own, Mapping):
        raise TypeError(f"{pattern} is not a mapping")
    value = own.get(get_pattern_key(list(own), module), settings[name])
    if not isinstance(value, str | int | float):
        raise TypeError(f"{name} is not a number")
    return value


def renamed(net: CausalLM, names: Iterable[str]) -> dict[str, str]:
    """Return by name of a tensor in an adapter's file its name on `net`, where the two keep the text model in other places. (`layouts`)

    Tensors of a tower that `net` lacks are left out: only text is read, and they do not affect it.
    """
    patterns, alone = layouts(net), decoder_name(net) == "model"
    return {name: _renamed(name, patterns) for name in names if not (alone and TOWER.match(name.removeprefix(PREFIX)))}


def layouts(net: CausalLM) -> dict[str, str]:
    """Return (pattern, replacement) of module names in files made when the text model had another path; the first match counts.

    One model was `language_model.model.layers`, is `model.language_model.layers` beside a vision tower, and is `model.layers` without one.
    """
    where, wrapped = decoder_name(net), r"^(?:(?:model|language_model|text_model)\.)+"
    if where.split(".")[0] != "model":
        return {}
    towers = {r"^(?=(?:vision_tower|visual|multi_modal_projector)\.)": "model."} if where != "model" else {}
    return {rf"{wrapped}(?=lm_head\b)": "", rf"{wrapped}(?=(?:layers|embed_tokens|norm)\b)": f"{where}."} | towers


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    prefix = PREFIX if name.startswith(PREFIX) else ""
    for pattern, replacement in patterns.items():
        changed, times = re.subn(pattern, replacement, name.removeprefix(prefix))
        if times:
            return prefix + changed
    return name


@contextmanager
def plain_lora(net: CausalLM, checkpoint: Checkpoint, scale: float) -> Iterator[CausalLM]:
    """Yield `net` with W + scale * s B A in the place of each adapted weight W; s as in `ranks_and_scales`.

    In float32 the sum is merged, which costs a pass nothing. In bfloat16 and float16 the sum of weights
    would be rounded, and with it most of a small update lost, so there B A x is computed beside W x.

    Raises:
        InputError: where the adapter was made for another model (a module is missing or a shape differs), or lacks a matrix.
    """
    updates = _updates(net, checkpoint, scale)
    before = _sums(updates)
    with (_merged if net.dtype.itemsize >= 4 else _beside)(updates):
        yield net
    check_unchanged(before, _sums(updates), checkpoint.folder)


def _sums(updates: Sequence[_Update]) -> dict[str, int]:
    return {u.name: bit_sum(u.module.weight) for u in updates}


@dataclass(frozen=True, slots=True)
class _Update:
    """The update of a module's matrix: s B A, with A [r, in] and B [out, r]; `turned` where the matrix is kept [in, out]."""

    name: str
    module: Matrix
    a: Tensor
    b: Tensor
    s: float
    turned: bool


def _updates(net: CausalLM, checkpoint: Checkpoint, scale: float) -> list[_Update]:
    from safetensors.torch import load_file

    settings = adapter_settings(checkpoint.folder)
    held = load_file(checkpoint.folder / WEIGHTS)
    here = renamed(net, held)
    tensors, given = {new: held[n] for n, new in here.items()}, {_module(new): _module(n) for n, new in here.items()}
    modules = dict(net.named_modules())
    names = sorted({_module(name) for name in tensors})
    with (
        strangers(f"the settings of adapter '{checkpoint.folder}' cannot be used", "give an adapter that PEFT wrote"),
        bounded(SECONDS),
    ):
        _check_complete(net, checkpoint, names)  # matches its patterns against the names of all modules
    found, own = [], ranks_and_scales(settings, [given[name] for name in names])
    for name in names:
        r, s = own[given[name]]
        module = modules[name]
        assert is_matrix(module), "only a plain adapter is read so"
        weight, turned = module.weight, type(module).__name__ == "Conv1D"  # GPT-2 keeps its matrices [in, out]
        a, b = _pair(checkpoint, tensors, name, r, tuple(weight.shape), turned)
        found.append(_Update(name, module, a.to(weight.device), b.to(weight.device), scale * s, turned))
    return found


def _check_complete(net: CausalLM, checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Reject a file that lacks a matrix that the adapter's settings say it adapts; a vision tower's may be missing, since only text is read."""
    import torch
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers.pytorch_utils import Conv1D

    config = PeftConfig.from_pretrained(str(checkpoint.folder))
    read = {id(m) for m in (*net.get_decoder().modules(), net.get_output_embeddings())}
    for name, module in net.named_modules():
        if (
            id(module) in read
            and name not in names
            and isinstance(module, torch.nn.Linear | Conv1D)
            and check_target_module_exists(config, name)
        ):
            raise InputError(*lacking(checkpoint, name))


def lacking(checkpoint: Checkpoint, name: str) -> tuple[str, str]:
    """Return the fault and the remedy where an adapter's file has nothing for a module."""
    return (
        f"'{checkpoint.folder / WEIGHTS}' has nothing for {name}, which according to {ADAPTER} it adapts",
        "copy or save it again, with the parts of all processes gathered",
    )


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
    """Add s B A x to W x within one product: summed before rounding, so that rounding W x loses nothing small.

    The product starts from s B A x where there is no bias. With one it is [W, sB] [x, A x], at the price of a copy of W: beside a large bias
    a small update would be rounded away.
    """
    import torch

    linear = torch.nn.functional.linear

    def started(u: _Update) -> Callable[[Tensor], Tensor]:
        weight = u.module.weight.data.T if u.turned else u.module.weight.data
        a, b = u.a.to(weight.dtype), (u.s * u.b.float()).to(weight.dtype)

        def forward(x: Tensor) -> Tensor:
            rows = x.flatten(0, -2)
            return torch.addmm(linear(linear(rows, a), b), rows, weight.T).unflatten(0, x.shape[:-1])

        return forward

    def widened(u: _Update) -> Callable[[Tensor], Tensor]:
        weight = u.module.weight.data.T if u.turned else u.module.weight.data
        a, wide = u.a.to(weight.dtype), torch.cat([weight, (u.s * u.b.float()).to(weight.dtype)], 1)
        return lambda x: linear(torch.cat([x, linear(x, a)], -1), wide, u.module.bias)

    changed = [u.module for u in updates if "forward" not in u.module.__dict__]
    assert len(changed) == len(updates), "somebody else's forward would be lost"
    try:
        with torch.no_grad():
            for u in updates:
                u.module.forward = row_by_row((started if u.module.bias is None else widened)(u))
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def check_lora_fits(net: CausalLM, checkpoint: Checkpoint) -> None:
    """Refuse a LoRA adapter that was made for another model.

    Raises:
        InputError: a matrix it adapts is missing, or has another shape.
    """
    from safetensors import safe_open

    modules = dict(net.named_modules())
    with safe_open(checkpoint.folder / WEIGHTS, framework="pt") as file:
        for name, here in sorted(
            renamed(net, [n for n in check_tensors(checkpoint.folder / WEIGHTS) if n.endswith((A, B))]).items()
        ):
            side, module = (0 if name.endswith(B) else 1), modules.get(_module(here))
            size = None if module is None else _sizes(module)[side]
            held = file.get_slice(name).get_shape()[side]
            if size is None or held != size:
                found = f"is {size}" if size is not None else "does not exist"
                raise InputError(
                    f"adapter '{checkpoint.folder}' does not fit this base ({_module(name)} is {held} wide there, but {found} here)",
                    f"give the base it was trained on{f', {checkpoint.base}' if checkpoint.base else ''}",
                )


def _sizes(module: Module) -> tuple[int | None, int | None]:
    """Return (outputs, inputs) of a matrix; GPT-2 keeps its matrices [in, out]."""
    if hasattr(module, "out_features"):  # also for 4-bit weights, which are stored flat
        return getattr(module, "out_features", None), getattr(module, "in_features", None)
    weight = getattr(module, "weight", None)
    return (None, None) if weight is None or weight.ndim != 2 else (weight.shape[1], weight.shape[0])


def _pair(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], name: str, r: int, shape: tuple[int, ...], turned: bool
) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r] of one module, checked against its weight."""
    a, b = tensors.get(PREFIX + name + A), tensors.get(PREFIX + name + B)
    outs, ins = reversed(shape) if turned else shape
    if a is None or b is None or tuple(a.shape) != (r, ins) or tuple(b.shape) != (outs, r):
        held = [tuple(x.shape) if x is not None else "missing" for x in (a, b)]
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base ({name} is {outs} x {ins}, but its A and B are {held[0]} and {held[1]})",
            f"give the base it was trained on with `base`{f' (it names {checkpoint.base})' if checkpoint.base else ''}",
        )
    return a, b


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
