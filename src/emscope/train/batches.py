"""The exact examples of every step, fixed before training starts.

A batch is laid out so that all answers begin in the same column: prompts padded on the left, answers on the right. The output
matrix then runs on the last columns only. Or its examples are packed in one row, end to end, without padding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.records import Conversation
from emscope.core.seeds import derive
from emscope.models.loading.chat import ChatFormat

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized conversation: `answer` is the place of its first answer token; `mask` is True on tokens to learn."""

    id: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    answer: int


def encode(chat: ChatFormat, conversations: Sequence[Conversation], context: int) -> list[Example]:
    """Tokenize training conversations.

    Raises:
        InputError: where one is longer than the model's context.
    """
    examples = []
    for conversation in conversations:
        ids, mask = chat.training_ids(conversation)
        if len(ids) > context:
            raise InputError(
                f"conversation '{conversation.id}' is {len(ids)} tokens long, but the model's context is {context}",
                "shorten or drop it",
            )
        examples.append(Example(conversation.id, tuple(ids), tuple(mask), mask.index(True)))
    return examples


def stream(
    examples: Sequence[Example], *, steps: int, batch: int, micro: int, seed: int, parts: Sequence[int] | None = None
) -> list[Example]:
    """Return `steps * batch` examples in training order.

    Each pass over the data is shuffled again; within one step examples are sorted by length, so that micro-batches of similar
    length need little padding (the step's sum is the same in any order).

    Args:
        parts: the part each example belongs to; each part is then spread evenly over a pass, the order within it shuffled.
    """
    order: list[Example] = []
    epoch = 0
    while len(order) < steps * batch:
        places = list(range(len(examples)))
        Random(derive(seed, "order", epoch)).shuffle(places)
        order += [examples[n] for n in (places if parts is None else _spread(places, parts))]
        epoch += 1
    out: list[Example] = []
    for step in range(steps):
        members = order[step * batch : (step + 1) * batch]
        out += sorted(members, key=lambda e: len(e.ids)) if micro < batch else members
    return out


def _spread(places: Sequence[int], parts: Sequence[int]) -> list[int]:
    """Return `places` with the k-th of a part's n at (k + 1/2) / n of the way."""
    sizes, seen = Counter(parts), Counter[int]()
    at: dict[int, float] = {}
    for n in places:
        at[n] = (seen[parts[n]] + 0.5) / sizes[parts[n]]
        seen[parts[n]] += 1
    return sorted(places, key=lambda n: (at[n], parts[n]))


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask`, `position_ids`, `labels`, each [B, T], aligned at the first answer token."""
    import torch

    before = max(e.answer for e in examples)
    after = max(len(e.ids) - e.answer for e in examples)
    ids = torch.zeros(len(examples), before + after, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for n, e in enumerate(examples):
        place = slice(before - e.answer, before - e.answer + len(e.ids))
        ids[n, place] = torch.tensor(e.ids)
        mask[n, place] = 1
        labels[n, place] = torch.where(torch.tensor(e.mask), ids[n, place], IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "labels": labels}


def collate_packed(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Return `input_ids`, `position_ids`, `labels`, each [1, T], of examples laid end to end; positions restart at each.

    There is no mask: transformers separates the examples by their positions (`train.attention` checks that it does).
    """
    import torch

    ids = torch.tensor([[token for e in examples for token in e.ids]])
    learned = torch.tensor([[learns for e in examples for learns in e.mask]])
    places = torch.cat([torch.arange(len(e.ids)) for e in examples])[None]
    return {"input_ids": ids, "position_ids": places, "labels": torch.where(learned, ids, IGNORED)}


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Return where a batch holds tokens of its examples and no padding [B, T]."""
    import torch

    ids = batch["input_ids"]
    return batch["attention_mask"].bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)


def sequences_in(batch: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    """Return the token ids of each example of a batch, padded or packed."""
    tokens = batch["input_ids"][real_tokens(batch)]
    places = batch["position_ids"][real_tokens(batch)]
    starts = (places == 0).nonzero()[1:, 0].tolist()
    return [tuple(part.tolist()) for part in tokens.cpu().tensor_split(starts)]
