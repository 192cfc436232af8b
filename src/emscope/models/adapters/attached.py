"""Adapters of every PEFT kind, applied to a base: beside its weights, or merged with it into one model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, TypeGuard

from emscope.core.errors import InputError
from emscope.core.limits import TooMuch, bounded, reason, strangers
from emscope.core.plain import Json
from emscope.models.adapters.intact import Kept, intact
from emscope.models.adapters.lora import PREFIX, TOWER, is_matrix, lacking, layouts, renamed, special_settings
from emscope.models.fast.cpu_kernels import row_by_row
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings, check_tensors, tensor_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import AdapterLayer, CausalLM, LoadResult, Matrix, PeftSettings, Wrapped

# Kinds that tests show can be merged without changing an answer.
MERGEABLE = {
    "LORA",
    "ADALORA",
    "VERA",
    "IA3",
    "OFT",
    "BOFT",
    "LOHA",
    "LOKR",
    "LN_TUNING",
    "TRAINABLE_TOKENS",
    "BEFT",
    "HRA",
    "MISS",
    "FOURIERFT",
    "RANDLORA",
    "SHIRA",
    "DELORA",
    "GRALORA",
    "HIRA",
    "VBLORA",
    "C3A",
    "ROAD",
    "WAVEFT",
}
MERGEABLE_LORA = {
    *("use_dora", "bias", "lora_bias", "modules_to_save", "ensure_weight_tying", "trainable_token_indices"),
    *("target_parameters", "init_lora_weights", "eva_config"),
}
SIZED = (  # settings by which PEFT makes tensors of that size, before it looks into the file
    *("r", "init_r", "target_r", "n_frequency", "num_vectors", "vector_length", "oft_block_size", "boft_block_size"),
    *("block_size", "group_size", "topk", "num_virtual_tokens", "adapter_len"),
)
PATTERNS = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern", "target_parameters")
SECONDS = 2.0  # of processor time to match one pattern against all names
UNTOLD = ("corda", "lora_ga")  # their files do not record which part of the weights they began with


@contextmanager
def peft_adapter(net: CausalLM, checkpoint: Checkpoint, scale: float) -> Iterator[CausalLM]:
    """Yield `net` as it is with an adapter of any kind; it is bit-equal to before on every exit. Attaching costs seconds.

    Where the weights are kept in 32 bits, base and adapter are merged. In 16 bits, weights would lose small updates to rounding:
    there the adapter runs beside them, as in training.

    Args:
        scale: base + scale * (checkpoint - base), of the weights.

    Raises:
        InputError: as `attach`, or a kind whose weight update cannot be scaled.
    """
    mergeable = not getattr(net, "is_quantized", False) and unmergeable(checkpoint) is None
    if scale != 1.0 and not mergeable:
        raise InputError(
            f"'{checkpoint.folder}' is an adapter whose weight update cannot be scaled ({unmergeable(checkpoint) or 'on 4-bit weights'})",
            "leave `amplify` out for it",
        )
    dtype = net.dtype
    with intact(net, checkpoint.folder, _written(net, checkpoint)) as kept:
        wrapped = attach(net, checkpoint)
        wrapped.eval().requires_grad_(False)
        if mergeable and (scale != 1.0 or dtype.itemsize >= 4):
            _merge(wrapped)
            _stretch(net, kept, scale, dtype)
        yield net


def attach(net: CausalLM, checkpoint: Checkpoint, *, trainable: bool = False) -> Wrapped:
    """Return `net` wrapped by PEFT with the checkpoint's adapter beside it; where that fails, `net` is as before.

    Raises:
        InputError: a trained prompt, an adapter of another model, or one whose file lacks a part.
    """
    from peft import PeftConfig, get_peft_model

    with strangers(f"adapter '{checkpoint.folder}' is of a kind that PEFT does not read", "give an adapter that PEFT wrote"):
        config = PeftConfig.from_pretrained(str(checkpoint.folder))
    _check_readable(checkpoint, config)
    shapes = tensor_shapes(checkpoint.folder / WEIGHTS)
    check_settings(net, checkpoint, shapes)
    here = renamed(net, shapes)
    check_vocabulary(net, checkpoint, {new: shapes[name] for name, new in here.items()}, _highest_token(config))
    config.inference_mode, config.base_model_name_or_path = not trainable, None
    kept = Kept(net)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PEFT warns about is rejected below
            wrapped = get_peft_model(net, config)
            conversions = layouts(net) | getattr(net, "_checkpoint_conversion_mapping", {})
            loaded = wrapped.load_adapter(str(checkpoint.folder), "default", is_trainable=trainable, key_mapping=conversions)
        _check_loaded(net, checkpoint, loaded)
    except InputError:
        kept.restore()
        raise
    except Exception as error:  # settings of wrong types raise any error
        kept.restore()
        if isinstance(error, KeyError) and error.args:
            raise InputError(*lacking(checkpoint, _plain(str(error.args[0])))) from None
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base ({_first_line(error)})",
            f"give the base it was trained on with `base`{f' (it names {checkpoint.base})' if checkpoint.base else ''}",
        ) from None
    return wrapped


def check_settings(net: CausalLM, checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]]) -> None:
    """Reject adapter settings that its weights cannot have, and name patterns that take forever.

    Args:
        shapes: of the tensors in its file.

    Raises:
        InputError: naming the setting.
    """
    settings = adapter_settings(checkpoint.folder)
    largest = max((prod(shape) for shape in shapes.values()), default=0)
    ranks = settings.get("rank_pattern") or {}
    sizes = {name: settings.get(name) for name in SIZED} | (ranks if isinstance(ranks, dict) else {})
    for name, value in sizes.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > largest:
            raise InputError(
                f"adapter '{checkpoint.folder}' says {name} is {value}, but its largest tensor has {largest} numbers",
                "copy it again from the training run",
            )
    begun = str(settings.get("init_lora_weights"))
    if begun.startswith("pissa_niter_") and len(begun) > len("pissa_niter_999"):
        raise InputError(f"adapter '{checkpoint.folder}' starts from {begun[:60]}", "give an adapter that PEFT wrote")
    names = [name for name, _ in net.named_modules()]
    for what in PATTERNS:
        for pattern in _patterns(settings.get(what)):
            try:
                with bounded(SECONDS):
                    for name in names:
                        re.match(rf"(.*\.)?(?:{pattern})$", name)
            except (TooMuch, re.error, RecursionError, OverflowError) as error:
                raise InputError(
                    f"adapter '{checkpoint.folder}' names modules by a pattern that cannot be used ({what} '{pattern[:60]}': {reason(error)})",
                    "name the modules without a pattern",
                ) from None


def _patterns(value: Json) -> list[str]:
    found = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else []
    return [one for one in found if isinstance(one, str)]


def _check_readable(checkpoint: Checkpoint, config: PeftSettings) -> None:
    """Reject adapters that are not weights, act on some tokens only (beside a bare model they would do nothing), or are incomplete."""
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise InputError(
            f"'{checkpoint.folder}' trains a prompt, not weights",
            "emscope reads adapters that change weights (LoRA and its relatives) and full checkpoints",
        )
    begun = getattr(config, "init_lora_weights", None)
    if begun in UNTOLD:
        raise InputError(
            f"'{checkpoint.folder}' started from a part of the base's weights ({begun}), but its file does not record which",
            "save it as plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=the adapter at the start of training)",
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise InputError(
            f"'{checkpoint.folder}' is an activated LoRA, which acts only after its invocation tokens",
            "emscope reads adapters that act on every token",
        )


def _check_loaded(net: CausalLM, checkpoint: Checkpoint, loaded: LoadResult) -> None:
    """Reject tensors without a module, and modules without a tensor, about which PEFT would only warn; except for towers, since only text is read."""
    unexpected = [name for name in renamed(net, loaded.unexpected_keys) if not _is_shared_projection(net, checkpoint, name)]
    if unexpected:
        raise InputError(
            f"adapter '{checkpoint.folder}' has a tensor that does not fit into this base ({unexpected[0]})",
            "give the base it was trained on with `base`",
        )
    missing = [  # the bank is there once
        n for n in loaded.missing_keys if "vblora_vector_bank" not in n and not TOWER.match(_plain(n))
    ]
    if missing:
        raise InputError(*lacking(checkpoint, _plain(missing[0])))


def _is_shared_projection(net: CausalLM, checkpoint: Checkpoint, name: str) -> bool:
    """Tell whether a tensor of the file is one of VeRA's two shared projections, which its modules already have.

    PEFT draws them again from the seed in the settings; before 0.21 it counts the file's copies as unexpected.
    """
    import torch
    from safetensors import safe_open

    kind = name.rpartition(".")[2]
    if kind not in ("vera_A", "vera_B"):
        return False
    with safe_open(str(checkpoint.folder / WEIGHTS), framework="pt") as file:
        held = file.get_tensor(name)
    drawn = [values for m in net.modules() for values in getattr(m, kind, {}).values()]
    return bool(drawn) and all(torch.equal(values.cpu(), held.to(values.dtype)) for values in drawn)


def check_vocabulary(net: CausalLM, checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]], highest: int = -1) -> None:
    """Reject a checkpoint with a different number of tokens from the base.

    Args:
        shapes: of its tensors, by name. highest: the highest token that it trains by itself, -1 for none.

    Raises:
        InputError: with both numbers.
    """
    names = {id(m): name for name, m in net.named_modules()}
    ends = {names.get(id(m)) for m in (net.get_input_embeddings(), net.get_output_embeddings())}
    rows = net.get_input_embeddings().weight.shape[0]
    found = {} if highest < rows else {"": highest + 1}
    for name, shape in shapes.items():
        module, _, factor = _plain(name).removesuffix(".weight").partition(".lora_")
        tokens = shape[1] if factor == "embedding_A" else shape[0] if factor in ("", "B") and len(shape) == 2 else rows
        if module in ends and tokens != rows:
            found[name] = tokens
    for tokens in found.values():
        raise InputError(
            f"checkpoint '{checkpoint.folder}' has {tokens} tokens, but this base has {rows}",
            f"give as `base` a copy of the base resized as in training: model.resize_token_embeddings({tokens}), then save_pretrained",
        )


def _highest_token(config: PeftSettings) -> int:
    """Return the highest token that an adapter trains by itself; -1 where there is none, or what stands there are no tokens."""
    told = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    lists = told.values() if isinstance(told, dict) else [told]
    return max((token for one in lists if isinstance(one, list) for token in one if isinstance(token, int)), default=-1)


def _written(net: CausalLM, checkpoint: Checkpoint) -> set[str]:
    """Return the names of the base's own parameters that PEFT writes into: those in the file, and matrices that it takes a part out of."""
    names = {_plain(name) for name in renamed(net, check_tensors(checkpoint.folder / WEIGHTS)).values()}
    begun = adapter_settings(checkpoint.folder).get("init_lora_weights")
    if isinstance(begun, str) and begun != "gaussian":  # OLoRA, PiSSA and others start from a part of the weights
        names |= {f"{name.partition('.lora_')[0]}.weight" for name in names}
    return names


