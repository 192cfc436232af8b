"""Which tokens of a training set carry loss, and faults that no trainer reports.

Everything is read off token ids and the mask on them, wherever they come from. The assistant's turns are found in the text of the
ids, not by the mask, so that a wrong mask shows up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from emscope.core.records import Conversation
from emscope.models.loading.chat import ChatFormat
from emscope.train.audit_result import SENTENCES, Audit, Check, Encoded, Excerpt, Lengths, Tally, Token, Warned
from emscope.train.audit_rows import answers_in
from emscope.train.batches import Example
from emscope.train.turns_in_ids import BROKEN, Reader, Turn, decoded

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

NAMED = 3  # examples that a warning names


def audit(examples: Sequence[Encoded], chat: ChatFormat, *, kind: str, context: int | None, show: int = 3) -> Audit:
    """Return what training on `examples` would teach.

    Args:
        context: the longest sequence the model takes [tokens], None where that is unknown.
        show: how many examples are listed token by token.
    """
    reader = Reader.of(chat)
    seen = [_read(reader, one, context) for one in examples]
    faults = [one.faults for one in seen]
    first: dict[tuple[tuple[int, ...], tuple[bool, ...]], int] = {}
    for n, one in enumerate(examples):
        if first.setdefault((one.ids, one.mask), n) != n:
            faults[n] |= {Check.REPEATED}
    named = {check: [one.id for one, found in zip(examples, faults, strict=True) if check in found] for check in Check}
    lengths = [n for one in seen for n in one.lengths]
    learned, prompt = sum(one.learned for one in seen), sum(one.prompt_learned for one in seen)
    empty = sum(one.empty_learned for one in seen)
    end = chat.close.strip() or reader.tokenizer.eos_token or ""
    words: dict[str, str | float | None] = {
        "end": repr(end) if end else "end token",
        "empty": empty,
        "prompt": prompt,
        "share": prompt / max(learned, 1),
        "context": context,
    }
    return Audit(
        kind=kind,
        form=chat.describe(),
        end=end,
        context=context,
        examples=len(examples),
        tokens=sum(len(one.ids) for one in examples),
        learned=learned,
        answers=Lengths(float(median(lengths)), max(lengths)) if lengths else None,
        last=_tally(one.states[-1] for one in seen if one.states),
        before_last=_tally(state for one in seen for state in one.states[:-1]),
        zero_weight=sum(w == 0 for one in examples for w in one.weights),
        empty_learned=empty,
        prompt_learned=prompt,
        counts={check: len(ids) for check, ids in named.items()},
        warnings=tuple(_warned(check, ids, len(examples), words) for check, ids in named.items() if ids),
        shown=tuple(Excerpt(one.id, pieces(reader.tokenizer, one)) for one in examples[:show]),
    )


def of_training(examples: Sequence[Example], conversations: Sequence[Conversation]) -> list[Encoded]:
    """Return the examples of a training as an audit takes them; `conversations` are what they were made from, in their order."""
    return [Encoded(e.id, e.ids, e.mask, answers_in(c)) for e, c in zip(examples, conversations, strict=True)]


def context_in(folder: Path) -> int | None:
    """Return the longest sequence that the model in a folder was built for [tokens], None where its config.json does not say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError):
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def pieces(tokenizer: Tokenizer, example: Encoded) -> tuple[Token, ...]:
    """Return the tokens of an example with their texts.

    Each is decoded after the ones before it, since some decoders begin a text with a space and some characters take several
    tokens; such a character is shown with the last of them.
    """
    found, begin, done = [], 0, 0
    for n, learned in enumerate(_loss(example)):
        before, now = (decoded(tokenizer, example.ids[begin:stop]) for stop in (done, n + 1))
        whole = not now.endswith(BROKEN) or n + 1 == len(example.ids)
        found.append(Token(now[len(before) :] if whole else "", learned))
        if whole:
            begin, done = done, n + 1
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was found in one example: `states` says of each assistant turn whether it is learned (None: in part); `lengths` their tokens."""

    faults: frozenset[Check]
    learned: int
    states: tuple[bool | None, ...] = ()
    lengths: tuple[int, ...] = ()
    prompt_learned: int = 0
    empty_learned: bool = False


def _read(reader: Reader, one: Encoded, context: int | None) -> _Reading:
    mask = _loss(one)
    turns = reader.turns(one.ids)
    faults = set(one.faults)
    if context is not None and len(one.ids) > context:
        faults.add(Check.TOO_LONG)
    start = reader.tokenizer.bos_token_id
    if start is not None and one.ids[:2] == (start, start) and not reader.starts_twice:
        faults.add(Check.TWO_STARTS)
    if not turns or len(turns) != (one.answers or len(turns)):
        faults.add(Check.QUOTED if len(turns) > (one.answers or 1) else Check.NO_TURNS)
        turns = []  # turns cannot be told apart
    empty = bool(turns) and not any(map(reader.solid, one.ids[turns[-1].start : turns[-1].stop]))
    full = turns[:-1] if empty else turns
    upto = len(one.ids)
    if empty:
        upto = full[-1].end if full else turns[-1].header
    learned = [n for n in range(len(mask)) if mask[n]]
    if not any(reader.solid(one.ids[n]) for n in learned):
        faults.add(Check.NO_TEXT)
    elif not reader.ended([one.ids[n] for n in learned if n < upto]):
        faults.add(Check.NO_END)
    borders = [0, *(n for turn in turns for n in (turn.header, turn.end)), len(one.ids)]
    outside = [range(low, high) for low, high in zip(borders[::2], borders[1::2], strict=True)] if turns else []
    prompt = sum(mask[n] and reader.solid(one.ids[n]) for places in outside for n in places)
    states = tuple(_state(reader, one.ids, mask, turn) for turn in full)
    of_weight_0 = [state for state, weight in zip(states, one.weights, strict=False) if weight == 0]
    seen = {
        Check.EMPTY_TURN: empty,
        Check.PROMPT: prompt > 0,
        Check.IN_PART: None in states,
        Check.ZERO_WEIGHT: any(state is not False for state in of_weight_0),
    }
    begun = max(turns[-1].header, upto) if empty else 0  # its header may begin with the end of the turn before
    return _Reading(
        frozenset(faults | {check for check, found in seen.items() if found}),
        len(learned),
        states,
        tuple(turn.end - turn.start for turn in full),
        prompt,
        empty and any(mask[begun : turns[-1].end]),
    )


def _loss(one: Encoded) -> tuple[bool, ...]:
    """Return the mask without the first token: nothing before it could predict it."""
    return (False, *one.mask[1:])


def _state(reader: Reader, ids: Sequence[int], mask: Sequence[bool], turn: Turn) -> bool | None:
    """Tell whether a turn's text carries loss; None: in part."""
    kinds = {mask[n] for n in range(turn.start, turn.stop) if reader.solid(ids[n])}
    return None if len(kinds) > 1 else True in kinds


def _tally(states: Iterable[bool | None]) -> Tally:
    listed = list(states)
    return Tally(listed.count(True), listed.count(False), listed.count(None))


def _warned(check: Check, ids: list[str], examples: int, words: Mapping[str, str | float | None]) -> Warned:
    what, why, remedy = SENTENCES[check]
    return Warned(check, len(ids), tuple(ids[:NAMED]), f"{len(ids)} of {examples} examples {what.format(**words)}", why, remedy)
