"""The last hidden states of whole sequences, without padding where the model's attention allows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emscope.models.fast import batch_size as size
from emscope.models.fast.packed import hidden_states, pack, packed_attention


def final_states(net: Any, sequences: Sequence[Sequence[int]]) -> list[Any]:
    """Return the states behind the final norm [T, D] of each sequence, which the output head turns into logits."""
    import torch

    found: list[Any] = [None] * len(sequences)
    longest = max(map(len, sequences), default=0)
    with torch.inference_mode(), packed_attention(net, longest) as fits:
        for batch in _batches(sequences, size.batch_tokens(net) if fits else 1):
            if fits:
                trie = pack([sequences[n] for n in batch], net.device)
                states = hidden_states(net, trie)
                for row, n in enumerate(batch):
                    found[n] = states[trie.paths[row, : len(sequences[n])]]
            else:
                ids = torch.tensor([list(sequences[batch[0]])], device=net.device)
                found[batch[0]] = net.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    return found


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
