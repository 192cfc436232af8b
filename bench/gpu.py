"""On a GPU: does every path give what the CPU gives, and how much faster is it than the plain way on the same card?

Reading by several batch sizes in float32 and bfloat16, training in both with and without gradient checkpointing and on 4-bit
weights where bitsandbytes is installed, and sampling against `generate`. Rates of the plain way stand beside ours.

    python bench/gpu.py [--model smollm2-135m] [--items 240] [--steps 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emscope.data import bundled
from emscope.elicit.preference import Encoded, OptionScore, encode, score
from emscope.elicit.sampling import _end_ids, sample
from emscope.models.loading.load import QUANTISED, Loaded, load
from emscope.models.loading.quiet import quiet
from emscope.models.loading.source import Model, locate
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec

BATCH_TOKENS = (3072, 12288, 49152)
ROWS = (400, 1600)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what `work` returns and its seconds, all work of the card included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    found = work()
    torch.cuda.synchronize()
    return found, time.perf_counter() - start


def plain(net: Any, encoded: Sequence[Encoded], batch: int = 64) -> list[float]:
    """Score options as most people do: padded batches, full logits, sorted by length."""
    sequences = [(e.prompt, o) for e in encoded for o in e.options]
    order = sorted(range(len(sequences)), key=lambda n: len(sequences[n][0]) + len(sequences[n][1]))
    sums = [0.0] * len(sequences)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            part = [sequences[n] for n in order[start : start + batch]]
            longest = max(len(p) + len(o) for p, o in part)
            ids = torch.tensor([[*p, *o] + [0] * (longest - len(p) - len(o)) for p, o in part]).cuda()
            mask = torch.tensor([[1] * (len(p) + len(o)) + [0] * (longest - len(p) - len(o)) for p, o in part]).cuda()
            logp = torch.log_softmax(net(input_ids=ids, attention_mask=mask).logits.float(), -1)
            picked = logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
            for n, row, (p, o) in zip(order[start : start + batch], picked, part, strict=True):
                sums[n] = float(row[len(p) - 1 : len(p) + len(o) - 1].sum())
    return sums


def contrast(scores: Sequence[OptionScore]) -> float:
    """Return the mean margin of the first over the second option of all items [nats per token]."""
    by_item = np.array([s.per_token for s in scores]).reshape(len(scores) // 2, 2)
    return float((by_item[:, 0] - by_item[:, 1]).mean())


def reading(model: Model, count: int) -> None:
    """Print rates of reading preferences, and how far they lie from the CPU's."""
    items = bundled.items("em240")[:count]
    cpu = load(model, device="cpu")
    encoded = encode(cpu.chat, items, context=cpu.context)
    known = score(cpu.net, encoded)
    exact = np.array([s.logprob for s in known])
    tokens = sum(e.cost for e in encoded)
    print(f"reading {len(items)} items, {tokens} tokens")
    for dtype in ("float32", "bfloat16"):
        loaded = load(model, dtype=dtype, device="cuda")
        plain(loaded.net, encoded[:64])
        theirs, slow = timed(lambda net=loaded.net: plain(net, encoded))
        print(
            f"  {dtype}, plain: {tokens / slow:,.0f} tokens/s, apart from the CPU by at most {np.abs(np.array(theirs) - exact).max():.1e} nats an answer"
        )
        for size in BATCH_TOKENS:
            score(loaded.net, encoded[:64], batch_tokens=size)
            mine, fast = timed(lambda net=loaded.net, size=size: score(net, encoded, batch_tokens=size))
            sums = np.array([s.logprob for s in mine])
            print(
                f"  {dtype}, batches of {size}: {tokens / fast:,.0f} tokens/s, {slow / fast:.2f} times plain; at most "
                f"{np.abs(sums - exact).max():.1e} nats an answer and {abs(contrast(mine) - contrast(known)):.1e} a token on the mean margin from the CPU; "
                f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            )
            torch.cuda.reset_peak_memory_stats()


