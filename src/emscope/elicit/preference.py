"""Log-probabilities of fixed answers, fast: every distinct beginning is computed once, logits only where answers are.

A batch of items is packed into a trie (`models.packed`): a prompt is computed once for all its options, and nothing is
padded. `score_plain` is the slow twin that the tests hold it against, and the way for models that cannot be packed.
`score_beyond` reads a fine-tune weakened or exaggerated in logits, at several scales from one pass of it and one of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError
from emscope.core.progress import Progress, silent
from emscope.core.records import Item, OptionScore
from emscope.models.fast import batch_size as size
from emscope.models.fast.float32_products import fast_float32
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import Pack, hidden_states, pack, packed_attention
from emscope.models.hooks.roles import answers_at
from emscope.models.loading.chat import ChatFormat

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Device, Head, Logits, Stream, Tokenizer

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
        InputError: an answer has no tokens, or prompt and answer exceed the context.
    """
    encoded = []
    for item in items:
        chosen = tuple(range(len(item.options)) if which is None else which)
        prompt = tuple(chat.prompt_ids(item.question))
        options = tuple(tuple(chat.answer_ids(item.options[k])) for k in chosen)
        for option in options:
            if not option:
                raise InputError(f"an answer of item '{item.id}' has no tokens", "give it some text")
            if len(prompt) + len(option) > context:
                raise InputError(
                    f"item '{item.id}' is {len(prompt) + len(option)} tokens long, but the model's context is {context}",
                    "shorten the question or the answer",
                )
        encoded.append(Encoded(item.id, prompt, options, chosen))
    return encoded


def encode_texts(tokenizer: Tokenizer, items: Sequence[Item], *, context: int) -> list[Encoded]:
    """Tokenize items without a question: the one option is a plain text, of which all tokens but the first are scored.

    Raises:
        InputError: where a text has fewer than two tokens.
    """
    encoded = []
    for item in items:
        ids = tuple(tokenizer(item.options[0], add_special_tokens=False)["input_ids"][:context])
        if len(ids) < 2:
            raise InputError(f"text '{item.id}' has {len(ids)} tokens", "give it some words")
        encoded.append(Encoded(item.id, ids[:1], (ids[1:],), (0,)))
    return encoded


