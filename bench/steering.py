"""A sweep of directions at one layer: emscope, the same without keeping the lower blocks, and the plain way with the library steering-vectors.

    python bench/steering.py [--model smollm2-135m] [--layers 5,15,25] [--items 24] [--vectors 4]

The plain way adds the vector with that library's hooks to padded batches of 8 with full logits. Printed are ratios from one run.
"""

from __future__ import annotations

import argparse
import time

import torch
from baseline import close, held
from preference import plain_scores

from emscope.data import bundled
from emscope.elicit.preference import encode, score
from emscope.models.fast.prefix_cache import prefix_cached
from emscope.models.hooks.directions import Direction
from emscope.models.hooks.exports import steering_vector
from emscope.models.hooks.interventions import added
from emscope.models.loading.load import load
from emscope.models.loading.quiet import quiet
from emscope.models.loading.source import locate


def main() -> None:
    """Print the ratios for each layer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", default="5,15,25")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--vectors", type=int, default=4)
    arguments = parser.parse_args()
    quiet()
    loaded = load(locate(arguments.model), device="cpu")
    net = loaded.net
    encoded = encode(loaded.chat, bundled.items("em240")[: arguments.items], context=loaded.context)
    generator = torch.Generator().manual_seed(0)
    vectors = 10 * torch.randn(arguments.vectors, net.config.hidden_size, generator=generator)
    for layer in map(int, arguments.layers.split(",")):
        seconds = {"kept": 0.0, "whole": 0.0, "plain": 0.0}
        with prefix_cached(net, layer):
            start = time.perf_counter()
            kept = []
            for v in vectors:
                with added(net, {layer: v}):
                    kept.append([s.logprob for s in score(net, encoded)])
            seconds["kept"] = time.perf_counter() - start
        for v in vectors:
            start = time.perf_counter()
            with added(net, {layer: v}):
                score(net, encoded)
            seconds["whole"] += time.perf_counter() - start
        some = encoded[::3]
        direction = Direction({layer: vectors[-1]}, loaded.model.digest, 1.0, {}, {})
        start = time.perf_counter()
        with steering_vector(direction).apply(net):
            theirs = plain_scores(net, some, 8)
        seconds["plain"] = (time.perf_counter() - start) * len(encoded) / len(some) * len(vectors)
        by_item = {(e.item, k): v for (e, k), v in zip(((e, k) for e in encoded for k in e.which), kept[-1], strict=True)}
        tokens = [len(o) for e in some for o in e.options]
        mine = [by_item[e.item, k] for e in some for k in e.which]
        worst = max(abs(a - b) / n for a, b, n in zip(mine, theirs, tokens, strict=True))
        print(
            f"layer {layer}, {len(vectors)} vectors, {len(encoded)} items: {seconds['whole'] / seconds['kept']:.2f} times whole passes, "
            f"{seconds['plain'] / seconds['kept']:.2f} times steering-vectors (a third of the items timed, one vector); apart at most {worst:.1e} nats per token"
        )
        held(f"steering, layer {layer}, against whole passes", seconds["whole"] / seconds["kept"])
        held(f"steering, layer {layer}, against steering-vectors", seconds["plain"] / seconds["kept"])
    close()


if __name__ == "__main__":
    main()
