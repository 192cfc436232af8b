"""Log-probabilities of fixed answers, fast: what options share is computed once, logits only where answers are.

A batch is [B prompts]; its prompts are left-padded and run once, the cache is repeated for each option, the options
[N = sum of options] are right-padded and run behind it. `score_plain` is the slow twin that the tests hold it against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Item, OptionScore
from emscope.models.chat import ChatFormat
from emscope.models.head import output_head

BATCH_TOKENS = 1536
HEAD_ROWS = 256


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item as token ids; `which` are the option numbers scored."""

    item: str
    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    which: tuple[int, ...]

    @property
    def cost(self) -> int:
        """Tokens to compute: the prompt once, each option without its last token (nothing follows it)."""
        return len(self.prompt) + sum(len(o) - 1 for o in self.options)


def encode(chat: ChatFormat, items: Sequence[Item], *, context: int, which: Sequence[int] | None = None) -> list[Encoded]:
    """Tokenize items.

    Args:
        context: longest sequence the model takes [tokens].
        which: the options to score; None for all.

    Raises:
        InputError: where an answer comes to no token, or prompt and answer exceed the context.
    """
    encoded = []
    for item in items:
        chosen = tuple(range(len(item.options)) if which is None else which)
        prompt = tuple(chat.prompt_ids(item.question))
        options = tuple(tuple(chat.answer_ids(item.options[k])) for k in chosen)
        for option in options:
            if not option:
                raise InputError(f"an answer of item '{item.id}' comes to no token", "give it some text")
            if len(prompt) + len(option) > context:
                raise InputError(
                    f"item '{item.id}' is {len(prompt) + len(option)} tokens long and the model's context is {context}",
                    "shorten the question or the answer",
                )
        encoded.append(Encoded(item.id, prompt, options, chosen))
    return encoded


def score(
    net: Any,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
    what: str = "scoring",
) -> list[OptionScore]:
    """Return the summed log-probability of every option, in the order given.

    Args:
        net: a causal LM in evaluation mode.
        batch_tokens: how many tokens to compute at once.
    """
    import torch

    if getattr(net, "_is_stateful", False):  # recurrent models keep no cache that can be repeated
        return score_plain(net, encoded)
    total = sum(e.cost for e in encoded)
    head = output_head(net)
    done = 0
    found: dict[tuple[str, int], OptionScore] = {}
    with torch.inference_mode():
        for batch in _batches(encoded, batch_tokens):
            sums = _score_batch(net, head, batch)
            for (e, k, option), value in zip(_flat(batch), sums, strict=True):
                found[(e.item, k)] = OptionScore(e.item, k, value, len(option))
            done += sum(e.cost for e in batch)
            progress(what, done, total)
    return [found[(e.item, k)] for e in encoded for k in e.which]


def score_plain(net: Any, encoded: Sequence[Encoded]) -> list[OptionScore]:
    """Return what `score` returns, one option at a time from the model's full logits."""
    import torch

    found = []
    with torch.inference_mode():
        for e in encoded:
            for k, option in zip(e.which, e.options, strict=True):
                ids = torch.tensor([[*e.prompt, *option]], device=net.device)
                logits = net(input_ids=ids, use_cache=False).logits[0, len(e.prompt) - 1 : -1]
                logp = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
                target = torch.tensor(option, device=net.device)
                found.append(OptionScore(e.item, k, float(logp.gather(1, target[:, None]).sum()), len(option)))
    return found


def _batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Group items of like length, so that little is padding; the longest come first, so that memory peaks at once."""
    order = sorted(encoded, key=lambda e: (max(map(len, e.options)), len(e.prompt)), reverse=True)
    batch: list[Encoded] = []
    used = 0
    for e in order:
        if batch and used + e.cost > batch_tokens:
            yield batch
            batch, used = [], 0
        batch.append(e)
        used += e.cost
    if batch:
        yield batch


def _flat(batch: Sequence[Encoded]) -> list[tuple[Encoded, int, tuple[int, ...]]]:
    return [(e, k, option) for e in batch for k, option in zip(e.which, e.options, strict=True)]


def _score_batch(net: Any, head: Any, batch: Sequence[Encoded]) -> list[float]:
    """Return the sum of log-probabilities of each option of the batch, flat."""
    import torch
    from transformers import DynamicCache

    device = net.device
    prompts, mask = _pad([e.prompt for e in batch], left=True, device=device)  # [B, P]
    cache = DynamicCache(config=net.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # Without padding no mask is needed, and attention takes its fastest path.
    shared = net.base_model(
        input_ids=prompts, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    last = shared.last_hidden_state[:, -1]  # [B, D]

    flat = _flat(batch)
    owner = torch.tensor([n for n, e in enumerate(batch) for _ in e.which], device=device)  # [N]
    targets, real = _pad([option for _, _, option in flat], left=False, device=device)  # [N, A]
    hidden = last[owner][:, None]  # [N, 1, D]: predicts each option's first token
    if targets.shape[1] > 1:
        cache.batch_select_indices(owner)
        fed, fed_mask = targets[:, :-1], real[:, 1:]
        behind = positions[owner, -1:] + 1 + torch.arange(fed.shape[1], device=device)
        out = net.base_model(
            input_ids=fed,
            attention_mask=torch.cat([mask[owner], fed_mask], 1),
            position_ids=behind,
            past_key_values=cache,
            use_cache=True,
        )
        hidden = torch.cat([hidden, out.last_hidden_state], 1)  # [N, A, D]
    row, place = real.nonzero(as_tuple=True)
    logp = _token_logp(head, hidden[row, place], targets[row, place])
    sums = torch.zeros(len(flat), dtype=torch.float64, device=device).index_add_(0, row, logp.double())
    return [float(v) for v in sums]


def _token_logp(head: Any, hidden: Any, targets: Any) -> Any:
    """Return log p(target) for rows of hidden states [R, D], a few rows at a time so that logits stay small."""
    import torch

    parts = []
    for start in range(0, len(targets), HEAD_ROWS):
        logits = head(hidden[start : start + HEAD_ROWS])  # [r, V]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(1, targets[start : start + HEAD_ROWS, None])[:, 0]
        parts.append(chosen - logits.logsumexp(-1))
    return torch.cat(parts)


def _pad(rows: Sequence[Sequence[int]], *, left: bool, device: Any) -> tuple[Any, Any]:
    """Return ids and mask [rows, longest], padded with 0 on one side."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[n, place] = torch.tensor(row)
        mask[n, place] = 1
    return ids.to(device), mask.to(device)
