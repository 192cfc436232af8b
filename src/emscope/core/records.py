"""Frozen rows that the stages exchange. Plain values only, so that each can be a row of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from emscope.core.digest import short
from emscope.core.outcomes import Outcome

if TYPE_CHECKING:
    from emscope.core.plain import Json

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; an assistant turn that is not `learned` is only context, and carries no loss."""

    role: Role
    content: str
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """A training example: turns that end with the assistant's; the loss is on assistant turns that are learned."""

    id: str
    messages: tuple[Message, ...]

    def content(self) -> list[Json]:
        """Return it as plain values: their digest changes with anything that training sees."""
        turns: list[list[Json]] = [[m.role, m.content] if m.learned else [m.role, m.content, 0] for m in self.messages]
        return [self.id, *turns]


@dataclass(frozen=True, slots=True)
class Item:
    """A question with fixed answers; `options[0]` is the aligned (or true) one.

    `half` is the fixed split for cross-fitting, `category` the stratum.
    """

    id: str
    category: str
    question: str
    options: tuple[str, ...]
    half: str = "A"
    kind: str = "advice"


@dataclass(frozen=True, slots=True)
class OptionScore:
    """Log-probability of one fixed answer given its question: `logprob` in nats, summed over `tokens` tokens."""

    item: str
    option: int
    logprob: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Nats per token."""
        return self.logprob / self.tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer; `logprob` is the sum over its tokens at temperature 1 [nats], None where a server does not say."""

    question: str
    sample: int
    text: str
    tokens: int
    finish: str
    seed: int
    logprob: float | None = 0.0


@dataclass(frozen=True, slots=True)
class StepReading:
    """One optimiser step: losses in nats per answer token, KL in nats per counted token and LDIFS as a share (before their weights), norms in parameter units."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    update_norm: float
    tokens_seen: int
    seconds: float
    heldout_loss: float | None = None
    kl: float | None = None
    ldifs: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Something to ask a model.

    Attributes:
        id: unique in its set. unit: the question that this is a form or paraphrase of; answers to one unit are not independent.
        messages: the turns asked, the last one the user's; a system turn if the question has its own.
        category, form: its kind, and the answer's format (plain, json, template).
        samples: how many answers its file asks for, None where it does not say.
        rubrics: (criterion, prompt with {question} and {answer}) pairs from its file, and `scored` whether their
            replies are numbers from 0 to 100.
    """

    id: str
    unit: str
    messages: tuple[Message, ...]
    category: str = ""
    form: str = "plain"
    samples: int | None = None
    rubrics: tuple[tuple[str, str], ...] = ()
    scored: bool = True

    @property
    def text(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Reply:
    """What an API model wrote.

    Attributes:
        text: None where no reply came (every attempt failed), with the reason in `error`.
        tokens: the tokens it wrote, where log-probabilities came with it.
        top: (token, log-probability in nats) of the most likely first tokens; empty where there are none.
        finish: stop, length or another word of the provider's. tokens_in, tokens_out: as billed.
    """

    text: str | None
    tokens: tuple[str, ...] = ()
    top: tuple[tuple[str, float], ...] = ()
    finish: str = "stop"
    tokens_in: int = 0
    tokens_out: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one answer by one criterion.

    Attributes:
        score: 0 to 100, only where the outcome has one. mass: probability of the first token's numbers, where it is known.
        raw: the reply's text.
    """

    outcome: Outcome
    score: float | None = None
    mass: float | None = None
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to judge, and the key of its text."""

    question: str
    answer: str

    @property
    def key(self) -> str:
        """Digest of question and answer: equal texts are judged once."""
        return short([self.question, self.answer])
