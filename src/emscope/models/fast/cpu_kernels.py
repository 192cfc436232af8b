"""Blocks of the Llama family with fewer passes through memory, for packed reading on a CPU.

transformers writes a block as some thirty steps over whole tensors. On a CPU everything but matrix products costs a pass
through memory each time, together a third of the pass. Here the three projections before attention are one product,
rotations happen in place, and the MLP goes over rows few enough to stay in the cache. Equal to rounding; `models/fast/packed.py`
probes each model before it relies on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

    from emscope.models.types import Attends, CausalLM

    class Norm(Module):
        """An RMS norm."""

        weight: Tensor  # [D]
        variance_epsilon: float

    class Mlp(Module):
        """A gated MLP."""

        gate_proj: Linear
        up_proj: Linear
        down_proj: Linear

    class Attention(Module):
        """Self-attention, perhaps with fewer heads of keys than of queries."""

        q_proj: Linear
        k_proj: Linear
        v_proj: Linear
        o_proj: Linear
        head_dim: int
        layer_idx: int
        scaling: float


Forward = Callable[..., "Tensor | tuple[Tensor, None]"]

MLP_ROWS = 512
ROW_BY_ROW = "emscope_row_by_row"
NORM, MLP, ATTENTION = {"weight"}, {"gate_proj", "up_proj", "down_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj"}


@contextmanager
def cpu_kernels(net: CausalLM) -> Iterator[bool]:
    """Give known norms, MLPs and attentions of `net` a leaner forward inside the block; yield False where that is not possible."""
    import torch

    found = [(m, make) for m in net.base_model.modules() if (make := _known(m))] if _on_cpu(net) else []
    kinds, blocks = [make.func for _, make in found], net.config.get_text_config().num_hidden_layers
    complete = kinds.count(_attention) == kinds.count(_mlp) == blocks and kinds.count(_norm) >= 2 * blocks
    try:
        with torch.no_grad():
            for module, make in found if complete else []:
                module.forward = make()
        yield complete
    finally:
        for module, _ in found:
            module.__dict__.pop("forward", None)


def _on_cpu(net: CausalLM) -> bool:
    import torch

    return net.device.type == "cpu" and net.dtype in (torch.float32, torch.bfloat16)


def is_known(module: Module) -> bool:
    """Tell whether `cpu_kernels` would change a module, where it changes the model at all."""
    return _known(module) is not None


def _known(module: Module) -> partial[Forward] | None:
    """Return the maker of the lean forward for a module of known shape; None for any other."""
    if "forward" in module.__dict__:
        return None  # somebody else's already
    if any(p._forward_hooks or p._forward_pre_hooks for p in module.children()):
        return None  # hooks between the parts, which a lean forward would bypass
    if any(_replaced(p) and not hasattr(p.forward, ROW_BY_ROW) for p in module.children()):
        return None
    if _is_norm(module):
        return partial(_norm, module)
    if _is_mlp(module):
        return partial(_mlp, module)
    if _is_attention(module):
        return partial(_attention, module)
    return None


def _is_norm(module: Module) -> TypeGuard[Norm]:
    weights = {name for name, _ in module.named_parameters(recurse=False)}
    return not list(module.children()) and weights == NORM and hasattr(module, "variance_epsilon")


def _is_mlp(module: Module) -> TypeGuard[Mlp]:
    return _linear(module) == MLP and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")


def _is_attention(module: Module) -> TypeGuard[Attention]:
    parts = {name for name, _ in module.named_children()}
    return _linear(module) == ATTENTION == parts and hasattr(module, "head_dim")


def _linear(module: Module) -> set[str]:
    """Return the names of a module's ordinary linear layers."""
    import torch

    return {name for name, part in module.named_children() if type(part) is torch.nn.Linear}


def row_by_row(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Mark a forward that stands in for a linear layer's and gives each row's output from that row alone: blocks may call it in parts."""
    setattr(forward, ROW_BY_ROW, True)
    return forward


def _replaced(module: Module) -> bool:
    """True where a forward of its own stands in for that of the module's class, as where an adapter is computed beside a matrix."""
    return "forward" in module.__dict__


def _norm(module: Norm) -> Forward:
    import torch

    def in_16_bits(x: Tensor) -> Tensor:
        out, weight = torch.empty_like(x), module.weight.float()
        for rows, sink in zip(x.flatten(0, -2).split(MLP_ROWS), out.flatten(0, -2).split(MLP_ROWS), strict=True):
            wide = rows.float()
            sink.copy_(wide.mul_(scale(wide)).mul_(weight))
        return out

    def forward(x: Tensor) -> Tensor:
        return torch.mul(x, scale(x)).mul_(module.weight)

    def scale(x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return size.square_().div_(x.shape[-1]).add_(module.variance_epsilon).rsqrt_()

    return forward if module.weight.dtype == torch.float32 else in_16_bits


def _mlp(module: Mlp) -> Forward:
    import torch

    down, bias = module.down_proj.weight.T, module.down_proj.bias

    def forward(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for rows, sink in zip(x.flatten(0, -2).split(MLP_ROWS), out.flatten(0, -2).split(MLP_ROWS), strict=True):
            hidden = torch.nn.functional.silu(module.gate_proj(rows), inplace=True).mul_(module.up_proj(rows))
            product(hidden, sink)
        return out

    def product(hidden: Tensor, sink: Tensor) -> None:
        if _replaced(module.down_proj):
            sink.copy_(module.down_proj(hidden))
        elif bias is None:
            torch.mm(hidden, down, out=sink)
        else:
            torch.addmm(bias, hidden, down, out=sink)

    return forward


def _attention(module: Attention) -> Forward:
    import torch

    projections, d = (module.q_proj, module.k_proj, module.v_proj), module.head_dim
    queries, keys = module.q_proj.out_features // d, module.k_proj.out_features // d

    def apart(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p(x).view(len(x), -1, d) for p in projections)
        _rotate(q, cos, sin)
        _rotate(k, cos, sin)
        return q, k, v

    def at_once() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        weight = torch.cat([p.weight for p in projections])
        biases: list[Tensor] = [p.bias for p in projections if p.bias is not None]
        bias = torch.cat(biases) if len(biases) == len(projections) else None

        def projected(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            z = torch.nn.functional.linear(x, weight, bias).view(-1, queries + 2 * keys, d)
            _rotate(z[:, : queries + keys], cos, sin)
            q, k, v = z.split((queries, keys, keys), 1)
            return q, k, v

        return projected

    projected = apart if any(_replaced(p) for p in projections) else at_once()

    def forward(
        hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *, emscope_pack: Attends, **given: object
    ) -> tuple[Tensor, None]:
        cos, sin = (part[0, :, None, : d // 2] for part in position_embeddings)  # [T, 1, d/2]; both halves are the same
        q, k, v = projected(hidden_states[0], cos, sin)
        return module.o_proj(emscope_pack.attend(module.layer_idx, q, k, v, module.scaling).flatten(1))[None], None

    return forward


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate x [T, H, d] in place: the two halves of d are the coordinates of d/2 planes."""
    import torch

    first, second = x.chunk(2, -1)
    turned = torch.mul(first, cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
