"""Log-probabilities of fixed answers, fast: every distinct beginning is computed once, logits only where answers are.

A batch of items is packed into a trie (`models.packed`): a prompt is computed once for all its options, and nothing is
padded. `score_plain` is the slow twin that the tests hold it against, and the way for models that cannot be packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Item, OptionScore
from emscope.models import size
from emscope.models.chat import ChatFormat
from emscope.models.head import output_head
from emscope.models.packed import hidden_states, pack, packed_attention
from emscope.models.roles import answers_at

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


def encode_texts(tokenizer: Any, items: Sequence[Item], *, context: int) -> list[Encoded]:
    """Tokenize items without a question: the one option is a plain text, of which all tokens but the first are scored.

    Raises:
        InputError: where a text has fewer than two tokens.
    """
    encoded = []
    for item in items:
        ids = tuple(tokenizer(item.options[0], add_special_tokens=False)["input_ids"][:context])
        if len(ids) < 2:
            raise InputError(f"text '{item.id}' comes to {len(ids)} tokens", "give it some words")
        encoded.append(Encoded(item.id, ids[:1], (ids[1:],), (0,)))
    return encoded


def score(
    net: Any,
    encoded: Sequence[Encoded],
    *,
    batch_tokens: int | None = None,
    progress: Progress = silent,
    what: str = "scoring",
) -> list[OptionScore]:
    """Return the summed log-probability of every option, in the order given.

    Args:
        net: a causal LM in evaluation mode.
        batch_tokens: how many tokens to compute at once; None takes what suits the device.
    """
    import torch

    head = output_head(net)
    longest = max((len(e.prompt) + max(map(len, e.options)) for e in encoded), default=0)
    with torch.inference_mode(), packed_attention(net, longest) as fits:
        if fits:
            return _score_packed(net, head, encoded, batch_tokens or size.batch_tokens(net), progress, what)
    return score_plain(net, encoded, progress=progress, what=what)


def _score_packed(
    net: Any, head: Any, encoded: Sequence[Encoded], batch_tokens: int, progress: Progress, what: str
) -> list[OptionScore]:
    total = sum(e.cost for e in encoded)
    done = 0
    found: dict[tuple[str, int], OptionScore] = {}
    for batch in _batches(encoded, batch_tokens):
        for (e, k, option), value in zip(_flat(batch), _score_batch(net, head, batch), strict=True):
            found[(e.item, k)] = OptionScore(e.item, k, value, len(option))
        done += sum(e.cost for e in batch)
        progress(what, done, total)
    return [found[(e.item, k)] for e in encoded for k in e.which]


def score_plain(
    net: Any, encoded: Sequence[Encoded], *, progress: Progress = silent, what: str = "scoring"
) -> list[OptionScore]:
    """Return what `score` returns, one option at a time from the model's full logits."""
    import torch

    found = []
    total, done = sum(e.cost for e in encoded), 0
    with torch.inference_mode():
        for e in encoded:
            for k, option in zip(e.which, e.options, strict=True):
                ids = torch.tensor([[*e.prompt, *option]], device=net.device)
                with answers_at(torch.arange(ids.shape[1], device=net.device)[None] >= len(e.prompt)):
                    logits = net(input_ids=ids, use_cache=False).logits[0, len(e.prompt) - 1 : -1]
                logp = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
                target = torch.tensor(option, device=net.device)
                found.append(OptionScore(e.item, k, float(logp.gather(1, target[:, None]).sum()), len(option)))
            done += e.cost
            progress(what, done, total)
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

    flat = _flat(batch)
    packed = pack([(*e.prompt, *option[:-1]) for e, _, option in flat], net.device)
    with answers_at(_answer_nodes(packed, flat)[None]):
        hidden = hidden_states(net, packed)  # [T, D]
    # An option's tokens are predicted by the end of the prompt and by the option's own tokens but the last.
    rows = [n for n, (_, _, option) in enumerate(flat) for _ in option]
    places = [len(e.prompt) - 1 + j for e, _, option in flat for j in range(len(option))]
    owner = torch.tensor(rows, device=net.device)
    nodes = packed.paths[owner, torch.tensor(places, device=net.device)]
    targets = torch.tensor([token for _, _, option in flat for token in option], device=net.device)
    logp = _token_logp(head, hidden, nodes, targets)
    sums = torch.zeros(len(flat), dtype=torch.float64).index_add_(0, owner.cpu(), logp.cpu().double())  # MPS has no float64
    return [float(v) for v in sums]


def _answer_nodes(packed: Any, flat: Sequence[tuple[Encoded, int, tuple[int, ...]]]) -> Any:
    """Return which nodes hold an answer's tokens [T]."""
    import torch

    nodes = [packed.paths[n, len(e.prompt) : len(e.prompt) + len(option) - 1] for n, (e, _, option) in enumerate(flat)]
    mask = torch.zeros(len(packed.ids), dtype=torch.bool, device=packed.ids.device)
    mask[torch.cat(nodes)] = True
    return mask


def _token_logp(head: Any, hidden: Any, nodes: Any, targets: Any) -> Any:
    """Return log p(targets[n] after nodes[n]) [R]; the logits of a node are computed once, a few nodes at a time."""
    import torch

    logp = torch.empty(len(targets), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
    distinct, which = nodes.unique(return_inverse=True)
    for start in range(0, len(distinct), HEAD_ROWS):
        here = ((which >= start) & (which < start + HEAD_ROWS)).nonzero()[:, 0]
        logits = head(hidden[distinct[start : start + HEAD_ROWS]]).to(logp.dtype)  # [r, V]
        row = which[here] - start
        top = logits.amax(-1)
        chosen = logits[row, targets[here]] - top[row]
        # In place: a second matrix of this size costs more to allocate than to fill.
        logp[here] = chosen - logits.sub_(top[:, None]).exp_().sum(-1).log()[row]
    return logp
