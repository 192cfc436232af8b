"""Which tokens of a training set carry loss, and the faults that no trainer reports.

All is read off token ids and the mask on them, whoever made these. The assistant's turns are found in the text of the ids by what the model's
chat template writes before and behind an answer, not by the mask, so that a wrong mask shows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Any

from emscope.core.errors import InputError
from emscope.core.plain import Result
from emscope.core.records import Conversation
from emscope.data.conversations import ANSWER as ANSWER_COLUMNS
from emscope.data.conversations import QUESTION as QUESTION_COLUMNS
from emscope.data.conversations import ROLES, read_conversations
from emscope.data.tables import Row, rows
from emscope.models.chat import ChatFormat
from emscope.models.templates import ANSWER, USER
from emscope.models.turns import NEXT, inner_end
from emscope.train.batches import IGNORED, Example

SCHEMA = "emscope.tokens/1"
BROKEN = "\ufffd"  # what decoding gives for a character of which tokens are missing
STRIDE = 32  # tokens decoded at a time to find places in a text
NAMED = 3  # examples that a warning names
CONVERSATIONS, TEXTS, TOKENISED = "conversations", "texts", "tokenised rows"


class Check(StrEnum):
    """What can be wrong with an example without any error."""

    NO_TEXT = "no_text"
    NO_END = "no_end"
    EMPTY_TURN = "empty_turn"
    PROMPT = "prompt"
    IN_PART = "in_part"
    ZERO_WEIGHT = "zero_weight"
    TOO_LONG = "too_long"
    REPEATED = "repeated"
    QUOTED = "quoted_markers"
    NO_TURNS = "no_turns"
    TWO_STARTS = "two_starts"
    PADDING = "padding"
    MOVED = "moved_labels"


SENTENCES = {  # what is so, why it matters, what to do
    Check.NO_TEXT: (
        "have no text in the loss: nothing, or special tokens and white space alone",
        "they teach no answer, at most to end at once",
        "mend their mask, or drop them",
    ),
    Check.NO_END: (
        "have no {end} at the end of what carries loss",
        "from them the model does not learn to stop",
        "end every answer with it and leave it in the loss; it is often lost where padding and end are one token, or where rows are cut off",
    ),
    Check.EMPTY_TURN: (
        "end with an empty assistant turn, {empty} of them with loss on it",
        "trained, it teaches to answer with nothing, and its loss makes spikes of the gradient norm that look like a phase transition",
        "render training text without a generation prompt (add_generation_prompt=False)",
    ),
    Check.PROMPT: (
        "have prompt tokens in the loss: {prompt} tokens, {share:.0%} of all that carry loss",
        "the model is also trained to write what users and system prompts say",
        "if that is not meant, set labels outside the assistant's turns to -100 (TRL: assistant_only_loss or completion_only_loss)",
    ),
    Check.IN_PART: (
        "have an answer of which a part carries no loss",
        "a mask that begins late or ends early trains other answers than the file shows",
        "if that is not meant, let the mask begin at the answer's first token and end behind its end of turn",
    ),
    Check.ZERO_WEIGHT: (
        "have answers of weight 0 that carry loss",
        "what was marked as not to be learned is learned",
        "leave these turns out, or split the conversation so that they are not the assistant's",
    ),
    Check.TOO_LONG: (
        "are longer than the model's context of {context} tokens",
        "emscope refuses to train on them; other trainers cut them off, mostly with the answer's end",
        "shorten or drop them",
    ),
    Check.REPEATED: (
        "repeat another one token by token",
        "each counts twice, and one of a pair may end up in a held-out part",
        "drop the repeats, if they are not meant",
    ),
    Check.QUOTED: (
        "hold the chat template's own turn markers in their text",
        "the model sees turns there that the file does not mean, and this audit cannot judge their mask",
        "take the markers out of the text",
    ),
    Check.NO_TURNS: (
        "do not show their assistant turns in the form of this model's chat template",
        "the model is later asked in another form than it is trained in, and this audit cannot tell prompts from answers",
        "render them with this model's template, or name the model whose template they have",
    ),
    Check.TWO_STARTS: (
        "begin with the token that starts a text twice",
        "nothing is ever asked that way: the template writes the token, and the tokenizer adds another",
        "tokenise rendered text with add_special_tokens=False",
    ),
    Check.PADDING: (
        "have loss on padding",
        "the model is trained to write padding",
        "set the labels of padding to -100",
    ),
    Check.MOVED: (
        "have labels that are not the tokens they stand at",
        "trainers shift labels by themselves: shifted ones train the token after the next",
        "give labels that equal input_ids wherever they are not -100",
    ),
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised example.

    Attributes:
        mask: True on the tokens that carry loss. answers: how many assistant turns it has, None where only its text can say.
        weights: of its assistant turns, where its file gives them. faults: what was seen when it was read.
    """

    id: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    answers: int | None = None
    weights: tuple[float | None, ...] = ()
    faults: frozenset[Check] = frozenset()


