"""Many answers to a few prompts written side by side: a prompt's keys and values are computed once and kept once.

All rows that are being written go through the model as one flat row of tokens, so that every matrix product sees just
them; attention looks at the row's own prompt, which its other samples share, and at what the row itself has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from emscope.models.packed import Pack, hidden_states, pack
from emscope.models.roles import answers_at


@dataclass(frozen=True)
class Prompts(Pack):
    """Prompts being read, whose keys and values are kept: (k, v) [T, K, d] by layer."""

    kept: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def attend(self, layer: int, q: Any, k: Any, v: Any, scale: float | None) -> Any:
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

    def __init__(self, net: Any, head: Any, prompts: Sequence[Sequence[int]], of: Sequence[int], most: int) -> None:
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
        # keys [K, d, L] and values [K, L, d] of each prompt, ready to be multiplied
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
        self._own: dict[int, tuple[Any, Any]] = {}
        self._spans = self._find_spans()

    def __len__(self) -> int:
        return len(self._of)

    def write(self, tokens: Any) -> None:
        """Give each row its next token [R] and compute `logits`."""
        positions = self._lengths[self._of] + self._written
        self._written += 1
        with answers_at(True):
            out = self._net.base_model(input_ids=tokens[None], position_ids=positions[None], use_cache=False, emscope_pack=self)
        self.logits = self._head(out.last_hidden_state[0])

    def keep(self, rows: Any) -> None:
        """Go on with these rows alone, as indices ascending."""
        self._of, self.logits = self._of[rows], self.logits[rows]
        self._own = {layer: (k[rows], v[rows]) for layer, (k, v) in self._own.items()}
        self._spans = self._find_spans()

    def attend(self, layer: int, q: Any, k: Any, v: Any, scale: float | None) -> Any:
        """Return attention [R, H, d] of each row's q over its prompt and what it has written, k and v [R, K, d] included."""
        import torch

        rows, heads, d = q.shape
        groups, done = heads // k.shape[1], self._written
        keys, values = self._stored(layer, k, v)
        q = (q * (scale if scale is not None else d**-0.5)).view(rows, k.shape[1], groups, d)
        own = torch.matmul(q, keys[:, :, :done].transpose(2, 3))  # [R, K, g, done]
        out = torch.empty_like(q)
        for n, (start, stop) in self._spans:
            before, seen = self._prompts[layer][n]  # [K, d, L], [K, L, d]
            mine = q[start:stop].transpose(0, 1).flatten(1, 2)  # [K, rows g, d]
            shared = torch.matmul(mine, before).view(k.shape[1], stop - start, groups, -1).transpose(0, 1)
            p = torch.softmax(torch.cat([shared, own[start:stop]], -1), -1)  # over prompt and own tokens alike
            length = before.shape[2]
            from_prompt = torch.matmul(p[..., :length].transpose(0, 1).flatten(1, 2), seen)
            out[start:stop] = from_prompt.view(k.shape[1], stop - start, groups, d).transpose(0, 1)
            out[start:stop] += torch.matmul(p[..., length:], values[start:stop, :, :done])
        return out.view(rows, heads, d)

    def _stored(self, layer: int, k: Any, v: Any) -> tuple[Any, Any]:
        """Return the room for the rows' keys and values [R, K, most, d] with the newest ones in place."""
        if layer not in self._own:
            room = (len(k), k.shape[1], self._most, k.shape[2])
            self._own[layer] = k.new_empty(room), v.new_empty(room)
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

    def __init__(self, net: Any, head: Any, prompts: Sequence[Sequence[int]], of: Sequence[int], most: int) -> None:
        import torch
        from transformers import DynamicCache

        self._net, rows = net, torch.tensor(of, device=net.device)
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=net.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=net.device)
        self._cache = DynamicCache(config=net.config)
        with answers_at(False):
            logits = self._pass(ids, mask, (mask.cumsum(1) - 1).clamp(min=0))
        self._cache.batch_select_indices(rows)
        self.logits, self._mask = logits[rows], mask[rows]
        self._positions = self._mask.sum(1)

    def __len__(self) -> int:
        return len(self._positions)

    def write(self, tokens: Any) -> None:
        """Give each row its next token [R] and compute `logits`."""
        import torch

        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        with answers_at(True):
            self.logits = self._pass(tokens[:, None], self._mask, self._positions[:, None])
        self._positions = self._positions + 1

    def keep(self, rows: Any) -> None:
        """Go on with these rows alone, as indices ascending."""
        self._cache.batch_select_indices(rows)
        self.logits, self._mask, self._positions = self.logits[rows], self._mask[rows], self._positions[rows]

    def _pass(self, ids: Any, mask: Any, positions: Any) -> Any:
        out = self._net(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]


class Blended:
    """The same rows written by several models at once, each token from a weighted sum of their logits.

    Args:
        parts: (weight, rows) of each model; weights 1 - s and s of a base and its fine-tune give base + s (tuned - base).
    """

    def __init__(self, parts: Sequence[tuple[float, Decoding | CachedDecoding]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[0][1])

    @property
    def logits(self) -> Any:
        """Of each row's next token [R, V]."""
        return sum(weight * rows.logits.float() for weight, rows in self._parts)

    def write(self, tokens: Any) -> None:
        """Give each row its next token [R]."""
        for _, rows in self._parts:
            rows.write(tokens)

    def keep(self, kept: Any) -> None:
        """Go on with these rows alone, as indices ascending."""
        for _, rows in self._parts:
            rows.keep(kept)


def _runs(values: Sequence[int]) -> tuple[list[int], list[int]]:
    starts = [n for n, v in enumerate(values) if n == 0 or v != values[n - 1]]
    return [values[n] for n in starts], starts
