"""A checkpoint put onto one loaded base, and taken off again without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emscope.core.errors import InputError
from emscope.models.checkpoints import DIRECTION, WEIGHTS, Checkpoint, adapter_settings, check_tensors
from emscope.models.directions import check_direction, read_direction
from emscope.models.interventions import added
from emscope.models.load import load_net
from emscope.models.lora import is_plain_lora, plain_lora


@contextmanager
def applied(net: Any, checkpoint: Checkpoint | None, *, scale: float = 1.0) -> Iterator[Any]:
    """Yield a model that behaves as `checkpoint` does, `net` itself where that is None; `net` is bit-equal to before on every exit.

    An adapter is merged into `net` where its kind can be and the dtype holds it (the forward pass then costs what the base's does),
    else it runs beside it. `scale` multiplies the update: base + scale * (checkpoint - base).

    Raises:
        InputError: where the adapter was made for another model (a module is missing or a shape differs).
    """
    if checkpoint is None:
        yield net
        return
    if checkpoint.kind == "full":
        yield _full(net, checkpoint, scale)
        return
    if checkpoint.kind == "vectors":
        direction = read_direction(checkpoint.folder / DIRECTION)
        check_direction(net, direction, checkpoint.folder / DIRECTION)
        with added(net, direction.vectors, scale):
            yield net
        return
    plain = is_plain_lora(net, adapter_settings(checkpoint.folder), check_tensors(checkpoint.folder / WEIGHTS))
    with (plain_lora if plain else _adapter)(net, checkpoint, scale) as changed:
        yield changed


@contextmanager
def _adapter(net: Any, checkpoint: Checkpoint, scale: float) -> Iterator[Any]:
    """PEFT's own way, for every kind of adapter but plain LoRA; it costs seconds to attach."""
    wrapped = attach(net, checkpoint)
    kept: list[tuple[Any, Any]] = []
    try:
        _scale(wrapped, checkpoint, scale)
        wrapped.eval().requires_grad_(False)
        kept = _snapshot(wrapped) if net.dtype.itemsize >= 4 else []  # rounding would lose small updates
        if kept:
            wrapped.merge_adapter()
        yield wrapped.get_base_model()
    finally:
        for parameter, value in kept:
            parameter.data = value
        _unload(wrapped)
        net.eval().requires_grad_(False)


def attach(net: Any, checkpoint: Checkpoint, *, trainable: bool = False) -> Any:
    """Return `net` wrapped by PEFT with the checkpoint's adapter beside it.

    Raises:
        InputError: a trained prompt, or an adapter of another model.
    """
    from peft import PeftConfig, PeftModel

    if PeftConfig.from_pretrained(str(checkpoint.folder)).is_prompt_learning:
        raise InputError(
            f"'{checkpoint.folder}' trains a prompt, not weights",
            "emscope reads adapters that change weights (LoRA and its kin) and full checkpoints",
        )

    try:
        wrapped = PeftModel.from_pretrained(net, str(checkpoint.folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        _strip(net)
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base ({_first_line(error)})",
            f"give the base it was trained on with --base{f' (it names {checkpoint.base})' if checkpoint.base else ''}",
        ) from None
    missing = _unmatched(wrapped, checkpoint)
    if missing:
        _unload(wrapped)
        raise InputError(
            f"adapter '{checkpoint.folder}' has a tensor this base has no place for ({missing})",
            "give the base it was trained on with --base",
        )
    return wrapped


def _unmatched(wrapped: Any, checkpoint: Checkpoint) -> str | None:
    """Return a tensor name of the adapter file that found no module, which PEFT would only warn about."""
    from peft import get_peft_model_state_dict

    held = set(get_peft_model_state_dict(wrapped))
    return next((name for name in check_tensors(checkpoint.folder / WEIGHTS) if name not in held), None)


def _snapshot(wrapped: Any) -> list[tuple[Any, Any]]:
    """Return (parameter, its tensor) of all weights that merging changes, or [] where the adapter cannot be merged.

    Merging works on a copy, so putting the original tensor back is exact where subtracting the update is not.
    """
    layers = [m for m in wrapped.modules() if hasattr(m, "merge") and hasattr(m, "get_base_layer") and hasattr(m, "base_layer")]
    tied = wrapped.get_input_embeddings().weight
    if not layers or any(
        layer.get_base_layer().weight is tied for layer in layers if hasattr(layer.get_base_layer(), "weight")
    ):
        return []  # merging into a tied matrix would change the embeddings too
    if any(not p.is_floating_point() for layer in layers for p in layer.get_base_layer().parameters(recurse=False)):
        return []  # 4-bit weights would be rounded anew
    if any(str(c.peft_type).rsplit(".", 1)[-1] == "BEFT" for c in wrapped.peft_config.values()):
        return []
    kept = []
    for layer in layers:
        for parameter in layer.get_base_layer().parameters(recurse=False):
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.clone()
    return kept


def _scale(wrapped: Any, checkpoint: Checkpoint, scale: float) -> None:
    if scale == 1.0:
        return
    layers = [m for m in wrapped.modules() if hasattr(m, "set_scale") and hasattr(m, "scaling")]
    biases = [p for name, p in wrapped.named_parameters() if ".beft_bias." in name]
    for bias in biases:
        bias.data.mul_(scale)
    if not layers and not biases:
        raise InputError(
            f"the adapter in '{checkpoint.folder}' has no scale to amplify", "leave --amplify out for this kind of adapter"
        )
    for layer in layers:
        layer.set_scale("default", scale)


def _unload(wrapped: Any) -> None:
    """Take the adapter's modules out again without touching weights."""
    for layer in wrapped.modules():
        if getattr(layer, "merged_adapters", None):
            layer.merged_adapters.clear()
    wrapped.unload()
    _strip(wrapped.get_base_model())


def _strip(net: Any) -> None:
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in net.__dict__:
            delattr(net, name)


def _full(net: Any, checkpoint: Checkpoint, scale: float) -> Any:
    import torch

    other = load_net(checkpoint.folder, dtype=str(net.dtype).removeprefix("torch.")).to(net.device)
    mine, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    wrong = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise InputError(
            f"checkpoint '{checkpoint.folder}' does not fit this base (tensor {wrong[0]})",
            "give the model it was trained from with --base",
        )
    if scale != 1.0:
        with torch.no_grad():
            for name, value in theirs.items():
                value.copy_(mine[name] + scale * (value - mine[name]))
    return other.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:200] if lines else type(error).__name__
