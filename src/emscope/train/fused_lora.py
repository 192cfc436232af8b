"""A layer with a LoRA adapter as one function of autograd, in place of five.

PEFT adds the adapter's product to the layer's in steps of their own: each writes and reads the layer's output once more, forward
and backward. Added inside the products, they cost nothing beside them. What is computed is the same up to rounding; a layer that is anything but
a matrix and a plain adapter keeps PEFT's own steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from typing import Protocol

    from peft.tuners.lora.layer import Linear
    from torch import Tensor

    class Context(Protocol):
        """What a function of autograd keeps from its forward pass."""

        saved_tensors: tuple[Tensor, ...]
        needs_input_grad: tuple[bool, ...]
        s: float
        shape: torch.Size

        def save_for_backward(self, *tensors: Tensor) -> None: ...


@contextmanager
def fused_lora(model: torch.nn.Module) -> Iterator[int]:
    """Compute the plain LoRA layers of `model` by one function each inside the block; yield how many there are.

    Weights have to be whole where they are used, so not for models whose weights are sharded.
    """
    from peft.tuners.lora.layer import Linear

    found = [m for m in model.modules() if type(m) is Linear and "forward" not in vars(m) and _is_plain(m)]
    for module in found:
        module.forward = partial(_forward, module)
    try:
        yield len(found)
    finally:
        for module in found:
            del module.forward


def _is_plain(module: Linear) -> bool:
    """True where a layer is a frozen matrix with one LoRA adapter, without dropout, bias, or a variant such as DoRA."""
    base, names = module.base_layer, list(module.lora_A)
    if type(base) is not torch.nn.Linear or len(names) != 1 or list(module.active_adapters) != names:
        return False
    (name,) = names
    frozen = not any(p.requires_grad for p in base.parameters())
    plain = name not in module.lora_variant and isinstance(module.lora_dropout[name], torch.nn.Identity)
    sides = (module.lora_A[name], module.lora_B[name])
    return frozen and plain and all(type(side) is torch.nn.Linear and side.bias is None for side in sides)


def _forward(module: Linear, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """Compute a layer, by PEFT's own steps where something looks into them or changes them."""
    (name,) = module.lora_A
    a, b, base = module.lora_A[name], module.lora_B[name], module.base_layer
    changed = module.disable_adapters or module.merged or args or kwargs or list(module.active_adapters) != [name]
    # accelerate, which moves weights in when they are needed, puts a forward of its own on the module
    watched = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or "forward" in vars(m) for m in (a, b, base))
    narrower = torch.promote_types(a.weight.dtype, x.dtype) != a.weight.dtype
    if changed or watched or narrower or x.dtype != base.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return type(module).forward(module, x, *args, **kwargs)
    found: Tensor = _Fused.apply(x, base.weight, base.bias, a.weight, b.weight, module.scaling[name])
    return found


class _Fused(torch.autograd.Function):
    """y = x W' + c + s (x A') B', with gradients of x, A and B; A and B may be wider in type than W, as PEFT keeps them beside 16 bits."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, w: Tensor, c: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        inner = (flat.to(a.dtype) @ a.t()).mul_(s)  # [N, R]
        y = torch.nn.functional.linear(flat, w, c).to(a.dtype).addmm_(inner, b.t())
        ctx.save_for_backward(flat, w, a, b, inner)
        ctx.s, ctx.shape = s, x.shape
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, w, a, b, inner = ctx.saved_tensors
        g = gradient.reshape(-1, gradient.shape[-1])
        wide = g.to(b.dtype)
        of_inner = (wide @ b).mul_(ctx.s)  # [N, R]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (g @ w).to(a.dtype).addmm_(of_inner, a).to(flat.dtype).view(ctx.shape)
        return of_x, None, None, of_inner.t() @ flat.to(a.dtype), wide.t() @ inner, None
