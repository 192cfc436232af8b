"""The results of an audit of a training set: faults, tokens, turns and examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from emscope.core.plain import Result

CONVERSATIONS, TEXTS, TOKENISED = "conversations", "texts", "tokenised rows"


class Check(StrEnum):
    """Faults of an example that raise no error."""

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
        "they teach no answer, at most to stop at once",
        "fix their mask, or drop them",
    ),
    Check.NO_END: (
        "have no {end} at the end of the tokens with loss",
        "from them the model does not learn to stop",
        "end every answer with it and keep it in the loss; it is often lost where padding and end are the same token, or where rows are truncated",
    ),
    Check.EMPTY_TURN: (
        "end with an empty assistant turn, {empty} of them with loss on it",
        "training on it teaches empty answers, and its loss causes spikes in the gradient norm that look like a phase transition",
        "render training text without a generation prompt (add_generation_prompt=False)",
    ),
    Check.PROMPT: (
        "have prompt tokens in the loss: {prompt} tokens, {share:.0%} of all that carry loss",
        "the model is also trained to generate user and system text",
        "if that is not intended, set labels outside the assistant's turns to -100 (TRL: assistant_only_loss or completion_only_loss)",
    ),
    Check.IN_PART: (
        "have an answer with part of it outside the loss",
        "a mask that begins late or ends early trains on other answers than the file shows",
        "if that is not intended, begin the mask at the answer's first token and end it after its end of turn",
    ),
    Check.ZERO_WEIGHT: (
        "have answers of weight 0 that carry loss",
        "turns that were marked as context are learned",
        "leave these turns out, or split the conversation so that they are not assistant turns",
    ),
    Check.TOO_LONG: (
        "are longer than the model's context of {context} tokens",
        "emscope refuses to train on them; other trainers truncate them, usually losing the end of the answer",
        "shorten or drop them",
    ),
    Check.REPEATED: (
        "repeat another one, token for token",
        "each counts twice, and one of a pair may end up in a held-out part",
        "drop the repeats, unless they are intended",
    ),
    Check.QUOTED: (
        "hold the chat template's own turn markers in their text",
        "the model sees turns that the file does not intend, and this audit cannot check their mask",
        "take the markers out of the text",
    ),
    Check.NO_TURNS: (
        "do not show their assistant turns in the form of this model's chat template",
        "the model is later asked in a different form from its training, and this audit cannot tell prompts from answers",
        "render them with this model's template, or name the model whose template they have",
    ),
    Check.TWO_STARTS: (
        "begin with the beginning-of-text token twice",
        "no prompt ever looks like that: the template writes the token, and the tokenizer adds another",
        "tokenise rendered text with add_special_tokens=False",
    ),
    Check.PADDING: (
        "have loss on padding",
        "the model is trained to generate padding",
        "set the labels of padding to -100",
    ),
    Check.MOVED: (
        "have labels that differ from the tokens at their positions",
        "trainers shift labels themselves: labels shifted in advance train the token after the next",
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
class Excerpt(Result):
    """One example token by token."""

    id: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Warned(Result):
    """A fault and the number of examples that have it; `rows` are the first ones."""

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

    schema: ClassVar[str] = "emscope.tokens/1"

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
    shown: tuple[Excerpt, ...]