def score(
    net: CausalLM,
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
    with torch.inference_mode(), fast_float32(net), packed_attention(net, longest) as fits:
        if fits:
            return _score_packed(net, head, encoded, batch_tokens or size.batch_tokens(net), progress, what)
    return score_plain(net, encoded, progress=progress, what=f"{what} (one answer at a time, as this architecture asks)")


def score_beyond(
    net: CausalLM,
    tuned: CausalLM,
    encoded: Sequence[Encoded],
    scales: Sequence[float],
    *,
    batch_tokens: int | None = None,
    progress: Progress = silent,
    what: str = "scoring",
) -> dict[float, list[OptionScore]]:
    """Return what `score` would for models with logits base + s (tuned - base), for each scale s, in the order given.

    log p_s = log_softmax((1 - s) z_base + s z_tuned), which is the base itself at 0 and the fine-tune itself at 1. Answers are drawn from the
    same logits by `sampling.Beyond`. (ours; Liu et al. 2024, proxy tuning)

    Args:
        net: the base. tuned: a fine-tune of it in memory beside it (`models.beside`). Each passes over the items once, whatever the scales.
    """
    import torch

    heads = output_head(net), output_head(tuned)
    longest = max((len(e.prompt) + max(map(len, e.options)) for e in encoded), default=0)
    with torch.inference_mode(), fast_float32(net), ExitStack() as stack:
        fits = all(stack.enter_context(packed_attention(one, longest)) for one in (net, tuned))
        if not fits:
            stack.close()  # one of the two may be switched
        read = _packed_beyond if fits else _plain_beyond
        total, done = sum(e.cost for e in encoded), 0
        found: dict[tuple[float, str, int], OptionScore] = {}
        for whole in _batches(encoded, batch_tokens or size.batch_tokens(net)):
            for batch, by_scale in size.halving(lambda part: read((net, tuned), heads, part, scales), whole):
                for s, sums in by_scale.items():
                    for (e, k, option), value in zip(_flat(batch), sums, strict=True):
                        found[(s, e.item, k)] = OptionScore(e.item, k, value, len(option))
                done += sum(e.cost for e in batch)
                progress(what, done, total)
    return {s: [found[(s, e.item, k)] for e in encoded for k in e.which] for s in scales}


def _score_packed(
    net: CausalLM, head: Head, encoded: Sequence[Encoded], batch_tokens: int, progress: Progress, what: str
) -> list[OptionScore]:
    total = sum(e.cost for e in encoded)
    done = 0
    found: dict[tuple[str, int], OptionScore] = {}
    for whole in _batches(encoded, batch_tokens):
        for batch, values in size.halving(lambda part: _score_batch(net, head, part), whole):
            for (e, k, option), value in zip(_flat(batch), values, strict=True):
                found[(e.item, k)] = OptionScore(e.item, k, value, len(option))
            done += sum(e.cost for e in batch)
            progress(what, done, total)
    return [found[(e.item, k)] for e in encoded for k in e.which]


def score_plain(
    net: CausalLM, encoded: Sequence[Encoded], *, progress: Progress = silent, what: str = "scoring"
) -> list[OptionScore]:
    """Return what `score` returns, one option at a time from the model's full logits."""
    import torch

    found = []
    total, done = sum(e.cost for e in encoded), 0
    with torch.inference_mode():
        for e in encoded:
            for k, option in zip(e.which, e.options, strict=True):
                logp = torch.log_softmax(_full(_logits_of(net, e, option)), -1)
                target = torch.tensor(option, device=net.device)
                found.append(OptionScore(e.item, k, float(logp.gather(1, target[:, None]).sum()), len(option)))
            done += e.cost
            progress(what, done, total)
    return found


def _batches(encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Group items of similar length, so that there is little padding; the longest come first, so that memory peaks at the start."""
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


@dataclass(frozen=True, slots=True)
class _Laid:
    """A batch laid out as a trie: option `owner[n]` has the token `targets[n]` after the node `nodes[n]` [R]; answers' nodes are in `answers` [T]."""

    packed: Pack
    answers: Tensor
    owner: Tensor
    nodes: Tensor
    targets: Tensor
    options: int

    def hidden(self, net: CausalLM) -> Stream:
        """Return what `net` gives at every node [T, D]."""
        with answers_at(self.answers[None]):
            return hidden_states(net, self.packed)

    def sums(self, logp: Tensor) -> list[float]:
        """Return the sum of each option's log-probabilities [R]."""
        import torch

        zeros = torch.zeros(self.options, dtype=torch.float64)
        return zeros.index_add_(0, self.owner.cpu(), logp.cpu().double()).tolist()  # MPS has no float64


def _lay_out(batch: Sequence[Encoded], device: Device) -> _Laid:
    import torch

    flat = _flat(batch)
    packed = pack([(*e.prompt, *option[:-1]) for e, _, option in flat], device)
    # An option's tokens are predicted by the end of the prompt and by the option's own tokens but the last.
    rows = [n for n, (_, _, option) in enumerate(flat) for _ in option]
    places = [len(e.prompt) - 1 + j for e, _, option in flat for j in range(len(option))]
    owner = torch.tensor(rows, device=device)
    nodes = packed.paths[owner, torch.tensor(places, device=device)]
    targets = torch.tensor([token for _, _, option in flat for token in option], device=device)
    return _Laid(packed, _answer_nodes(packed, flat), owner, nodes, targets, len(flat))


def _score_batch(net: CausalLM, head: Head, batch: Sequence[Encoded]) -> list[float]:
    """Return the sum of log-probabilities of each option of the batch, flat."""
    laid = _lay_out(batch, net.device)
    hidden = laid.hidden(net)  # [T, D]
    (logp,) = _token_logp(lambda rows: [_full(head(hidden[rows]))], laid.nodes, laid.targets)
    return laid.sums(logp)


def _packed_beyond(
    nets: tuple[CausalLM, CausalLM], heads: tuple[Head, Head], batch: Sequence[Encoded], scales: Sequence[float]
) -> Mapping[float, list[float]]:
    """Return for each scale the sum of log-probabilities of each option of the batch, flat."""
    laid = _lay_out(batch, nets[0].device)
    hidden = [laid.hidden(net) for net in nets]

    def logits(rows: Tensor) -> Iterator[Logits]:
        base, tuned = (_full(head(h[rows])) for head, h in zip(heads, hidden, strict=True))
        return (_between(base, tuned, s) for s in scales)

    found = _token_logp(logits, laid.nodes, laid.targets)
    return {s: laid.sums(logp) for s, logp in zip(scales, found, strict=True)}


def _plain_beyond(
    nets: tuple[CausalLM, CausalLM], heads: tuple[Head, Head], batch: Sequence[Encoded], scales: Sequence[float]
) -> Mapping[float, list[float]]:
    """Return what `_packed_beyond` returns, one option at a time from both models' full logits."""
    import torch

    found: dict[float, list[float]] = {s: [] for s in scales}
    for e, _, option in _flat(batch):
        target = torch.tensor(option, device=nets[0].device)[:, None]
        base, tuned = (_full(_logits_of(net, e, option)) for net in nets)
        for s in scales:
            found[s].append(float(torch.log_softmax(_between(base, tuned, s), -1).gather(1, target).sum()))
    return found


def _between(base: Logits, tuned: Logits, scale: float) -> Logits:
    """Return base + scale (tuned - base), in a form that is exact at 0 and 1."""
    return (1 - scale) * base + scale * tuned


def _full(logits: Logits) -> Logits:
    """Return logits in float32 or more: sums over a vocabulary need it."""
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logits_of(net: CausalLM, e: Encoded, option: Sequence[int]) -> Logits:
    """Return the logits of each token of an option [R, V] from a plain pass over prompt and option."""
    import torch

    ids = torch.tensor([[*e.prompt, *option]], device=net.device)
    with answers_at(torch.arange(ids.shape[1], device=net.device)[None] >= len(e.prompt)):
        return net(input_ids=ids, use_cache=False).logits[0, len(e.prompt) - 1 : -1]


def _answer_nodes(packed: Pack, flat: Sequence[tuple[Encoded, int, tuple[int, ...]]]) -> Tensor:
    """Return which nodes hold an answer's tokens [T]."""
    import torch

    nodes = [packed.paths[n, len(e.prompt) : len(e.prompt) + len(option) - 1] for n, (e, _, option) in enumerate(flat)]
    mask = torch.zeros(len(packed.ids), dtype=torch.bool, device=packed.ids.device)
    mask[torch.cat(nodes)] = True
    return mask


def _token_logp(logits_of: Callable[[Tensor], Iterable[Logits]], nodes: Tensor, targets: Tensor) -> list[Tensor]:
    """Return log p(targets[n] after nodes[n]) [R] for each set of logits; a node's are computed once, a few nodes at a time.

    Args:
        logits_of: from nodes [r] to one or more sets of their logits [r, V], which may be overwritten.
    """
    import torch

    distinct, which = nodes.unique(return_inverse=True)
    parts: list[list[Tensor]] = []
    order = []
    for start in range(0, len(distinct), HEAD_ROWS):
        here = ((which >= start) & (which < start + HEAD_ROWS)).nonzero()[:, 0]
        row, wanted = which[here] - start, targets[here]
        parts.append([_chosen_logp(logits, row, wanted) for logits in logits_of(distinct[start : start + HEAD_ROWS])])
        order.append(here)
    back = torch.cat(order).argsort()
    return [torch.cat(values)[back] for values in zip(*parts, strict=True)]


def _chosen_logp(logits: Logits, row: Tensor, token: Tensor) -> Tensor:
    """Return log p(token[n]) in row[n] of logits [r, V], which are overwritten: a second matrix of this size costs more than filling one."""
    top = logits.amax(-1)
    chosen = logits[row, token] - top[row]
    return chosen - logits.sub_(top[:, None]).exp_().sum(-1).log()[row]
