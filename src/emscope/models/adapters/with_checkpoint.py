"""A checkpoint applied to a loaded base, and removed again without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.adapters.attached import check_vocabulary, peft_adapter
from emscope.models.adapters.lora import is_plain_lora, plain_lora
from emscope.models.hooks.directions import check_direction, read_direction
from emscope.models.hooks.interventions import added
from emscope.models.loading.checkpoints import DIRECTION, WEIGHTS, Checkpoint, adapter_settings, check_tensors
from emscope.models.loading.load import load_net

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM


@contextmanager
def with_checkpoint(net: CausalLM, checkpoint: Checkpoint | None, *, scale: float = 1.0) -> Iterator[CausalLM]:
    """Yield a model that behaves as `checkpoint` does, `net` itself where that is None; `net` is bit-equal to before on every exit.

    An adapter is merged into `net` where its kind allows it and the dtype keeps it (the forward pass then costs the same as the
    base's); otherwise it runs beside it. `scale` multiplies the update: base + scale * (checkpoint - base).

    Raises:
        InputError: where it was made for another model (a module is missing or a shape differs), lacks a part, or cannot be scaled.
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
    with (plain_lora if plain else peft_adapter)(net, checkpoint, scale) as changed:
        yield changed


def _full(net: CausalLM, checkpoint: Checkpoint, scale: float) -> CausalLM:
    other = load_net(checkpoint.folder, dtype=str(net.dtype).removeprefix("torch."), device=str(net.device))
    mine, theirs = (dict(n.named_parameters(remove_duplicate=False)) for n in (net, other))
    check_vocabulary(net, checkpoint, {name: tuple(p.shape) for name, p in theirs.items()})
    wrong = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise InputError(
            f"checkpoint '{checkpoint.folder}' does not fit this base (tensor {wrong[0]})",
            "give the model it was trained from with `base`",
        )
    broken = next((name for name, p in theirs.items() if not p.isfinite().all()), None)
    if broken:
        raise InputError(
            f"checkpoint '{checkpoint.folder}' holds values that are not numbers ({broken}): this run diverged",
            "remove it from the folder, or train again with a lower learning rate",
        )
    if scale != 1.0:
        _stretch(other, mine, scale)
    return other.eval().requires_grad_(False)


def _stretch(net: CausalLM, base: Mapping[str, Tensor], scale: float) -> None:
    """Move each parameter of `net` to base + scale * (now - base), computed in 32 bits; none is tied afterwards, since one of the two models may not tie it."""
    import torch

    for path, module in net.named_modules():
        for name, p in [(n, p) for n, p in module._parameters.items() if p is not None]:
            wide = torch.promote_types(p.dtype, torch.float32)
            start = base[f"{path}.{name}" if path else name].detach().to(wide)
            module._parameters[name] = torch.nn.Parameter(torch.lerp(start, p.detach().to(wide), scale).to(p.dtype))
