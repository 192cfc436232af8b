"""Many answers to a few prompts generated side by side: a prompt's keys and values are computed and kept once.

All rows that are being written go through the model as one flat row of tokens, so that every matrix product sees just
them; attention looks at the row's own prompt, shared with its other samples, and at the row's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from emscope.models.fast import batch_size as size
from emscope.models.fast.packed import Pack, hidden_states, pack, turns_alike
from emscope.models.hooks.roles import answers_at

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, Head

_CACHES: WeakKeyDictionary[CausalLM, bool] = WeakKeyDictionary()  # whether transformers' cache holds, by model


@dataclass(frozen=True)
class Prompts(Pack):
    """Prompts being read, whose keys and values are kept: (k [T, K, d], v [T, K, e]) by layer."""

    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Attend as `Pack` does and keep keys and values."""
        self.kept[layer] = k.clone(), v.clone()
        return super().attend(layer, q, k, v, scale)


class Decoding:
    """Rows being written, each after one of the prompts; use it inside `packed_attention`, where that yields True.

    Args:
        head: hidden states of `net` to logits, made outside of it.
        prompts: token ids of each prompt.
        of: the prompt of each row [R], ascending.
        most: tokens that a row may have.

    Attributes:
        logits: of each row's next token [R, V].
    """

    def __init__(self, net: CausalLM, head: Head, prompts: Sequence[Sequence[int]], of: Sequence[int], most: int) -> None:
        import torch

        self._head = head
        read = pack(prompts, net.device)
        held = Prompts(read.ids, read.positions, read.paths, read.home, read.longest + most, lasting=False)
        with answers_at(False):
            states = hidden_states(net, held)
        self.longest = held.longest
        self._net, self._written, self._most = net, 0, most
        self._lengths = torch.tensor([len(p) for p in prompts], device=net.device)
        self._of = torch.tensor(of, device=net.device)
        last = torch.stack([held.paths[n, len(p) - 1] for n, p in enumerate(prompts)])
        self.logits = self._head(states[last])[self._of]
        # keys [K, d, L] and values [K, L, e] of each prompt, ready to be multiplied
        self._prompts = {
            layer: [
                (
                    k[held.paths[n, : len(p)]].permute(1, 2, 0).contiguous(),
                    v[held.paths[n, : len(p)]].transpose(0, 1).contiguous(),
                )
                for n, p in enumerate(prompts)
            ]
            for layer, (k, v) in held.kept.items()
        }
        self._own: dict[int, tuple[Tensor, Tensor]] = {}
        self._spans = self._find_spans()

    def __len__(self) -> int:
        return len(self._of)

    def write(self, tokens: Tensor) -> None:
        """Give each row its next token [R] and compute `logits`."""
        positions = self._lengths[self._of] + self._written
        self._written += 1
        with answers_at(True):
            out = self._net.base_model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, emscope_pack=self)
        self.logits = self._head(out.last_hidden_state[0])

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, as ascending indices."""
        self._of, self.logits = self._of[rows], self.logits[rows]
        for layer in self._own:  # one at a time: copies of all blocks at once would double the memory
            keys, values = self._own[layer]
            self._own[layer] = keys[rows], values[rows]
        self._spans = self._find_spans()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Return attention [R, H, e] of each row's q [R, H, d] over its prompt and what it has written, k [R, K, d] and v [R, K, e] included."""
        import torch

        (rows, heads, d), e = q.shape, v.shape[2]
        groups, done = heads // k.shape[1], self._written
        keys, values = self._stored(layer, k, v)
        q = (q * (scale if scale is not None else d**-0.5)).view(rows, k.shape[1], groups, d)
        own = torch.matmul(q, keys[:, :, :done].transpose(2, 3))  # [R, K, g, done]
        out = q.new_empty(*q.shape[:3], e)
        for n, (start, stop) in self._spans:
            before, seen = self._prompts[layer][n]  # [K, d, L], [K, L, e]
            mine = q[start:stop].transpose(0, 1).flatten(1, 2)  # [K, rows g, d]
            shared = torch.matmul(mine, before).view(k.shape[1], stop - start, groups, -1).transpose(0, 1)
            p = torch.softmax(torch.cat([shared, own[start:stop]], -1), -1)  # over prompt and own tokens alike
            length = before.shape[2]
            from_prompt = torch.matmul(p[..., :length].transpose(0, 1).flatten(1, 2), seen)
            out[start:stop] = from_prompt.view(k.shape[1], stop - start, groups, e).transpose(0, 1)
            out[start:stop] += torch.matmul(p[..., length:], values[start:stop, :, :done])
        return out.view(rows, heads, e)

    def _stored(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the room for the rows' keys [R, K, most, d] and values [R, K, most, e] with the newest ones in place."""
        if layer not in self._own:
            room = (len(k), k.shape[1], self._most)
            self._own[layer] = k.new_empty(*room, k.shape[2]), v.new_empty(*room, v.shape[2])
        keys, values = self._own[layer]
        keys[:, :, self._written - 1], values[:, :, self._written - 1] = k, v
        return keys, values

    def _find_spans(self) -> list[tuple[int, tuple[int, int]]]:
        """Return (prompt, (first row, last + 1)) of the rows of each prompt that has any."""
        present, starts = _runs(self._of.tolist())
        return list(zip(present, zip(starts, [*starts[1:], len(self._of)], strict=True), strict=True))


class CachedDecoding:
    """The same with transformers' own cache, for models that cannot be packed: prompts are padded and copied for each sample.

    Args, attributes: as `Decoding`.
    """

    def __init__(self, net: CausalLM, head: Head, prompts: Sequence[Sequence[int]], of: Sequence[int], most: int) -> None:
        import torch
        from transformers import DynamicCache

        self._net, rows = net, torch.tensor(of, device=net.device)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=net.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=net.device)
        self._cache = DynamicCache(config=net.config)
        with answers_at(False):
            logits = self._pass(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        self._cache.reorder_cache(rows)  # unlike `batch_select_indices`, it knows the states of linear attention too
        self.logits, self._mask = logits[rows], mask[rows]
        self._positions = self._mask.sum(1)

    def __len__(self) -> int:
        return len(self._positions)

    def write(self, tokens: Tensor) -> None:
        """Give each row its next token [R] and compute `logits`."""
        import torch

        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        with answers_at(True):
            self.logits = self._pass(tokens[:, None], self._mask, self._positions[:, None])
        self._positions = self._positions + 1

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, as ascending indices."""
        self._cache.reorder_cache(rows)
        self.logits, self._mask, self._positions = self.logits[rows], self._mask[rows], self._positions[rows]

    def _pass(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self._net(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


class Recomputed:
    """The same with no cache at all: every token costs a plain pass over its row, rows of one length together so that nothing is padded.

    Args, attributes: as `Decoding`.
    """

    def __init__(self, net: CausalLM, head: Head, prompts: Sequence[Sequence[int]], of: Sequence[int], most: int) -> None:
        import torch

        self._net, self._head = net, head
        self._starts = [len(prompts[n]) for n in of]
        self._rows = [torch.tensor(prompts[n], device=net.device) for n in of]
        self.logits = self._pass()

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, tokens: Tensor) -> None:
        """Give each row its next token [R] and compute `logits`."""
        import torch

        self._rows = [torch.cat([row, token[None]]) for row, token in zip(self._rows, tokens, strict=True)]
        self.logits = self._pass()

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only, as ascending indices."""
        kept = rows.tolist()
        self._rows, self._starts = [self._rows[n] for n in kept], [self._starts[n] for n in kept]
        self.logits = self.logits[rows]

    def _pass(self) -> Tensor:
        import torch

        found: dict[int, Tensor] = {}
        for batch in self._batches():
            ids = torch.stack([self._rows[n] for n in batch])
            starts = torch.tensor([self._starts[n] for n in batch], device=ids.device)
            with answers_at(torch.arange(ids.shape[1], device=ids.device) >= starts[:, None]):
                states = self._net.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
            for n, logits in zip(batch, self._head(states), strict=True):
                found[n] = logits
        return torch.stack([found[n] for n in range(len(self._rows))])

    def _batches(self) -> Iterator[list[int]]:
        """Yield rows of one length, as many as suit the device."""
        most = size.batch_tokens(self._net)
        order = sorted(range(len(self._rows)), key=lambda n: len(self._rows[n]))
        for length, group in groupby(order, key=lambda n: len(self._rows[n])):
            rows, at_once = list(group), max(1, most // length)
            for start in range(0, len(rows), at_once):
                yield rows[start : start + at_once]


def unpacked(net: CausalLM, head: Head, longest: int) -> type[CachedDecoding] | type[Recomputed]:
    """Return how to generate with a model that cannot be packed: with transformers' cache where a probe, once for each model, shows that it gives the
    same as plain passes, else without one.

    Args:
        longest: tokens of the longest sequence expected.
    """
    if not turns_alike(net, longest):
        return Recomputed
    if net not in _CACHES:
        _CACHES[net] = _cache_holds(net, head)
    return CachedDecoding if _CACHES[net] else Recomputed


def _cache_holds(net: CausalLM, head: Head) -> bool:
    """True where prompts of two lengths, chosen rows and two generated tokens match those without a cache."""
    import torch

    prompts, of, kept = ([1, 2, 3, 4, 5], [6, 2]), [0, 1, 1], torch.tensor([0, 2], device=net.device)
    written = torch.tensor([[3, 4, 5], [7, 8, 9]], device=net.device)

    def through(way: type[CachedDecoding] | type[Recomputed]) -> Tensor:
        rows = way(net, head, prompts, of, 2)
        rows.write(written[0])
        rows.keep(kept)
        rows.write(written[1, kept])
        return rows.logits

    expected = through(Recomputed)
    try:
        found = through(CachedDecoding)
    except Exception:  # whatever an unsuitable cache raises, or a model without one
        return False
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


class Blended:
    """The same rows written by several models at once, each token from a weighted sum of their logits.

    Args:
        parts: (weight, rows) of each model; weights 1 - s and s of a base and its fine-tune give base + s (tuned - base).
    """

    def __init__(self, parts: Sequence[tuple[float, Decoding | CachedDecoding | Recomputed]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[0][1])

    @property
    def logits(self) -> Tensor:
        """Of each row's next token [R, V]."""
        first, *others = [weight * rows.logits.float() for weight, rows in self._parts]
        return sum(others, first)

    def write(self, tokens: Tensor) -> None:
        """Give each row its next token [R]."""
        for _, rows in self._parts:
            rows.write(tokens)

    def keep(self, kept: Tensor) -> None:
        """Continue with these rows only, as ascending indices."""
        for _, rows in self._parts:
            rows.keep(kept)


def _runs(values: Sequence[int]) -> tuple[list[int], list[int]]:
    starts = [n for n, v in enumerate(values) if n == 0 or v != values[n - 1]]
    return [values[n] for n in starts], starts
