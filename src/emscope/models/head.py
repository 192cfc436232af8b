"""Hidden states to logits, for code that wants logits only at a few places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from emscope.core.errors import InputError


def output_head(net: Any, *, frozen: bool = False) -> Callable[[Any], Any]:
    """Return a function from hidden states [..., D] to logits [..., V] that equals what `net` itself does.

    Some models do more than multiply by the output matrix (soft caps, scales); a four-token probe tells.

    Args:
        frozen: use a copy of the output matrix, which later training does not reach.

    Raises:
        InputError: where the model does something else still.
    """
    import torch

    matrix = net.get_output_embeddings()
    if frozen:
        matrix = copy.deepcopy(matrix).requires_grad_(False)
    probe = torch.arange(1, 5, device=net.device)[None]
    with torch.inference_mode():
        hidden = net.base_model(input_ids=probe, use_cache=False).last_hidden_state
        full, mine = net(input_ids=probe, use_cache=False).logits, matrix(hidden)
    size = float(full.abs().max())
    if torch.allclose(full, mine, rtol=1e-4, atol=1e-4 * size):
        return matrix
    cap = getattr(net.config, "final_logit_softcapping", None)
    if cap and torch.allclose(full, torch.tanh(mine / cap) * cap, rtol=1e-3, atol=1e-3 * size):
        return lambda rows: torch.tanh(matrix(rows) / cap) * cap
    ratio = float((full / mine).median())
    if torch.allclose(full, ratio * mine, rtol=1e-3, atol=1e-3 * size):
        return lambda rows: ratio * matrix(rows)
    raise InputError(
        f"{type(net).__name__} turns hidden states into logits in a way emscope does not know", "use a model transformers ships"
    )
