"""Activations of prompts and answers at places inside a model, pooled during the pass.

Texts go through the model as one trie without padding where its attention allows that (`models.packed`), else as a padded
batch. The values at a place are pooled at once, so memory holds one batch of one place, however many texts and places there are.
Nothing is computed above the highest place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, near
from emscope.core.progress import Progress, silent
from emscope.models.fast import batch_size as size
from emscope.models.fast.float32_products import fast_float32
from emscope.models.fast.packed import hidden_states, pack, packed_attention
from emscope.models.hooks.branches import Branch
from emscope.models.hooks.capture import See, branches_at, watched
from emscope.models.hooks.roles import answers_at
from emscope.models.hooks.sites import Place
from emscope.models.loading.chat import ChatFormat

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import BodyOutput, CausalLM, Stream

POOLS = ("last", "prompt", "answer", "end")
WHAT = "reading activations"

Flow = Callable[[See], None]
Sink = Callable[[Sequence[int], "Tensor"], None]
Run = Callable[[], "Stream | BodyOutput"]


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, an answer and a text after it, as token ids; all but the prompt may be empty."""

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All tokens in order."""
        return (*self.prompt, *self.answer, *self.after)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer) + len(self.after)

    def span(self, pool: str, *, first: bool = False) -> range:
        """Return the places of the tokens that a pool is over.

        `last` is the last prompt token, `prompt` the prompt, `answer` the answer, `end` the last token of all.

        Args:
            first: include token 0. Its residual norm is often a hundred times that of the others, so it would
                dominate a mean.
        """
        if pool == "last":
            return range(len(self.prompt) - 1, len(self.prompt))
        if pool == "prompt":
            return range(0 if first else 1, len(self.prompt))
        if pool == "end":
            return range(len(self) - 1, len(self))
        return range(len(self.prompt), len(self.prompt) + len(self.answer))


@dataclass(frozen=True, slots=True)
class Laid:
    """How a batch lies in a pass: node `at[r, t]` of the flattened pass holds token t of text r."""

    at: Tensor
    nodes: int

    def answers(self, texts: Sequence[Text]) -> Tensor:
        """Return True at the nodes that hold an answer's token, [nodes]."""
        import torch

        mask = torch.zeros(self.nodes, dtype=torch.bool, device=self.at.device)
        for row, text in enumerate(texts):
            mask[self.at[row, len(text.prompt) : len(text.prompt) + len(text.answer)]] = True
        return mask

    def weights(self, spans: Sequence[range]) -> Tensor:
        """Return the matrix [spans, nodes] that takes the mean over each span; the spans are of the texts in turn, equally many each."""
        import torch

        each = len(spans) // len(self.at)
        weights = torch.zeros(len(spans), self.nodes, device=self.at.device)
        for n, span in enumerate(spans):
            weights[n, self.at[n // each, span.start : span.stop]] = 1 / len(span)
        return weights


def encode(chat: ChatFormat, triples: Sequence[tuple[str, str, str]], *, context: int) -> list[Text]:
    """Tokenize (id, question, answer) triples; an empty answer leaves the prompt alone.

    Raises:
        InputError: a text longer than the context.
    """
    texts = [Text(id, tuple(chat.prompt_ids(q)), tuple(chat.answer_ids(a)) if a else ()) for id, q, a in triples]
    for text in texts:
        if len(text) > context:
            raise InputError(f"text '{text.id}' is {len(text)} tokens long, but the model's context is {context}", "shorten it")
    return texts


def read_pooled(
    net: CausalLM,
    texts: Sequence[Text],
    places: Sequence[Place],
    pools: Sequence[str],
    sink: Sink,
    *,
    first: bool = False,
    batch_tokens: int | None = None,
    progress: Progress = silent,
    what: str = WHAT,
) -> None:
    """Hand `sink` the means over tokens of each pool at each place, a batch of texts at a time, the longest texts first.

    Args:
        net: a causal LM in evaluation mode.
        pools: of `POOLS`; see `Text.span`.
        sink: called with the places of the batch's texts among those given [n], and values [n, pools, places, D], float32.
        first: include token 0 where a pool reaches it.
        batch_tokens: how many tokens to compute at once; None takes what suits the device.

    Raises:
        InputError: a place or pool that does not exist, or a text without a token for a pool.
    """
    import torch

    check_pools(texts, pools, first=first)

    def read(batch: list[int], laid: Laid, flow: Flow) -> None:
        weights = laid.weights([texts[n].span(pool, first=first) for n in batch for pool in pools])
        found: dict[Place, Tensor] = {}

        def see(place: Place, values: Tensor) -> None:
            flat = values.flatten(0, 1)
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            found[place] = (weights.to(flat.dtype) @ flat).float()

        flow(see)
        stacked = torch.stack([found[p] for p in places], 1)  # [n * pools, places, D]
        sink(batch, stacked.view(len(batch), len(pools), *stacked.shape[1:]).cpu())

    _passes(net, texts, places, batch_tokens, read, progress, what)


def read_tokens(
    net: CausalLM,
    texts: Sequence[Text],
    places: Sequence[Place],
    sink: Sink,
    *,
    batch_tokens: int | None = None,
    progress: Progress = silent,
    what: str = WHAT,
) -> None:
    """Hand `sink` the values at all tokens, a text at a time, the longest first.

    Args:
        sink: called with the place of the text among those given [1], and values [T, places, D], float32.

    Raises:
        InputError: a place that does not exist.
    """
    import torch

    def read(batch: list[int], laid: Laid, flow: Flow) -> None:
        found: dict[Place, Tensor] = {}
        flow(lambda place, values: found.__setitem__(place, values.flatten(0, 1).float()))
        for row, n in enumerate(batch):
            nodes = laid.at[row, : len(texts[n])]
            sink([n], torch.stack([found[p][nodes] for p in places], 1).cpu())

    _passes(net, texts, places, batch_tokens, read, progress, what)


def pooled(
    net: CausalLM,
    texts: Sequence[Text],
    places: Sequence[Place],
    pools: Sequence[str],
    *,
    first: bool = False,
    batch_tokens: int | None = None,
    progress: Progress = silent,
    what: str = WHAT,
) -> Tensor:
    """Return what `read_pooled` hands out as one tensor [N, pools, places, D], float32, in the order of the texts."""
    import torch

    values = torch.empty(0)

    def sink(which: Sequence[int], part: Tensor) -> None:
        nonlocal values
        values = values if len(values) else torch.empty(len(texts), *part.shape[1:])
        values[list(which)] = part

    read_pooled(net, texts, places, pools, sink, first=first, batch_tokens=batch_tokens, progress=progress, what=what)
    return values


def check_pools(texts: Sequence[Text], pools: Sequence[str], *, first: bool = False) -> None:
    """Reject pools that do not exist or for which a text has no token.

    Raises:
        InputError: naming the pool, and the text.
    """
    for pool in pools:
        if pool not in POOLS:
            raise InputError(f"there is no pool '{pool}'", near(pool, POOLS))
        empty = next((t for t in texts if not t.span(pool, first=first)), None)
        if empty is not None:
            raise InputError(f"text '{empty.id}' has no token for the pool '{pool}'", f"give it {pool} tokens, or leave it out")


class _Enough(Exception):
    """All places have been seen; the blocks above need not be computed."""


def _passes(
    net: CausalLM,
    texts: Sequence[Text],
    places: Sequence[Place],
    batch_tokens: int | None,
    read: Callable[[list[int], Laid, Flow], None],
    progress: Progress,
    what: str,
) -> None:
    """Call `read` for each batch with which texts it holds, how they lie, and what runs the pass and shows what is at each place."""
    import torch

    modules = branches_at(net, places)
    most = batch_tokens or size.batch_tokens(net)
    longest = max(map(len, texts), default=0)
    total, done = sum(map(len, texts)), 0
    with torch.inference_mode(), fast_float32(net), packed_attention(net, longest) as fits:
        for batch in _batches(texts, most):
            ids = [texts[n].ids for n in batch]
            laid, run = (_packed if fits else _padded)(net, ids)
            answers = laid.answers([texts[n] for n in batch])

            def flow(see: See, run: Run = run, answers: Tensor = answers) -> None:
                with _until_seen(modules, see), answers_at(answers):
                    run()

            read(batch, laid, flow)
            done += sum(len(texts[n]) for n in batch)
            progress(what, done, total)


@contextmanager
def _until_seen(modules: Mapping[Place, Sequence[Branch]], see: See) -> Iterator[None]:
    """Show each place once, and end the pass inside the block when all have been."""
    missing = set(modules)

    def once(place: Place, values: Tensor) -> None:
        see(place, values)
        missing.discard(place)
        if not missing:
            raise _Enough

    with suppress(_Enough), watched(modules, once):
        yield


def _packed(net: CausalLM, ids: Sequence[tuple[int, ...]]) -> tuple[Laid, Run]:
    trie = pack(ids, net.device)
    return Laid(trie.paths, len(trie.ids)), lambda: hidden_states(net, trie)


def _padded(net: CausalLM, ids: Sequence[tuple[int, ...]]) -> tuple[Laid, Run]:
    """Pad on the right: no real token sees what comes after it."""
    import torch

    longest = max(map(len, ids))
    rows = torch.tensor([[*s, *([0] * (longest - len(s)))] for s in ids], device=net.device)
    mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in ids], device=net.device)
    at = torch.arange(rows.numel(), device=net.device).view(rows.shape)
    return Laid(at, rows.numel()), lambda: net.base_model(input_ids=rows, attention_mask=mask, use_cache=False)


def _batches(texts: Sequence[Text], most: int) -> Iterator[list[int]]:
    """Yield the places of texts of similar length, up to `most` tokens in all; the longest first, so that memory peaks at once."""
    batch: list[int] = []
    used = 0
    for n in sorted(range(len(texts)), key=lambda n: len(texts[n]), reverse=True):
        if batch and used + len(texts[n]) > most:
            yield batch
            batch, used = [], 0
        batch.append(n)
        used += len(texts[n])
    if batch:
        yield batch