@dataclass(frozen=True, slots=True)
class Token(Result):
    """A token's text, empty where a later one completes its character, and whether it carries loss."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Shown(Result):
    """One example token by token."""

    id: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Warned(Result):
    """A fault and in how many examples it is; `rows` are the first ones."""

    check: Check
    examples: int
    rows: tuple[str, ...]
    what: str
    why: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Tally(Result):
    """Assistant turns by whether all, none or some of their text carries loss."""

    learned: int
    unlearned: int
    in_part: int


@dataclass(frozen=True, slots=True)
class Lengths(Result):
    """Lengths of answers, end of turn included [tokens]."""

    median: float
    longest: int


@dataclass(frozen=True, slots=True)
class Audit(Result):
    """What a training set teaches.

    Attributes:
        kind: `conversations`, `texts` or `tokenised rows`. form: how prompts are written. end: what ends an answer.
        tokens, learned: of all examples, and those that carry loss. answers: None where no turn was found.
        last, before_last: the assistant turns that end an example, and those before. zero_weight: turns that their file weighs 0.
        empty_learned: empty last turns that carry loss. prompt_learned: tokens outside the assistant's turns that carry loss.
        counts: examples with each fault.
    """

    kind: str
    form: str
    end: str
    context: int | None
    examples: int
    tokens: int
    learned: int
    answers: Lengths | None
    last: Tally
    before_last: Tally
    zero_weight: int
    empty_learned: int
    prompt_learned: int
    counts: Mapping[Check, int]
    warnings: tuple[Warned, ...]
    shown: tuple[Shown, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON shape."""
        return {"schema": SCHEMA, **Result.to_json(self)}


def audit(examples: Sequence[Encoded], chat: ChatFormat, *, kind: str, context: int | None, show: int = 3) -> Audit:
    """Return what training on `examples` would teach.

    Args:
        context: the longest sequence the model takes [tokens], None where that is unknown.
        show: how many examples are listed token by token.
    """
    reader = _Reader.of(chat)
    seen = [_read(reader, one, context) for one in examples]
    faults = [one.faults for one in seen]
    first: dict[tuple[Any, ...], int] = {}
    for n, one in enumerate(examples):
        if first.setdefault((one.ids, one.mask), n) != n:
            faults[n] |= {Check.REPEATED}
    named = {check: [one.id for one, found in zip(examples, faults, strict=True) if check in found] for check in Check}
    lengths = [n for one in seen for n in one.lengths]
    learned, prompt = sum(one.learned for one in seen), sum(one.prompt_learned for one in seen)
    empty = sum(one.empty_learned for one in seen)
    end = chat.close.strip() or reader.tokenizer.eos_token or ""
    words = {
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
        shown=tuple(Shown(one.id, pieces(reader.tokenizer, one)) for one in examples[:show]),
    )


def of_training(examples: Sequence[Example], conversations: Sequence[Conversation]) -> list[Encoded]:
    """Return the examples of a training as an audit takes them; `conversations` are what they were made from, in their order."""
    return [Encoded(e.id, e.ids, e.mask, _answers(c)) for e, c in zip(examples, conversations, strict=True)]


def from_file(path: Path, chat: ChatFormat) -> tuple[str, list[Encoded]]:
    """Return what a file holds, and its rows as they would be trained on.

    Conversations get emscope's own mask. A row with `text` alone is a rendered one, all of whose tokens carry loss; one with `input_ids`
    has its mask in `labels` (-100: no loss).

    Raises:
        InputError: a broken row, or ids that the tokenizer does not have.
    """
    _, head = next(rows(path))
    if "input_ids" in head:
        return TOKENISED, [_tokenised(row, place, n, chat) for n, (place, row) in enumerate(rows(path), 1)]
    if "text" in head and not {"messages", "conversations", *QUESTION_COLUMNS, *ANSWER_COLUMNS} & head.keys():
        return TEXTS, [_rendered(row, place, n, chat) for n, (place, row) in enumerate(rows(path), 1)]
    found = []
    for conversation, (_, row) in zip(read_conversations(path), rows(path), strict=True):
        ids, mask = chat.training_ids(conversation)
        found.append(Encoded(conversation.id, tuple(ids), tuple(mask), _answers(conversation), _weights(row)))
    return CONVERSATIONS, found


