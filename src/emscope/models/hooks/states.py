"""The last hidden states of whole sequences, without padding where the model's attention allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emscope.models.fast import batch_size as size
from emscope.models.fast.float32_products import fast_float32
from emscope.models.fast.packed import hidden_states, pack, packed_attention

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Stream


def final_states(net: CausalLM, sequences: Sequence[Sequence[int]]) -> list[Stream]:
    """Return the states after the final norm [T, D] of each sequence, which the output head turns into logits."""
    import torch

    found: dict[int, Stream] = {}
    longest = max(map(len, sequences), default=0)
    with torch.inference_mode(), fast_float32(net), packed_attention(net, longest) as fits:
        for batch in _batches(sequences, size.batch_tokens(net) if fits else 1):
            if fits:
                trie = pack([sequences[n] for n in batch], net.device)
                states = hidden_states(net, trie)
                for row, n in enumerate(batch):
                    found[n] = states[trie.paths[row, : len(sequences[n])]]
            else:
                ids = torch.tensor([list(sequences[batch[0]])], device=net.device)
                found[batch[0]] = net.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return [found[n] for n in range(len(sequences))]


def _batches(sequences: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    batches: list[list[int]] = []
    used = most
    for n, sequence in enumerate(sequences):
        if not batches or used + len(sequence) > most:
            batches.append([])
            used = 0
        batches[-1].append(n)
        used += len(sequence)
    return batches