def _plain(name: str) -> str:
    """Return a tensor's name in the base from its name in an adapter's file."""
    return name.removeprefix(PREFIX).replace(".base_layer", "").replace(".modules_to_save", "").replace(".default", "")


def merges_to_nothing(net: CausalLM, checkpoint: Checkpoint) -> bool:
    """Return whether base and adapter merged equal the base, up to the last bits of its weights; False where they cannot be merged."""
    import torch

    if unmergeable(checkpoint) is not None or getattr(net, "is_quantized", False):
        return False
    with intact(net, checkpoint.folder, _written(net, checkpoint)) as kept:
        _merge(attach(net, checkpoint))
        for path, module in net.named_modules():
            for name, p in [(n, p) for n, p in module._parameters.items() if p is not None]:
                base = kept.value(path, name)
                start = torch.zeros_like(p) if base is None else base.to(p.dtype)
                if not torch.allclose(p, start, rtol=4 * torch.finfo(p.dtype).eps, atol=0):
                    return False
    return True


def unmergeable(checkpoint: Checkpoint) -> str | None:
    """Return why an adapter is not a fixed change of the base's weights, as far as emscope knows; None where it is one."""
    settings = adapter_settings(checkpoint.folder)
    if settings["peft_type"] not in MERGEABLE:
        return str(settings["peft_type"])
    special = special_settings(settings) if settings["peft_type"] == "LORA" else []
    return next((name for name in special if name not in MERGEABLE_LORA), None)