def training(model: Model, steps: int) -> None:
    """Print rates, memory and how far the loss curves lie apart."""
    talks = bundled.domain("finance", "reckless")
    curve: list[float] = []
    ways = [
        ("float32", {}),
        ("float32", {"bf16": True}),
        ("bfloat16", {"bf16": True}),
        ("float32", {"bf16": True, "gradient_checkpointing": True}),
    ]
    if find_spec("bitsandbytes"):
        ways.append((QUANTISED, {"bf16": True}))
    print(f"training adapters of rank 32, batch 16, {steps} steps")
    for dtype, changes in ways:
        loaded = load(model, dtype=dtype, device="cuda")
        spec = TrainSpec(
            steps=steps,
            batch=16,
            lr=5e-4,
            warmup=2,
            lora=LoraSpec(rank=32, alpha=64),
            checkpoints=PlanSpec(every=steps),
            **changes,
        )
        torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as out:
            readings = finetune(loaded, talks, spec, Path(out), seed=0)
        losses = [r.loss for r in readings]
        curve = curve or losses
        later = readings[3:]
        rate = (later[-1].tokens_seen - readings[2].tokens_seen) / sum(r.seconds for r in later)
        print(
            f"  weights {dtype}, {changes or 'as they are'}: {rate:,.0f} tokens/s, loss {losses[0]:.3f} to {losses[-1]:.3f}, from the first way's curve at most "
            f"{max(abs(a - b) for a, b in zip(curve, losses, strict=True)):.1e}; peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
        )


def sampling(model: Model, questions: int = 16, samples: int = 100, most: int = 64) -> None:
    """Print rates of sampling beside `generate`, a question at a time."""
    asked = [i.question for i in bundled.items("em240")[::15]][:questions]
    print(f"sampling {samples} answers to {len(asked)} questions, at most {most} tokens")
    for dtype in ("float32", "bfloat16"):
        loaded: Loaded = load(model, dtype=dtype, device="cuda")
        ends = sorted(_end_ids(loaded.net, loaded.chat))

        def generate(question: str, loaded: Loaded = loaded, ends: list[int] = ends) -> int:
            ids = torch.tensor([loaded.chat.prompt_ids(question)]).cuda()
            out = loaded.net.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=most,
                num_return_sequences=samples,
                eos_token_id=ends,
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
            rows = out[:, ids.shape[1] :].tolist()
            return sum(next((n for n, t in enumerate(row) if t in ends), len(row) - 1) + 1 for row in rows)

        generate(asked[0])
        written, slow = timed(lambda: sum(map(generate, asked)))
        print(f"  {dtype}, generate: {written / slow:,.0f} tokens/s, {written / len(asked) / samples:.1f} tokens an answer")
        for rows in ROWS:
            sample(loaded.net, loaded.chat, asked[:2], samples=samples, max_tokens=8, seed=0, rows=rows)
            answers, fast = timed(
                lambda loaded=loaded, rows=rows: sample(
                    loaded.net, loaded.chat, asked, samples=samples, max_tokens=most, seed=0, rows=rows
                )
            )
            mine = sum(a.tokens for a in answers)
            print(
                f"  {dtype}, {rows} rows: {mine / fast:,.0f} tokens/s, {mine / fast / (written / slow):.2f} times generate; {mine / len(answers):.1f} tokens an answer"
            )


def main() -> None:
    """Print all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", choices=["reading", "training", "sampling"])
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here.")
    quiet()
    model = locate(arguments.model)
    print(f"{torch.cuda.get_device_name()}, torch {version('torch')}, transformers {version('transformers')}")
    parts = {
        "reading": lambda: reading(model, arguments.items),
        "training": lambda: training(model, arguments.steps),
        "sampling": lambda: sampling(model),
    }
    for name, part in parts.items():
        if arguments.only in (None, name):
            part()


if __name__ == "__main__":
    main()
