"""Which tokens of the pass being computed are the answer's, for code that acts on some tokens only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = ("all", "prompt", "answer")

_answers: ContextVar[Tensor | bool] = ContextVar("answers", default=False)


@contextmanager
def answers_at(mask: Tensor | bool) -> Iterator[None]:
    """Mark which tokens are an answer's in the passes inside the block.

    Args:
        mask: True at an answer's tokens, of the shape of the pass's tokens [B, T], or one truth for all of them.
    """
    token = _answers.set(mask)
    try:
        yield
    finally:
        _answers.reset(token)


def acted_on(tokens: str, values: Tensor) -> Tensor | None:
    """Return where to act on `values` [B, T, D]: None for everywhere, else True at the tokens meant [B, T, 1].

    Tokens not marked as an answer's are a prompt's.
    """
    import torch

    if tokens == "all":
        return None
    mask = _answers.get()
    if not isinstance(mask, bool):
        return (mask if tokens == "answer" else ~mask).view(*values.shape[:2], 1)
    return torch.full((*values.shape[:2], 1), mask is (tokens == "answer"), device=values.device)