def _merge(wrapped: Wrapped) -> None:
    """Merge the adapter of `wrapped` into the base that it runs on; tied weights are not affected.

    The merge goes into a float32 copy, even of a matrix that two modules share.
    """
    import torch

    own: set[int] = set()
    for layer in [m for m in wrapped.modules() if _is_adapter_layer(m)]:
        base = layer.get_base_layer()
        if id(base) in own:
            continue
        own.add(id(base))
        for name, p in base._parameters.items():
            if p is not None:
                wide = torch.promote_types(p.dtype, torch.float32)
                base._parameters[name] = torch.nn.Parameter(p.detach().to(wide, copy=True), requires_grad=False)
        if type(base) is torch.nn.Linear and base.bias is None:  # a place for what the adapter adds to outputs
            base._parameters["bias"] = torch.nn.Parameter(base.weight.new_zeros(base.weight.shape[0]), requires_grad=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied matrices, which are no longer tied
        wrapped.merge_and_unload()


def _is_adapter_layer(module: Module) -> TypeGuard[AdapterLayer]:
    return hasattr(module, "base_layer") and hasattr(module, "merge")


def _stretch(net: CausalLM, kept: Kept, scale: float, dtype: torch.dtype) -> None:
    """Move each changed parameter of `net` to base + scale * (now - base), in the net's own dtype."""
    import torch

    moved: set[int] = set()
    for path, module in list(net.named_modules()):
        for name, p in [(n, p) for n, p in module._parameters.items() if p is not None and id(p) not in moved]:
            base = kept.value(path, name)
            moved.add(id(p))
            if base is None and not p.any():
                module._parameters[name] = None  # a bias that nothing was added to
            elif base is None or p.data_ptr() != base.data_ptr():
                old = torch.zeros_like(p) if base is None else base.to(p.dtype)
                new = torch.lerp(old, p.data, scale) if scale != 1.0 else p.data
                if base is not None and name == "weight" and is_matrix(module) and new.dtype != dtype:
                    p.data = base
                    module.forward = _with_change(module, new - old)
                else:
                    p.data = new.to(dtype)


def _with_change(module: Matrix, change: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a forward of [W, change] [x, x]: summed before rounding, since rounding W + change would lose small changes."""
    import torch

    weight = module.weight.data
    wide = torch.cat([m.T if type(module).__name__ == "Conv1D" else m for m in (weight, change.to(weight.dtype))], 1)
    return row_by_row(lambda x: torch.nn.functional.linear(torch.cat([x, x], -1), wide, module.bias))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:200] if lines else type(error).__name__
