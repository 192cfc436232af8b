"""Loading: one base model and its tokenizer, from safetensors, in evaluation mode."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import EmscopeError, InputError, MissingDependency
from emscope.core.fields import FLOAT32
from emscope.core.limits import reason, strangers
from emscope.core.notes import Note
from emscope.core.plain import Json
from emscope.models.loading.carried import chat_of
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.checkpoints import WRAPPED, Checkpoint
from emscope.models.loading.prequantised import method_of, refuse_unreadable, unloadable
from emscope.models.loading.quiet import quiet
from emscope.models.loading.rounding import rounded_away
from emscope.models.loading.source import Model

if TYPE_CHECKING:
    from torch.nn import Module

    from emscope.models.types import CausalLM, Loader, Tokenizer

QUANTISED = "nf4"
AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16", "float16", QUANTISED)
HALVES = ("bfloat16", "float16")
REPACKS = "support_avx512bf16_for_cpu"  # set by bitsandbytes on its layers


@dataclass(slots=True)
class Loaded:
    """A model in memory.

    Attributes:
        net: the transformers model, in evaluation mode, gradients off.
        tokenizer: its tokenizer.
        chat: how questions are put to it.
        model: the reference it came from.
        dtype: what it computes in, `nf4` where its weights are held in 4 bits.
    """

    net: CausalLM
    tokenizer: Tokenizer
    chat: ChatFormat
    model: Model
    dtype: str = FLOAT32

    @property
    def context(self) -> int:
        """Longest sequence the model was built for [tokens]."""
        return int(getattr(self.net.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)


def load(
    model: Model,
    *,
    system: str = "none",
    dtype: str = "float32",
    device: str = "auto",
    chat_kwargs: Mapping[str, Json] | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> Loaded:
    """Load `model` for reading; one that is in memory is read where and as it is.

    Args:
        system: `none` (no system block), `template` (the template's default) or a text of your own.
        dtype: one of `DTYPES`, `nf4` for 4-bit weights, `auto` as `pick_dtype`; device: `auto` takes a GPU where there is one.
        chat_kwargs: given to the chat template, such as enable_thinking=False.
        checkpoints: fine-tunes of it that are to be read; if they carry their own chat template, that one is used.

    Raises:
        InputError: the folder is damaged, has an unknown architecture, or needs its own code; a chat template cannot be used,
            or the checkpoints' templates differ.
        MissingDependency: it is quantised, and the package that reads it is not installed.
        WorldError: its weights take more memory than the device has left.
    """
    from emscope.models.sizing.memory import refuse_beyond

    quiet()
    if model.held is not None:
        chat = chat_of(model, system, chat_kwargs, checkpoints)
        net = model.held[0]
        net.eval().requires_grad_(False)
        return Loaded(net, chat.tokenizer, chat, model, pick_dtype(dtype, model, checkpoints=checkpoints))
    where = pick_device(device)
    dtype = pick_dtype(dtype, model, where, checkpoints)
    refuse_beyond(model, dtype, where)
    refuse_unreadable(model.folder)  # before the tokenizer is read
    chat = chat_of(model, system, chat_kwargs, checkpoints)
    net = load_quantised(model.folder, where) if dtype == QUANTISED else load_net(model.folder, dtype=dtype, device=where)
    net.eval().requires_grad_(False)
    return Loaded(net, chat.tokenizer, chat, model, dtype)


def load_net(folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> CausalLM:
    """Return the causal LM in `folder` (safetensors only, no remote code) on `device`; every weight is from the file.

    Weights that are stored in few bits stay so, and `dtype` is that of the rest.

    Raises:
        InputError: where it cannot be loaded, with the reason, or the file lacks a weight.
        MissingDependency: it is quantised, and the package that reads it is not installed.
    """
    import torch
    from safetensors import SafetensorError

    from emscope.models.sizing.plausible import refuse_implausible_folder

    refuse_unreadable(Path(folder))
    refuse_implausible_folder(Path(folder))
    kept = method_of(Path(folder)) is not None
    try:
        # Some quantised weights cannot be moved once they are loaded.
        net = _from_files(folder, dtype=getattr(torch, dtype), **({"device_map": {"": device}} if kept else {}))
    except SafetensorError as error:
        raise InputError(f"the weights in '{folder}' are damaged ({error})", "copy or train them again") from None
    except EmscopeError:
        raise
    except Exception as error:  # configurations of wrong types raise any error
        if kept:
            raise unloadable(Path(folder), reason(error)) from None
        raise InputError(
            f"'{folder}' cannot be loaded as a causal language model ({reason(error)})", "give a complete model folder"
        ) from None
    return _unpacked(net) if kept else net.to(device)


def _from_files(folder: Path | str, **settings: object) -> CausalLM:
    """Return the causal LM in `folder`; transformers alone would draw missing weights at random, with only a warning."""
    net, found = _loader(folder).from_pretrained(
        str(folder),
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        key_mapping={WRAPPED: ""},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **settings,
    )
    for name, held, wanted in sorted(found["mismatched_keys"]):
        raise InputError(
            f"'{folder}' holds {name} as {_times(held)}, but its config.json makes it {_times(wanted)}",
            "fix config.json (vocab_size, if tokens were added), or save the model again with save_pretrained",
        )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"'{folder}' lacks weights that its config.json asks for ({missing[0]}{more})",
            "save the whole model again with save_pretrained: missing weights are never drawn at random",
        )
    return body_named(net)


def body_named(net: CausalLM) -> CausalLM:
    """Return `net` with its body named: Llama 4's text model calls it as the one with images does, and so has none by that name."""
    body: Module = net.base_model
    if body is net and hasattr(net, "model"):
        net.base_model_prefix = "model"
    return net


def _loader(folder: Path | str) -> Loader:
    """Return the class of transformers that loads what is in `folder`: a causal LM, else one that also takes images, used for text alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind = type(AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True))
    if kind in AutoModelForCausalLM._model_mapping or kind not in AutoModelForImageTextToText._model_mapping:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _times(shape: Iterable[int]) -> str:
    return " x ".join(str(n) for n in shape) or "a single number"


def load_quantised(folder: Path | str, device: str) -> CausalLM:
    """Return the causal LM in `folder` with its linear layers in 4-bit NormalFloat, for training adapters on top. (QLoRA)

    Raises:
        MissingDependency: bitsandbytes is not installed.
        InputError: the model cannot be loaded.
    """
    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise MissingDependency("dtype nf4 needs bitsandbytes, which is not installed", "pip install 'emscope[qlora]'")
    compute = torch.bfloat16 if device.startswith("cuda") else torch.float32
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    try:
        net = _from_files(folder, quantization_config=settings, device_map={"": device}, dtype=compute)
    except EmscopeError:
        raise
    except Exception as error:
        raise InputError(f"'{folder}' cannot be loaded in 4 bits ({reason(error)})", "load it as bfloat16 or float32") from None
    return _unpacked(net)


def _unpacked(net: CausalLM) -> CausalLM:
    """Return a net of 4-bit weights that a pass in evaluation mode does not repack permanently for a CPU kernel without a gradient."""
    for module in net.modules():
        if hasattr(module, REPACKS):
            setattr(module, REPACKS, False)
    return net


def pick_device(device: str) -> str:
    """Return `device`, or for `auto` the best one present."""
    import torch

    if device != "auto":
        _refuse_absent(device)
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _refuse_absent(device: str) -> None:
    """Reject a device that torch does not know or this machine does not have.

    Raises:
        InputError: with what there is.
    """
    import torch

    try:
        kind, number = torch.device(device).type, torch.device(device).index or 0
    except (RuntimeError, ValueError, TypeError):
        kind, number = "", 0
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if hasattr(torch, "xpu"):
        counts["xpu"] = torch.xpu.device_count()
    if number >= counts.get(kind, 0):
        here = [f"{name}:{n}" if count > 1 else name for name, count in counts.items() for n in range(count)]
        raise InputError(f"this machine has no device '{device}'", f"use auto, or one of {', '.join(here)}")


def pick_dtype(
    dtype: str, model: Model, device: str = "auto", checkpoints: Sequence[Checkpoint] = (), *, scaled: bool = False
) -> str:
    """Return `dtype`, or for `auto` the weights' stored dtype where the device is fast at it, else float32.

    A processor without instructions for 16-bit products emulates them: 60 to 200 times slower than float32 on one with AVX2 alone.
    `auto` is also float32 where 16 bits would round away what a checkpoint changes; if 16 bits are asked for, a note says so.

    Args:
        checkpoints, scaled: the fine-tunes that are to be read, as `rounded_away` takes them.
    """
    if model.held is None and dtype == AUTO:
        stored = _stored(model)
        quick = stored in HALVES and is_quick(stored, pick_device(device))
        return stored if quick and not rounded_away(checkpoints, scaled=scaled) else FLOAT32
    chosen = dtype if model.held is None else str(model.held[0].dtype).removeprefix("torch.")
    lost = rounded_away(checkpoints, scaled=scaled) if chosen in HALVES else None
    if lost is not None:
        who = "`dtype`" if model.held is None else "the model in memory"
        warnings.warn(
            f"{who} is {chosen}, which rounds away part of what '{lost.folder}' changes: float32 keeps it", Note, stacklevel=1
        )
    return chosen


def _stored(model: Model) -> str:
    """Return what a model's configuration says its weights are stored in."""
    from transformers import PretrainedConfig

    with strangers(f"'{model.folder}/config.json' is not a configuration", "fix it, or copy the model again"):
        settings, _ = PretrainedConfig.get_config_dict(str(model.folder))
        text = settings.get("text_config")
    settings = text if isinstance(text, dict) and text else settings
    return str(settings.get("dtype") or settings.get("torch_dtype")).removeprefix("torch.")


def is_quick(dtype: str, device: str) -> bool:
    """Tell whether `device` has instructions for products in a 16-bit `dtype`."""
    import torch

    if device.startswith("cuda"):
        return dtype == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return bool(
            getattr(
                torch.ops.mkldnn, {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[dtype]
            )()
        )
    return True


def loading(dtype: str, device: str = "auto") -> str:
    """Return the progress bar's text for loading a model in `dtype`, with a warning where it is emulated."""
    slow = dtype in HALVES and not is_quick(dtype, pick_device(device))
    return f"loading the model ({dtype}{', very slow on this processor: auto or float32 is faster' if slow else ''})"
