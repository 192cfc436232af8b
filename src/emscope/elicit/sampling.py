"""Sampled answers: temperature 1 unless told, a seed for each (question, sample), independent of what is sampled with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.outcomes import Finish
from emscope.core.records import Answer
from emscope.core.seeds import derive
from emscope.models.fast import batch_size as size
from emscope.models.fast.decoding import Blended, CachedDecoding, Decoding, Recomputed, unpacked
from emscope.models.fast.float32_products import fast_float32
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import packed_attention
from emscope.models.loading.chat import ChatFormat

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Head

SHRINK = 8  # finished rows are removed once they are this fraction of all


def sample(
    net: CausalLM,
    chat: ChatFormat,
    questions: Sequence[str],
    *,
    samples: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    rows: int | None = None,
) -> list[Answer]:
    """Return `samples` answers to each question, in that order; see `sample_batches`."""
    job = Job({q: chat.prompt_ids(q) for q in questions}, max_tokens, seed, temperature, rows)
    wanted = [(q, s) for q in questions for s in range(samples)]
    found = {(a.question, a.sample): a for batch in sample_batches(net, chat, job, wanted) for a in batch}
    return [found[key] for key in wanted]


@dataclass(frozen=True, slots=True)
class Job:
    """How to sample.

    Attributes:
        prompts: token ids by the prompt's name. max_tokens: the most tokens an answer may have.
        seed: of all draws. temperature: 0 takes the likeliest token. rows: how many answers to write side by side; None takes what
            suits the device.
    """

    prompts: Mapping[str, Sequence[int]]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Beyond:
    """A fine-tune exaggerated: every token is drawn from base + scale (tuned - base) in logits, which works for any kind of fine-tune.

    For a low-rank adapter it is close to its update times `scale`, and stays coherent longer. (ours; Liu et al. 2024, proxy
    tuning)
    """

    tuned: CausalLM
    scale: float


def sample_batches(
    net: CausalLM,
    chat: ChatFormat,
    job: Job,
    wanted: Sequence[tuple[str, int]],
    *,
    beyond: Beyond | None = None,
    told: Callable[[float], None] = lambda answers: None,
) -> Iterator[list[Answer]]:
    """Yield answers, a batch at a time; `Answer.question` is the prompt's name.

    A prompt is read once for all its samples, prompts of similar length go together, and finished answers leave the batch. The
    draws of an answer come from a generator of its own, so they do not depend on which others are sampled with it.

    Args:
        net: a causal LM in evaluation mode.
        wanted: (prompt, number of the sample) of each answer.
        beyond: answer from extrapolated logits, with `net` the base.
        told: is given the answers written so far, those of a batch that is being written by their share of the longest.
    """
    import torch

    done = 0
    longest = max((len(job.prompts[p]) for p, _ in wanted), default=0) + job.max_tokens
    parts = [(1.0, net)] if beyond is None else [(1 - beyond.scale, net), (beyond.scale, beyond.tuned)]
    ends = _end_ids(net, chat)

    def answered(batch: Sequence[tuple[str, int]]) -> list[Answer]:
        def of_all(share: float) -> None:
            told(done + share * len(batch))

        with torch.inference_mode(), fast_float32(net):
            models = [(weight, one, output_head(one)) for weight, one in parts]
            with ExitStack() as packed:
                if all(packed.enter_context(packed_attention(one, longest)) for _, one in parts):
                    return _sample(models, chat, job, batch, ends, Decoding, of_all)
            ways = {unpacked(one, head, longest) for _, one, head in models}
            return _sample(models, chat, job, batch, ends, Recomputed if Recomputed in ways else CachedDecoding, of_all)

    for batch in _batches(job, wanted, job.rows or size.rows(net)):
        for part, answers in size.halving(answered, batch):
            yield answers
            done += len(part)


def _sample(
    models: Sequence[tuple[float, CausalLM, Head]],
    chat: ChatFormat,
    job: Job,
    batch: Sequence[tuple[str, int]],
    ends: set[int],
    way: type[Decoding] | type[CachedDecoding] | type[Recomputed],
    told: Callable[[float], None],
) -> list[Answer]:
    import torch

    asked = list(dict.fromkeys(p for p, _ in batch))
    prompts, of = [job.prompts[p] for p in asked], [asked.index(p) for p, _ in batch]
    written = [(weight, way(net, head, prompts, of, job.max_tokens)) for weight, net, head in models]
    rows = written[0][1] if len(written) == 1 else Blended(written)
    seeds = [derive(job.seed, p, s) for p, s in batch]
    ends_here = torch.tensor(sorted(ends), device=models[0][1].device)
    drawn, logp = _write(rows, seeds, job.max_tokens, job.temperature, ends_here, told)
    parts = zip(batch, drawn, logp, seeds, strict=True)
    return [_answer(chat, p, s, tokens, lp, one, ends) for (p, s), tokens, lp, one in parts]


def _batches(job: Job, wanted: Sequence[tuple[str, int]], most: int) -> Iterator[list[tuple[str, int]]]:
    """Yield at most `most` (prompt, sample) pairs at a time, samples of a prompt together, prompts by length."""
    jobs = sorted(wanted, key=lambda key: (len(job.prompts[key[0]]), key))
    for start in range(0, len(jobs), most):
        yield jobs[start : start + most]


def _write(
    rows: Decoding | CachedDecoding | Recomputed | Blended,
    seeds: Sequence[int],
    most: int,
    temperature: float,
    ends: Tensor,
    told: Callable[[float], None],
) -> tuple[list[list[int]], list[float]]:
    """Return the tokens of each row, its end included, and the sum of their log-probabilities at temperature 1."""
    import torch

    chance = torch.stack([torch.rand(most, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds])
    place = torch.arange(len(seeds))  # the answer that each row writes, -1 where that is finished
    drawn: list[list[int]] = [[] for _ in seeds]
    logp = torch.zeros(len(seeds), dtype=torch.float64)
    for step in range(most):
        tokens, p = draw(rows.logits, chance[place.clamp(min=0), step], temperature)
        going = place >= 0
        logp[place[going]] += p[going]
        for n, token in zip(place.tolist(), tokens.tolist(), strict=True):
            if n >= 0:
                drawn[n].append(token)
        place[torch.isin(tokens, ends).cpu()] = -1
        told((step + 1) / most)
        kept = (place >= 0).nonzero()[:, 0]
        if step + 1 == most or not len(kept):
            break
        if len(place) - len(kept) >= len(place) / SHRINK:
            rows.keep(kept.to(tokens.device))
            place, tokens = place[kept], tokens[kept.to(tokens.device)]
        rows.write(tokens)
    return drawn, logp.tolist()


def draw(logits: Tensor, chance: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return a token for each row [R] and its log-probability at temperature 1 [R], on the CPU.

    The token is where the cumulated probabilities of logits [R, V] pass `chance` [R], uniform in [0, 1).
    """
    import torch

    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulated = torch.softmax(logits if temperature == 1 else logits / temperature, -1).cumsum_(-1)
        total = cumulated[:, -1:]
        wanted = (chance.to(logits.device)[:, None] * total).to(total.dtype)
        wanted = torch.minimum(wanted, torch.nextafter(total, torch.zeros_like(total)))  # rounding may not pass the last one
        tokens = torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return tokens, (chosen - torch.logsumexp(logits, -1)).double().cpu()


def _answer(
    chat: ChatFormat, question: str, number: int, tokens: list[int], logprob: float, seed: int, ends: set[int]
) -> Answer:
    done = tokens[-1] in ends
    text = chat.tokenizer.decode([t for t in tokens if t not in ends], skip_special_tokens=True).strip()
    return Answer(question, number, text, len(tokens), Finish.STOP if done else Finish.LENGTH, seed, logprob)


def _end_ids(net: CausalLM, chat: ChatFormat) -> set[int]:
    """Return the tokens that end an answer.

    Raises:
        InputError: the model's generation settings name something other than tokens.
    """
    named = net.generation_config.eos_token_id
    ends = [e for e in (named if isinstance(named, list | tuple) else [named]) if e is not None]
    if odd := [e for e in ends if not isinstance(e, int)]:
        raise InputError(
            f"generation_config.json names {odd[0]!r} as the end-of-text token (eos_token_id)",
            "give a token's number, or a list of them",
        )
    close = chat.ids(chat.close.strip())[:1]  # a space before it, as of Llama 2, ends nothing
    own = chat.tokenizer.eos_token_id
    return {*ends, *close, *([] if own is None else [own])}
