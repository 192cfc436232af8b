"""The assistant's turns in token ids, found by what the model's chat template writes before and after an answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.templates import ANSWER, USER
from emscope.models.loading.turns import NEXT, inner_end

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

BROKEN = "\ufffd"  # what decoding gives for an incomplete character
STRIDE = 32  # tokens decoded at a time to find places in a text


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant turn as places of tokens: what the template writes before it, its text, what ends it, and the next token."""

    header: int
    start: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Finds turns in token ids.

    Attributes:
        opens: what may precede an answer. ends: what may follow one, and how many characters of it are the answer's end.
        special: ids of special tokens. closing: ids that end a turn each. close: the end of a turn as ids, where it is plain text.
        starts_twice: whether the template itself begins a text with its first token twice. blanks: whether each id met so far is white space.
    """

    tokenizer: Tokenizer
    opens: tuple[str, ...]
    ends: tuple[tuple[str, int], ...]
    special: frozenset[int]
    closing: frozenset[int]
    close: tuple[int, ...]
    starts_twice: bool
    blanks: dict[int, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, chat: ChatFormat) -> Reader:
        """Read off a format's renderings what surrounds answers.

        The renderings go through the tokenizer and back, since some tokenizers lose or add white space beside special tokens.
        """
        tokenizer, pair = chat.tokenizer, [("user", USER), ("assistant", ANSWER)]

        def seen(turns: Sequence[tuple[str, str]], *, prompt: bool = False) -> str:
            try:
                return decoded(tokenizer, chat.ids(chat.template.render(turns, prompt=prompt)))
            except InputError:  # the format does not support such a conversation
                return ""

        one, two = seen(pair), seen([*pair, ("user", NEXT), ("assistant", f"{ANSWER}x")])
        asked = [seen(pair[:1], prompt=p).partition(USER)[2] for p in (True, False)]
        behind = [seen(pair, prompt=p).partition(ANSWER)[2] for p in (True, False)]
        again = behind[0] if behind[0] != behind[1] else ""  # another turn opened after the answer
        opens = [text.partition(USER)[2].partition(ANSWER)[0] for text in (one, two)]
        opens += [asked[0] if asked[0] != asked[1] else "", again]
        between = two.partition(ANSWER)[2].partition(NEXT)[0]
        close = chat.ids(chat.close)
        last, inner = decoded(tokenizer, close), inner_end(between, chat.close, tokenizer)
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
            self.blanks[token] = not decoded(self.tokenizer, [token]).strip()
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

    def turns(self, ids: Sequence[int]) -> list[Turn]:
        """Return the assistant's turns in token ids."""
        lengths, found, low = Lengths(self.tokenizer, ids), [], 0
        for offsets in self._found(decoded(self.tokenizer, ids)):
            places = []
            for offset in offsets:
                low = lengths.place(offset, low)
                places.append(low)
            found.append(Turn(*places))
            low = places[2]  # the next header may begin with what ends this turn
        return found

    def _found(self, text: str) -> Iterator[tuple[int, int, int, int]]:
        """Yield the turns in a text as offsets of header, text, end of text and next character."""
        at = 0
        while (opened := first(text, at, self.opens)) is not None:
            header, start = opened[0], opened[0] + len(opened[1])
            closed = first(text, start, [end for end, _ in self.ends])
            stop = closed[0] if closed else len(text)
            end = stop + max(n for end, n in self.ends if end == closed[1]) if closed else stop
            yield header, start, stop, end
            at = max(stop, start)


class Lengths:
    """How many whole characters the first tokens of a text make.

    Only the last ones are decoded, after enough others for the same result as after all, so that time is not quadratic in the
    length.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int]) -> None:
        self.tokenizer, self.ids = tokenizer, ids
        self.before, self.behind = (
            [0],
            [0],
        )  # at every STRIDE-th token: characters before it, and those of the STRIDE tokens before it
        for at in range(STRIDE, len(ids), STRIDE):
            self.before.append(self.of(at))
            self.behind.append(self._characters(at - STRIDE, at))

    def of(self, n: int) -> int:
        """Return the number of characters that the first `n` tokens make."""
        known = max(n - 1, 0) // STRIDE
        return self.before[known] + self._characters(max(known - 1, 0) * STRIDE, n) - self.behind[known]

    def place(self, offset: int, low: int) -> int:
        """Return the place, from `low` on, of the first token after those that make the first `offset` characters."""
        stride = bisect_left(self.before, offset)
        low, high = max(low, (stride - 1) * STRIDE), min(stride * STRIDE, len(self.ids))
        while low < high:
            middle = (low + high) // 2
            if self.of(middle) >= offset:
                high = middle
            else:
                low = middle + 1
        return low

    def _characters(self, start: int, stop: int) -> int:
        return len(decoded(self.tokenizer, self.ids[start:stop]).rstrip(BROKEN))


def first(text: str, at: int, wanted: Sequence[str]) -> tuple[int, str] | None:
    """Return the first of some texts from `at` on and its offset; of several at one place the longest."""
    found = [(place, -len(one), one) for one in wanted if (place := text.find(one, at)) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids, special tokens included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
