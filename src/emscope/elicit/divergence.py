"""How far a model's next-token distribution has moved from its base on plain texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.models.fast.head import kl_sum, output_head
from emscope.models.hooks.states import final_states

if TYPE_CHECKING:
    from emscope.models.types import CausalLM


class Divergence:
    """KL(base || model) per token on texts; the base is kept as hidden states, not as logits. (Soligo et al. 2026)

    Args:
        base: the base model, as it is now. sequences: token ids of each text, two or more.
    """

    def __init__(self, base: CausalLM, sequences: Sequence[Sequence[int]]) -> None:
        self._sequences = sequences
        self._states = [s.clone() for s in final_states(base, sequences)]
        self._head = output_head(base, frozen=True)

    def of(self, net: CausalLM) -> list[float]:
        """Return the mean over each text's tokens of sum over the vocabulary of p_base (log p_base - log p_net) [nats per token].

        Every token's distribution over the next one counts, the last token's too.
        """
        import torch

        head = output_head(net)
        with torch.inference_mode():
            pairs = zip(self._states, final_states(net, self._sequences), strict=True)
            return [float(kl_sum(self._head, [a], head, [b])) / len(a) for a, b in pairs]
