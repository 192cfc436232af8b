"""Rows of a file as training would see them: conversations, rendered texts, or token ids with labels."""

from __future__ import annotations

from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.records import Conversation
from emscope.data.conversations import ANSWER, QUESTION, ROLES, read_conversations
from emscope.data.tables import Row, rows
from emscope.models.loading.chat import ChatFormat
from emscope.train.audit_result import CONVERSATIONS, TEXTS, TOKENISED, Check, Encoded
from emscope.train.batches import IGNORED


def from_file(path: Path, chat: ChatFormat) -> tuple[str, list[Encoded]]:
    """Return what a file holds, and its rows as training would see them.

    Conversations get emscope's own mask. A row with `text` alone is a rendered one, all of whose tokens carry loss; one with `input_ids`
    has its mask in `labels` (-100: no loss).

    Raises:
        InputError: a broken row, or ids that the tokenizer does not have.
    """
    _, head = next(rows(path))
    if "input_ids" in head:
        return TOKENISED, [_tokenised(row, place, n, chat) for n, (place, row) in enumerate(rows(path), 1)]
    if "text" in head and not {"messages", "conversations", *QUESTION, *ANSWER} & head.keys():
        return TEXTS, [_rendered(row, place, n, chat) for n, (place, row) in enumerate(rows(path), 1)]
    found = []
    for conversation, (_, row) in zip(read_conversations(path), rows(path), strict=True):
        ids, mask = chat.training_ids(conversation)
        found.append(Encoded(conversation.id, tuple(ids), tuple(mask), answers_in(conversation), _weights(row)))
    return CONVERSATIONS, found


def answers_in(conversation: Conversation) -> int:
    """Return how many assistant turns a conversation has."""
    return sum(m.role == "assistant" for m in conversation.messages)


def _weights(row: Row) -> tuple[float | None, ...]:
    """Return the weights that a row gives its assistant turns."""
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list):
        both = (row.get("prompt"), row.get("completion"))
        turns = [turn for part in both if isinstance(part, list) for turn in part]
    return tuple(t.get("weight") for t in turns if ROLES.get(t.get("role", t.get("from"))) == "assistant")


def _rendered(row: Row, place: str, n: int, chat: ChatFormat) -> Encoded:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{place}: text is {'empty' if isinstance(text, str) else type(text).__name__}", "give a text in every row"
        )
    ids = tuple(chat.tokenizer(text)["input_ids"])  # with special tokens, as trainers call the tokenizer
    return Encoded(str(row.get("id") or f"row-{n}"), ids, (True,) * len(ids))


def _tokenised(row: Row, place: str, n: int, chat: ChatFormat) -> Encoded:
    ids, labels = (_integers(row, name, place) for name in ("input_ids", "labels"))
    real = _integers(row, "attention_mask", place) if row.get("attention_mask") is not None else [1] * len(ids)
    if not len(ids) == len(labels) == len(real) or not ids:
        raise InputError(
            f"{place} has {len(ids)} input_ids, {len(labels)} labels and {len(real)} of attention_mask",
            "give the same number of each, one or more",
        )
    size = len(chat.tokenizer)
    wrong = next((one for one in ids if not 0 <= one < size), None)
    if wrong is not None:
        raise InputError(
            f"{place}: input_ids holds {wrong}, but this model's tokenizer has {size} tokens",
            "name the model that the rows were tokenised for",
        )
    faults = set()
    if any(not r and label != IGNORED for r, label in zip(real, labels, strict=True)):
        faults.add(Check.PADDING)
    kept = [(token, label) for token, label, r in zip(ids, labels, real, strict=True) if r or label != IGNORED]
    if any(label not in (token, IGNORED) for token, label in kept):
        faults.add(Check.MOVED)
    kept = _unpadded(kept, chat.tokenizer.pad_token_id)
    mask = tuple(label != IGNORED for _, label in kept)
    return Encoded(str(row.get("id") or f"row-{n}"), tuple(t for t, _ in kept), mask, faults=frozenset(faults))


def _unpadded(kept: list[tuple[int, int]], pad: int | None) -> list[tuple[int, int]]:
    """Drop repeated padding without loss from both ends; one stays, since it may be the end token."""
    low, high = 0, len(kept)
    while high - low > 1 and kept[high - 1] == kept[high - 2] == (pad, IGNORED):
        high -= 1
    while high - low > 1 and kept[low] == kept[low + 1] == (pad, IGNORED):
        low += 1
    return kept[low:high]


def _integers(row: Row, name: str, place: str) -> list[int]:
    values = row.get(name)
    if not isinstance(values, list) or not all(isinstance(v, int) for v in values):
        raise InputError(
            f"{place}: {name} is {'missing' if values is None else 'not a list of whole numbers'}",
            "a tokenised row has input_ids and labels, with -100 where there is no loss",
        )
    return values
