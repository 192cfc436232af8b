"""Hidden states to logits, for code that needs logits only at a few places."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.limits import strangers
from emscope.models.hooks.sites import final_norm

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from emscope.models.types import CausalLM, Head, Logits, Stream

ROWS = 256


def first_pass(net: CausalLM) -> AbstractContextManager[None]:
    """Return a context for the first pass of a model: what fails in it is what the model's files say, in one sentence.

    Raises:
        InputError: the pass failed.
    """
    return strangers(f"{type(net).__name__} cannot be computed with", "give a model whose weights fit its configuration")


def output_head(net: CausalLM, *, frozen: bool = False) -> Head:
    """Return a function from hidden states [..., D] to logits [..., V] that equals what `net` itself does.

    Some models do more than multiply by the output matrix (soft caps, scales); a four-token probe shows it.

    Args:
        frozen: use a copy of the output matrix, which later training does not reach.

    Raises:
        InputError: the model does something else besides.
    """
    import torch

    matrix = net.get_output_embeddings()
    if frozen:
        matrix = copy.deepcopy(matrix).requires_grad_(False)
    probe = torch.arange(1, 5, device=net.device)[None]
    with first_pass(net), torch.inference_mode():
        hidden = net.base_model(input_ids=probe, use_cache=False).last_hidden_state
        full, mine = net(input_ids=probe, use_cache=False).logits, matrix(hidden)
    size = float(full.abs().max())
    if torch.allclose(full, mine, rtol=1e-4, atol=1e-4 * size):
        return matrix
    cap = getattr(net.config.get_text_config(), "final_logit_softcapping", None)
    if cap and torch.allclose(full, torch.tanh(mine / cap) * cap, rtol=1e-3, atol=1e-3 * size):
        return lambda rows: torch.tanh(matrix(rows) / cap) * cap
    wide, narrow = full.double(), mine.double()  # a ratio of 16-bit numbers would itself be rounded to 16 bits; 0 / 0 is none
    ratio = float((wide / narrow).nanmedian())
    if torch.allclose(wide, ratio * narrow, rtol=max(1e-3, torch.finfo(full.dtype).eps), atol=1e-6 * size):
        return lambda rows: ratio * matrix(rows)
    raise InputError(
        f"{type(net).__name__} turns hidden states into logits in a way that emscope does not know",
        "use a model that transformers includes",
    )


class Lens:
    """The logit lens: residual stream [..., D] to logits [..., V] by the model's own last norm and output head, after any block.

    (nostalgebraist 2020)

    Args:
        frozen: keep copies of both, which later changes of `net` do not reach.
    """

    def __init__(self, net: CausalLM, *, frozen: bool = False) -> None:
        norm = final_norm(net)
        self._norm = copy.deepcopy(norm) if frozen else norm
        self._head = output_head(net, frozen=frozen)
        self._dtype = net.dtype

    def __call__(self, stream: Stream) -> Logits:
        """Return logits [..., V]."""
        return self._head(self._norm(stream.to(self._dtype)))


@contextmanager
def logits_at(net: CausalLM, places: Tensor) -> Iterator[None]:
    """Within the block, `net` computes logits at these positions alone and returns them as [N, V], row by row.

    A batch of answers needs logits at some positions of each row, and `logits_to_keep` cuts by column only: what it keeps
    besides costs more than some blocks do.

    Args:
        places: True where logits are needed [B, T].
    """

    def choose(_: Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]  # [B, the last columns that logits_to_keep left, D]
        return (hidden[places[:, -hidden.shape[1] :]], *args[1:]) if hidden.ndim == 3 else args

    handle = net.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def kl_sum(start_head: Head, start: Sequence[Stream], head: Head, now: Sequence[Stream]) -> Tensor:
    """Return the sum over positions and vocabulary of p_start (log p_start - log p_now) [nats].

    The logits exist for `ROWS` positions at a time. Over the number of positions it is the KL per token; P3's public code
    divides by tokens x vocabulary instead.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    before, after = torch.cat(list(start)), torch.cat(list(now))

    def part(a: Stream, b: Stream) -> Tensor:
        return kl_rows(start_head(a), head(b))

    pairs = zip(before.split(ROWS), after.split(ROWS), strict=True)
    # Logits are computed again in the backward pass rather than kept.
    parts = [checkpoint(part, a, b, use_reentrant=False) for a, b in pairs]
    return torch.cat(parts).sum()


def kl_rows(start: Logits, now: Logits) -> Tensor:
    """Return KL(start || now) of each row [N] of two sets of logits [N, V], in nats."""
    import torch

    return torch.nn.functional.kl_div(_logp(now), _logp(start), reduction="none", log_target=True).sum(-1)


def _logp(logits: Logits) -> Tensor:
    import torch

    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
