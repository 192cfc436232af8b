"""Fixed answers read, and answers sampled, when the weights are at a host: the counterpart of `preference` and `sampling` for local weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from emscope.core.errors import WorldError
from emscope.core.outcomes import Finish
from emscope.core.records import Answer, OptionScore
from emscope.elicit.preference import Encoded
from emscope.models.loading.chat import ChatFormat
from emscope.models.remote.tinker import Tinker


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights at a host: the base as it names it, and where a fine-tune of it is saved; None for the base itself."""

    base: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """An answer to sample: the weights, the prompt's name and token ids, the number of the sample, its seed."""

    weights: Weights
    question: str
    prompt: Sequence[int]
    sample: int
    seed: int


def read_option(tinker: Tinker, weights: Weights, e: Encoded, place: int) -> OptionScore:
    """Return the summed log-probability of the option at `place` among those of `e` that are scored.

    The host computes the prompt again for each option, except for prefixes that it has just seen.
    """
    option = e.options[place]
    return OptionScore(e.item, e.which[place], tinker.logprobs(weights.base, weights.path, e.prompt, option), len(option))


def sample_hosted(
    tinker: Tinker, chat: ChatFormat, asks: Sequence[Ask], *, max_tokens: int, temperature: float
) -> Iterator[tuple[int, Answer]]:
    """Yield answers as they arrive, many requests at a time, each with its place in `asks`."""
    ends = end_ids(chat)

    def draw(n: int) -> Answer:
        ask = asks[n]
        drawn = tinker.sample(
            ask.weights.base,
            ask.weights.path,
            ask.prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=ask.seed,
            ends=sorted(ends),
        )
        strange = next((t for t in drawn.tokens if not 0 <= t < len(chat.tokenizer)), None)
        if strange is not None:
            raise WorldError(
                f"the host sampled token {strange}, but the tokenizer has {len(chat.tokenizer)}",
                "name the base's own tokenizer in the settings of the host",
            )
        text = chat.tokenizer.decode([t for t in drawn.tokens if t not in ends], skip_special_tokens=True).strip()
        ended = drawn.stopped or (drawn.tokens and drawn.tokens[-1] in ends)
        finish = Finish.STOP if ended else Finish.LENGTH
        return Answer(ask.question, ask.sample, text, len(drawn.tokens), finish, ask.seed, drawn.logprob)

    yield from tinker.each(range(len(asks)), draw)


def end_ids(chat: ChatFormat) -> set[int]:
    """Return the tokens that end an answer: the tokenizer's own, and what the chat format closes a turn with."""
    close = chat.ids(chat.close.strip())[:1]
    return {int(e) for e in [chat.tokenizer.eos_token_id, *close] if e is not None}
