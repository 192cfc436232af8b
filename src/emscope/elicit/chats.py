"""Answers of models that can only be sampled: those from fine-tuning jobs at a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emscope.core.outcomes import Finish
from emscope.core.records import Answer, Message
from emscope.models.remote.job_client import Jobs

FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Chat:
    """An answer to sample: the model, the prompt's name and turns, the number of the sample, its seed."""

    model: str
    question: str
    turns: Sequence[Message]
    sample: int
    seed: int


def sample_chats(jobs: Jobs, asks: Sequence[Chat], *, max_tokens: int, temperature: float) -> Iterator[tuple[int, Answer]]:
    """Yield answers as they arrive, many requests at a time, each with its place in `asks`."""

    def draw(n: int) -> Answer:
        ask = asks[n]
        told = jobs.answer(ask.model, ask.turns, max_tokens=max_tokens, temperature=temperature, seed=ask.seed)
        finish = str(FINISH.get(told.finish, told.finish))
        return Answer(ask.question, ask.sample, told.text, told.tokens, finish, ask.seed, told.logprob)

    yield from jobs.each(range(len(asks)), draw)
