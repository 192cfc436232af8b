"""Hidden states to logits, for code that wants logits only at a few places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def logits_at(net: Any, places: Any) -> Iterator[None]:
    """Within the block, `net` computes logits at these positions alone and returns them as [N, V], row by row.

    A batch of answers needs logits at some positions of each row, and `logits_to_keep` cuts by column only: what it keeps
    besides costs more than some blocks do.

    Args:
        places: True where logits are wanted [B, T].
    """

    def choose(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]  # [B, the last columns that logits_to_keep left, D]
        return (hidden[places[:, -hidden.shape[1] :]], *args[1:]) if hidden.ndim == 3 else args

    handle = net.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
