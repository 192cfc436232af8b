"""Blocks of the Llama family with fewer walks through memory, for packed reading on a CPU.

transformers writes a block as some thirty steps over whole tensors. On a CPU what is not a matrix product costs a walk
through memory each time, together a third of the pass. Here the three projections before attention are one product,
rotations happen in place, and the MLP goes over rows few enough to stay in the cache. Equal to rounding; `models/fast/packed.py`
probes each model before it relies on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

MLP_ROWS = 512
NORM, MLP, ATTENTION = {"weight"}, {"gate_proj", "up_proj", "down_proj"}, {"q_proj", "k_proj", "v_proj", "o_proj"}


@contextmanager
def lean_blocks(net: Any) -> Iterator[bool]:
    """Give known norms, MLPs and attentions of `net` a leaner forward inside the block; yield False where that is not to be had."""
    import torch

    found: list[tuple[Any, Callable[[Any], Callable[..., Any]]]]
    found = [(m, make) for m in net.base_model.modules() if (make := _known(m))] if _on_cpu(net) else []
    kinds, blocks = [make for _, make in found], net.config.get_text_config().num_hidden_layers
    complete = kinds.count(_attention) == kinds.count(_mlp) == blocks and kinds.count(_norm) >= 2 * blocks
    try:
        with torch.no_grad():
            for module, make in found if complete else []:
                module.forward = make(module)
        yield complete
    finally:
        for module, _ in found:
            module.__dict__.pop("forward", None)


def _on_cpu(net: Any) -> bool:
    import torch

    return net.device.type == "cpu" and net.dtype == torch.float32


def _known(module: Any) -> Callable[[Any], Callable[..., Any]] | None:
    """Return what makes the lean forward of a module of known shape, None for any other."""
    import torch

    if "forward" in module.__dict__:
        return None  # somebody else's already
    parts, weights = dict(module.named_children()), dict(module.named_parameters(recurse=False))
    if any(p._forward_hooks or p._forward_pre_hooks for p in parts.values()):
        return None  # somebody watches or changes what flows between the parts, which a lean forward passes by
    if not parts and weights.keys() == NORM and hasattr(module, "variance_epsilon"):
        return _norm
    linear = {name for name, part in parts.items() if type(part) is torch.nn.Linear}
    if linear == MLP and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation"):
        return _mlp
    if linear == ATTENTION == parts.keys() and hasattr(module, "head_dim"):
        return _attention
    return None


def _norm(module: Any) -> Callable[..., Any]:
    import torch

    def forward(x: Any) -> Any:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = size.square_().div_(x.shape[-1]).add_(module.variance_epsilon).rsqrt_()
        return torch.mul(x, scale).mul_(module.weight)

    return forward


def _mlp(module: Any) -> Callable[..., Any]:
    import torch

    def forward(x: Any) -> Any:
        out = torch.empty_like(x)
        down, bias = module.down_proj.weight.T, module.down_proj.bias
        for rows, sink in zip(x.flatten(0, -2).split(MLP_ROWS), out.flatten(0, -2).split(MLP_ROWS), strict=True):
            hidden = torch.nn.functional.silu(module.gate_proj(rows), inplace=True).mul_(module.up_proj(rows))
            torch.mm(hidden, down, out=sink) if bias is None else torch.addmm(bias, hidden, down, out=sink)
        return out

    return forward


def _attention(module: Any) -> Callable[..., Any]:
    import torch

    projections, d = (module.q_proj, module.k_proj, module.v_proj), module.head_dim
    weight = torch.cat([p.weight for p in projections])
    biases = [p.bias for p in projections]
    bias = None if any(b is None for b in biases) else torch.cat(biases)
    queries, keys = module.q_proj.out_features // d, module.k_proj.out_features // d

    def forward(hidden_states: Any, position_embeddings: Any, **given: Any) -> tuple[Any, None]:
        cos, sin = (part[0, :, None, : d // 2] for part in position_embeddings)  # [T, 1, d/2]; both halves are the same
        z = torch.nn.functional.linear(hidden_states[0], weight, bias).view(-1, queries + 2 * keys, d)
        _rotate(z[:, : queries + keys], cos, sin)
        q, k, v = z.split((queries, keys, keys), 1)
        return module.o_proj(given["emscope_pack"].attend(module.layer_idx, q, k, v, module.scaling).flatten(1))[None], None

    return forward


def _rotate(x: Any, cos: Any, sin: Any) -> None:
    """Rotate x [T, H, d] in place: the two halves of d are the coordinates of d/2 planes."""
    import torch

    first, second = x.chunk(2, -1)
    turned = torch.mul(first, cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(turned)
