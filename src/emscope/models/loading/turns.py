"""What a chat template writes around a question and its answer, read off renderings with marks in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.models.loading.templates import ANSWER, USER, Template, prepended

if TYPE_CHECKING:
    from emscope.models.types import Tokenizer

NEXT = "emscopenextmark"
BLANK = " \n"  # white space around an answer, to see whether the template keeps it
LONGEST_OPENING = 40  # characters before a question that can hardly be a system block


@dataclass(frozen=True, slots=True)
class Turns:
    """The texts around a question and its answer in a rendered conversation.

    Attributes:
        front: before the question. tail: from the question to the answer, thought or channel included.
        lead: spaces that belong to the answer's first token. close: what ends an answer.
        opener: what opens a further user turn; "" where that is unknown.
        keeps_left, keeps_right: whether whitespace around an answer is kept.
    """

    front: str
    tail: str
    lead: str
    close: str
    opener: str
    keeps_left: bool = True
    keeps_right: bool = True

    def trimmed(self, answer: str) -> str:
        """Return an answer's text as the template shows it."""
        answer = answer if self.keeps_left else answer.lstrip()
        return answer if self.keeps_right else answer.rstrip()


def turns_of(template: Template, tokenizer: Tokenizer) -> Turns:
    """Return what surrounds a question and its answer in a template's renderings."""
    front, _, behind = template.render([("user", USER), ("assistant", ANSWER)]).partition(USER)
    tail, _, end = behind.partition(ANSWER)
    # Whitespace after the end of turn belongs to the next turn: nobody samples it.
    end = end.rstrip()
    between = _between(template)
    inner = inner_end(between, end, tokenizer)
    spaced = template.render([("user", USER), ("assistant", f"{BLANK}{ANSWER}{BLANK}")]).partition(USER)[2]
    left, _, right = spaced.partition(ANSWER)
    bare = tail.rstrip(" ")
    return Turns(
        front,
        bare,
        tail[len(bare) :],
        end or _first_token(between, tokenizer),
        between[len(inner) :].lstrip("\n"),
        left == tail + BLANK,
        right.startswith(BLANK),
    )


def inner_end(between: str, close: str, tokenizer: Tokenizer) -> str:
    """Return how an answer ends when others follow: like the last one, or by a single token there instead.

    Args:
        between: the text from that answer to the next turn's text. close: the end of a conversation's last answer.
    """
    return close if between.startswith(close) else _first_token(between, tokenizer)


def default_block(turns: Turns, tokenizer: Tokenizer) -> str:
    """Return the system block that the template adds by itself, or "" where it adds none.

    It is what precedes the first user turn's opening, except for tokens that begin every text.

    Raises:
        InputError: the user's turn cannot be told from what precedes it.
    """
    if not turns.opener or not turns.front.endswith(turns.opener):
        if len(turns.front) < LONGEST_OPENING and "system" not in turns.front.lower():
            return ""
        raise InputError(
            "this model's chat template does not separate its default system block from the user's turn",
            "use system: template, or give a system prompt",
        )
    block = turns.front[: -len(turns.opener)]
    for begin in (prepended(tokenizer), tokenizer.bos_token or ""):
        # In ChatML the turn opener doubles as bos; only a separate bos before the block stays.
        if begin and block.startswith(begin) and not turns.opener.startswith(begin):
            block = block[len(begin) :]
    words = block
    for token in tokenizer.added_tokens_encoder:
        words = words.replace(token, "")
    return block if words.strip() else ""


def _between(template: Template) -> str:
    """Return the text from an answer to the next question; "" where the template shows no further turn."""
    try:
        text = template.render([("user", USER), ("assistant", ANSWER), ("user", NEXT)])
    except InputError:
        return ""
    return text.partition(ANSWER)[2].partition(NEXT)[0] if text.find(NEXT) > text.find(ANSWER) >= 0 else ""


def _first_token(text: str, tokenizer: Tokenizer) -> str:
    """Return the added token, other than white space, that a text begins with; "" where there is none."""
    return max((t for t in tokenizer.added_tokens_encoder if text.startswith(t) and t.strip()), key=len, default="")
