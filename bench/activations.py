"""Activations of 300 prompts at all layers, beside a bare forward pass of the same batches and beside other libraries.

    python bench/activations.py [--prompts 300] [--rounds 3]

Each way gives the last prompt token and the mean over the prompt at every block. The bare pass computes hidden states and keeps
nothing. All ways run in turn in one process, `rounds` times; the table has each one's best, as ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from baseline import close, held

from emscope.data import bundled
from emscope.models.fast import batch_size as size
from emscope.models.hooks.sites import Place, blocks
from emscope.models.loading.load import Loaded, load
from emscope.models.loading.source import locate
from emscope.represent import activations
from emscope.represent.activations import Text, encode, pooled

POOLS = ("last", "prompt")


def prompts(loaded: Loaded, count: int) -> list[Text]:
    """Return questions of the bundled sets as prompts."""
    asked = [(i.id, i.question, "") for i in [*bundled.items("em240"), *bundled.heldout("finance"), *bundled.heldout("sports")]]
    return encode(loaded.chat, asked[:count], context=loaded.context)


def padded(loaded: Loaded, texts: list[Text]) -> list[tuple[Any, Any, list[int]]]:
    """Return (ids, mask, which) of the batches that `pooled` makes, padded on the right."""
    made = []
    for batch in activations._batches(texts, size.CPU_TOKENS):
        longest = max(len(texts[n]) for n in batch)
        ids = torch.tensor([[*texts[n].prompt, *([0] * (longest - len(texts[n])))] for n in batch])
        mask = torch.tensor([[1] * len(texts[n]) + [0] * (longest - len(texts[n])) for n in batch])
        made.append((ids, mask, batch))
    return made


def pools_of(values: Any, mask: Any) -> Any:
    """Return last token and mean without token 0 of values [B, T, D] as [B, 2, D]."""
    last = values[torch.arange(len(values)), mask.sum(1) - 1]
    inner = mask.clone()
    inner[:, 0] = 0
    return torch.stack([last, (values * inner[..., None]).sum(1) / inner.sum(1, keepdim=True)], 1)


def bare(loaded: Loaded, batches: list[Any]) -> Callable[[], Any]:
    """Return the forward pass without head that keeps nothing."""

    def run() -> None:
        with torch.inference_mode():
            for ids, mask, _ in batches:
                loaded.net.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    return run


def ours(loaded: Loaded, texts: list[Text]) -> Callable[[], Any]:
    """Return `pooled` at every block."""
    places = [Place("block", n) for n in range(len(blocks(loaded.net)))]
    return lambda: pooled(loaded.net, texts, places, POOLS)


def with_nnsight(loaded: Loaded, batches: list[Any]) -> Callable[[], Any]:
    """Return the same by nnsight."""
    import nnsight

    model = nnsight.LanguageModel(loaded.net, tokenizer=loaded.tokenizer)

    def run() -> Any:
        found = torch.empty(sum(len(which) for *_, which in batches), 2, len(model.model.layers), loaded.net.config.hidden_size)
        with torch.inference_mode():
            for ids, mask, which in batches:
                with model.trace({"input_ids": ids, "attention_mask": mask}):
                    kept = nnsight.save([layer.output for layer in model.model.layers])
                found[which] = torch.stack([pools_of(v, mask) for v in kept], 2)
        return found

    return run


def with_transformer_lens(loaded: Loaded, batches: list[Any]) -> Callable[[], Any]:
    """Return the same by TransformerLens, told to keep block outputs alone and to give no logits."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(loaded.model.folder), device="cpu")
    depth = len(blocks(loaded.net))
    names = [f"blocks.{n}.hook_out" for n in range(depth)]

    def run() -> Any:
        found = torch.empty(sum(len(which) for *_, which in batches), 2, depth, loaded.net.config.hidden_size)
        with torch.inference_mode():
            for ids, mask, which in batches:
                _, cache = bridge.run_with_cache(ids, names_filter=lambda n: n in names, return_type=None, attention_mask=mask)
                found[which] = torch.stack([pools_of(cache[name], mask) for name in names], 2)
        return found

    return run


def main() -> None:
    """Print prompts a second of every way as ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    loaded = load(locate(args.model), device="cpu")
    texts = prompts(loaded, args.prompts)
    batches = padded(loaded, texts)
    ways = {
        "bare forward pass": bare(loaded, batches),
        "emscope": ours(loaded, texts),
        "nnsight": with_nnsight(loaded, batches),
        "TransformerLens": with_transformer_lens(loaded, batches),
    }
    best = dict.fromkeys(ways, float("inf"))
    results: dict[str, Any] = {}
    for _ in range(args.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            results[name] = run()
            best[name] = min(best[name], time.perf_counter() - start)
    print(
        f"{len(texts)} prompts, {sum(map(len, texts))} tokens, {len(batches)} batches, {len(blocks(loaded.net))} blocks, best of {args.rounds}"
    )
    mine = results["emscope"]  # [N, pools, blocks, D]
    for name, seconds in best.items():
        far = (
            ""
            if results[name] is None
            else f", furthest from ours {float((results[name] - mine).abs().max() / mine.abs().max()):.1e}"
        )
        print(f"{name:20} {len(texts) / seconds:6.1f} prompts/s, emscope is {seconds / best['emscope']:.2f} times as fast{far}")
        if name != "emscope":
            held(f"activations, against {name}", seconds / best["emscope"])
    close()


if __name__ == "__main__":
    main()