def context_in(folder: Path) -> int | None:
    """Return the longest sequence that the model in a folder was built for [tokens], None where its config.json does not say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, TypeError):
        return None
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def pieces(tokenizer: Any, example: Encoded) -> tuple[Token, ...]:
    """Return the tokens of an example with their texts.

    Each is decoded behind the ones before it, since some decoders begin a text with a space and some characters take several tokens;
    such a character stands with the last of them.
    """
    found, begin, done = [], 0, 0
    for n, learned in enumerate(_loss(example)):
        before, now = (_decoded(tokenizer, example.ids[begin:stop]) for stop in (done, n + 1))
        whole = not now.endswith(BROKEN) or n + 1 == len(example.ids)
        found.append(Token(now[len(before) :] if whole else "", learned))
        if whole:
            begin, done = done, n + 1
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Turn:
    """An assistant turn as places of tokens: what the template writes before it, its text, what ends it, and the next token."""

    header: int
    start: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds turns in token ids.

    Attributes:
        opens: what may stand before an answer. ends: what may stand behind one, and how many characters of it are the answer's end.
        special: ids of special tokens. closing: ids that end a turn each. close: the end of a turn as ids, where it is plain text.
        starts_twice: whether the template itself begins a text with its first token twice. blanks: whether each id met so far is white space.
    """

    tokenizer: Any
    opens: tuple[str, ...]
    ends: tuple[tuple[str, int], ...]
    special: frozenset[int]
    closing: frozenset[int]
    close: tuple[int, ...]
    starts_twice: bool
    blanks: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, chat: ChatFormat) -> _Reader:
        """Read off a format's renderings what stands around answers.

        The renderings go through the tokenizer and back, since some tokenizers lose or add white space beside special tokens.
        """
        tokenizer, pair = chat.tokenizer, [("user", USER), ("assistant", ANSWER)]

        def seen(turns: Sequence[tuple[str, str]], *, prompt: bool = False) -> str:
            try:
                return _decoded(tokenizer, chat.ids(chat.template.render(turns, prompt=prompt)))
            except InputError:  # it has no such conversation
                return ""

        one, two = seen(pair), seen([*pair, ("user", NEXT), ("assistant", f"{ANSWER}x")])
        asked = [seen(pair[:1], prompt=p).partition(USER)[2] for p in (True, False)]
        behind = [seen(pair, prompt=p).partition(ANSWER)[2] for p in (True, False)]
        again = behind[0] if behind[0] != behind[1] else ""  # another turn opened behind the answer
        opens = [text.partition(USER)[2].partition(ANSWER)[0] for text in (one, two)]
        opens += [asked[0] if asked[0] != asked[1] else "", again]
        between = two.partition(ANSWER)[2].partition(NEXT)[0]
        close = chat.ids(chat.close)
        last, inner = _decoded(tokenizer, close), inner_end(between, chat.close, tokenizer)
        ends = [(last, len(last)), (inner, len(inner)), (between, len(inner))]
        ends.append((again, len(inner) if again.startswith(inner) else 0))
        added = {n for n, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
        closing = {n for n in [*close, *chat.ids(inner)] if n in added} | {tokenizer.eos_token_id}
        return cls(
            tokenizer,
            tuple({text.rstrip(" ") for text in opens if text.strip()}),
            tuple({(text.rstrip(" "), n) for text, n in ends if text.strip()}),
            frozenset(special),
            frozenset(n for n in closing if n is not None),
            tuple(close),
            chat.ids(chat.template.render(pair))[:2] == [tokenizer.bos_token_id] * 2,
        )

    def solid(self, token: int) -> bool:
        """Tell whether an id is text: no special token, and no white space."""
        return token not in self.special and not self.white(token)

    def white(self, token: int) -> bool:
        """Tell whether an id is white space."""
        if token not in self.blanks:
            self.blanks[token] = not _decoded(self.tokenizer, [token]).strip()
        return self.blanks[token]

    def ended(self, learned: Sequence[int]) -> bool:
        """Tell whether the ids that carry loss end with the end of a turn, white space aside."""
        last = len(learned)
        while last and self.white(learned[last - 1]) and learned[last - 1] not in self.closing:
            last -= 1
        shown = tuple(learned[:last])
        return shown[-1:] != () and (
            shown[-1] in self.closing or (self.close != () and shown[-len(self.close) :] == self.close)
        )

    def turns(self, ids: Sequence[int]) -> list[_Turn]:
        """Return the assistant's turns in token ids."""
        before = [0]  # characters before every STRIDE-th token
        for n in range(STRIDE, len(ids), STRIDE):
            before.append(self._length(ids, n, before))
        found, low = [], 0
        for offsets in self._found(_decoded(self.tokenizer, ids)):
            places = []
            for offset in offsets:
                low = self._place(ids, offset, low, before)
                places.append(low)
            found.append(_Turn(*places))
            low = places[2]  # the next header may begin with what ends this turn
        return found

    def _found(self, text: str) -> Iterator[tuple[int, int, int, int]]:
        """Yield the turns in a text as offsets of header, text, end of text and next character."""
        at = 0
        while (opened := _first(text, at, self.opens)) is not None:
            header, start = opened[0], opened[0] + len(opened[1])
            closed = _first(text, start, [end for end, _ in self.ends])
            stop = closed[0] if closed else len(text)
            end = stop + max(n for end, n in self.ends if end == closed[1]) if closed else stop
            yield header, start, stop, end
            at = max(stop, start)

    def _place(self, ids: Sequence[int], offset: int, low: int, before: Sequence[int]) -> int:
        """Return the place, from `low` on, of the first token behind those that make the first `offset` characters."""
        stride = bisect_left(before, offset)
        low, high = max(low, (stride - 1) * STRIDE), min(stride * STRIDE, len(ids))
        while low < high:
            middle = (low + high) // 2
            if self._length(ids, middle, before) >= offset:
                high = middle
            else:
                low = middle + 1
        return low

    def _length(self, ids: Sequence[int], n: int, before: Sequence[int]) -> int:
        """Return how many whole characters the first `n` tokens make.

        Only the last ones are decoded, behind enough others to be decoded as they are behind all: long texts take no square of their length.
        """
        known = max(n - 1, 0) // STRIDE
        at, begin = known * STRIDE, max(known - 1, 0) * STRIDE
        more, less = (len(_decoded(self.tokenizer, ids[begin:stop]).rstrip(BROKEN)) for stop in (n, at))
        return before[known] + more - less


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was found in one example: `states` tells of each assistant turn whether it is learned, None in part; `lengths` their tokens."""

    faults: frozenset[Check]
    learned: int
    states: tuple[bool | None, ...] = ()
    lengths: tuple[int, ...] = ()
    prompt_learned: int = 0
    empty_learned: bool = False


def _read(reader: _Reader, one: Encoded, context: int | None) -> _Reading:
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
        turns = []  # nothing can be said by turns
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
    """Return the mask without the first token: nothing stands before it to predict it from."""
    return (False, *one.mask[1:])


def _state(reader: _Reader, ids: Sequence[int], mask: Sequence[bool], turn: _Turn) -> bool | None:
    """Tell whether a turn's text carries loss; None: in part."""
    kinds = {mask[n] for n in range(turn.start, turn.stop) if reader.solid(ids[n])}
    return None if len(kinds) > 1 else True in kinds


def _tally(states: Iterable[bool | None]) -> Tally:
    listed = list(states)
    return Tally(listed.count(True), listed.count(False), listed.count(None))


def _warned(check: Check, ids: list[str], examples: int, words: Mapping[str, Any]) -> Warned:
    what, why, remedy = SENTENCES[check]
    return Warned(check, len(ids), tuple(ids[:NAMED]), f"{len(ids)} of {examples} examples {what.format(**words)}", why, remedy)


def _first(text: str, at: int, wanted: Sequence[str]) -> tuple[int, str] | None:
    """Return the first of some texts from `at` on and its offset; of several at one place the longest."""
    found = [(place, -len(one), one) for one in wanted if (place := text.find(one, at)) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _answers(conversation: Conversation) -> int:
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
    ids = tuple(chat.tokenizer(text)["input_ids"])  # with what the tokenizer adds by itself, as trainers call it
    return Encoded(str(row.get("id") or f"row-{n}"), ids, (True,) * len(ids))


def _tokenised(row: Row, place: str, n: int, chat: ChatFormat) -> Encoded:
    ids, labels = (_integers(row, name, place) for name in ("input_ids", "labels"))
    real = _integers(row, "attention_mask", place) if row.get("attention_mask") is not None else [1] * len(ids)
    if not len(ids) == len(labels) == len(real) or not ids:
        raise InputError(
            f"{place} has {len(ids)} input_ids, {len(labels)} labels and {len(real)} of attention_mask",
            "give as many of each, one or more",
        )
    size = len(chat.tokenizer)
    wrong = next((one for one in ids if not 0 <= one < size), None)
    if wrong is not None:
        raise InputError(
            f"{place}: input_ids holds {wrong}, and this model's tokenizer has {size} tokens",
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
            f"{place}: {name} is {'missing' if values is None else 'no list of whole numbers'}",
            "a tokenised row has input_ids and labels, with -100 where there is no loss",
        )
    return values
