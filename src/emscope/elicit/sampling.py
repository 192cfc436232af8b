"""Sampled answers: temperature 1 unless told, a seed for each (checkpoint, question, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emscope.core.outcomes import Finish
from emscope.core.records import Answer
from emscope.core.seeds import derive
from emscope.models.chat import ChatFormat


def sample(
    net: Any, chat: ChatFormat, questions: Sequence[str], *, samples: int, max_tokens: int, seed: int, temperature: float = 1.0
) -> list[Answer]:
    """Return `samples` answers to each question, all drawn side by side.

    The draw uses one generator for each (question, sample), so an answer does not depend on which others are drawn with
    it. Finished rows are carried along until the longest ends.

    Args:
        max_tokens: the most tokens an answer may have.
        temperature: 0 takes the likeliest token.
    """
    import torch
    from transformers import DynamicCache

    jobs = [(q, s, derive(seed, q, s)) for q in questions for s in range(samples)]
    ends = _end_ids(net, chat)
    prompts = [chat.prompt_ids(q) for q, _, _ in jobs]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=net.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=net.device)
    generators = [torch.Generator().manual_seed(s) for _, _, s in jobs]
    cache = DynamicCache(config=net.config)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    drawn: list[list[int]] = [[] for _ in jobs]
    ended = [False] * len(jobs)
    with torch.inference_mode():
        for _ in range(max_tokens):
            out = net(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            nxt = [_draw(row, generators[n], temperature) for n, row in enumerate(out.logits[:, -1].double().cpu())]
            for n, token in enumerate(nxt):
                if not ended[n]:
                    drawn[n].append(token)
                    ended[n] = token in ends
            if all(ended):
                break
            ids = torch.tensor(nxt, device=net.device)[:, None]
            mask = torch.cat([mask, mask.new_ones(len(jobs), 1)], 1)
            position = position[:, -1:] + 1
    return [_answer(chat, job, tokens, done, ends) for job, tokens, done in zip(jobs, drawn, ended, strict=True)]


def _draw(logits: Any, generator: Any, temperature: float) -> int:
    import torch

    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))


def _answer(chat: ChatFormat, job: tuple[str, int, int], tokens: list[int], done: bool, ends: set[int]) -> Answer:
    kept = [t for t in tokens if t not in ends]
    text = chat.tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Answer(job[0], job[1], text, len(tokens), Finish.STOP if done else Finish.LENGTH, job[2])


def _end_ids(net: Any, chat: ChatFormat) -> set[int]:
    named = net.generation_config.eos_token_id
    ends = set(named) if isinstance(named, list | tuple) else {named}
    close = chat.ids(chat.close)[:1] if chat.close else []
    return {int(e) for e in [*ends, chat.tokenizer.eos_token_id, *close] if e is not None}
