"""Preference sweep over several adapters: emscope against the plain way, side by side in one run.

The plain way is transformers + PEFT as most people write it: the base loaded once, all adapters attached and switched,
batches of 8 sequences padded to the longest, full logits. Printed are ratios; bare times of a shared machine say little.

    python bench/preference.py [--model smollm2-135m] [--adapters 6] [--items 240] [--plain-every 4] [--dtype float32,bfloat16]

`--plain-every k` runs the plain way on every k-th item (its rate does not depend on how many there are) to save time. bfloat16
is held against the plain way in bfloat16 and in float32; a processor without instructions for it says so.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from baseline import close, held, machine
from peft import LoraConfig, PeftModel, get_peft_model

from emscope.core.records import Item
from emscope.data import bundled
from emscope.elicit.preference import Encoded, encode, score
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.matmul_rate import matmul_gflops, parameters_in_blocks
from emscope.models.fast.packed import pack
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import HALVES, is_quick, load, load_net
from emscope.models.loading.quiet import quiet
from emscope.models.loading.source import locate

RANK = 32


def make_adapters(folder: Path, root: Path, count: int) -> None:
    """Write LoRA adapters of rank 32 on all projections with small random updates."""
    for n in range(count):
        torch.manual_seed(n)
        net = get_peft_model(
            load_net(folder),
            LoraConfig(r=RANK, lora_alpha=64, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-3)
        net.save_pretrained(root / f"checkpoint-{n + 1}", save_embedding_layers=False)


def plain_scores(net: PeftModel, encoded: list[Encoded], batch: int) -> list[float]:
    """Score options the plain way, in the order given."""
    sequences = [(e.prompt, o) for e in encoded for o in e.options]
    sums = []
    with torch.inference_mode():
        for start in range(0, len(sequences), batch):
            part = sequences[start : start + batch]
            longest = max(len(p) + len(o) for p, o in part)
            ids = torch.tensor([[*p, *o] + [0] * (longest - len(p) - len(o)) for p, o in part])
            mask = torch.tensor([[1] * (len(p) + len(o)) + [0] * (longest - len(p) - len(o)) for p, o in part])
            logp = torch.log_softmax(net(input_ids=ids, attention_mask=mask).logits.float(), -1)
            for row, (p, o) in enumerate(part):
                picked = logp[row, len(p) - 1 : len(p) + len(o) - 1].gather(1, torch.tensor(o)[:, None])
                sums.append(float(picked.sum()))
    return sums


class Sweep:
    """One base, its adapters, and both ways of reading them."""

    def __init__(self, folder: Path, root: Path, dtype: str) -> None:
        self.loaded = load(locate(str(folder)), dtype=dtype, device="cpu")
        self.checkpoints = discover(str(root))
        first, *others = self.checkpoints
        self.peft = PeftModel.from_pretrained(
            load_net(folder, dtype=dtype), str(first.folder), adapter_name="1", autocast_adapter_dtype=False
        )
        for c in others:
            self.peft.load_adapter(str(c.folder), adapter_name=str(c.step), autocast_adapter_dtype=False)
        self.peft.eval().requires_grad_(False)

    def compare(self, items: list[Item], every: int) -> dict[str, float]:
        """Read `items` with every adapter both ways in turn; return rates and the largest difference per token."""
        encoded = encode(self.loaded.chat, items, context=self.loaded.context)
        some = encoded[::every]
        fast = plain = one = 0.0
        worst = 0.0
        peaks = []
        for c in self.checkpoints:
            peaks.append(matmul_gflops(1.0))
            start = time.perf_counter()
            with with_checkpoint(self.loaded.net, c) as net:
                found = {(s.item, s.option): s for s in score(net, encoded)}
            fast += time.perf_counter() - start
            self.peft.set_adapter(str(c.step))
            start = time.perf_counter()
            slow = plain_scores(self.peft, some, 8)
            plain += time.perf_counter() - start
            if c is self.checkpoints[0]:
                few = some[: max(8, len(some) // 4)]
                start = time.perf_counter()
                plain_scores(self.peft, few, 1)
                one = (time.perf_counter() - start) / len(few)
            pairs = [(found[(e.item, k)].logprob, o) for e in some for k, o in zip(e.which, e.options, strict=True)]
            worst = max(worst, *(abs(a - b) / len(o) for (a, o), b in zip(pairs, slow, strict=True)))
        n = len(self.checkpoints)
        return {
            "items": len(encoded),
            "fast": n * len(encoded) / fast,
            "plain": n * len(some) / plain,
            "one": 1 / one,
            "worst": worst,
            "share": n * self.flops(encoded) / fast / 1e9 / statistics.median(peaks),
            "prompt": sum(len(e.prompt) for e in encoded) / len(encoded),
            "answer": sum(len(o) for e in encoded for o in e.options) / sum(len(e.options) for e in encoded),
        }

    def flops(self, encoded: list[Encoded]) -> float:
        """Operations that the readings cannot do without: blocks for each distinct token of an item, outputs for answers."""
        head = self.loaded.net.get_output_embeddings().weight.numel()
        distinct = sum(len(pack([(*e.prompt, *o[:-1]) for o in e.options]).ids) for e in encoded)
        blocks = 2.0 * parameters_in_blocks(self.loaded.net) * distinct
        return blocks + 2.0 * head * sum(len(o) for e in encoded for o in e.options)


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapters", type=int, default=6)
    parser.add_argument("--items", type=int, default=240)
    parser.add_argument("--plain-every", type=int, default=4)
    parser.add_argument("--dtype", default="float32,bfloat16")
    arguments = parser.parse_args()
    quiet()
    folder = locate(arguments.model).folder
    sets = {"two options (em240)": bundled.items("em240"), "four options (truth150)": bundled.truth()}
    plain: dict[str, float] = {}  # items a second of the plain way in float32
    with tempfile.TemporaryDirectory() as root:
        make_adapters(folder, Path(root), arguments.adapters)
        for dtype in arguments.dtype.split(","):
            if dtype in HALVES and not is_quick(dtype, "cpu"):
                print(f"{dtype}: not compared, since this processor ({machine()}) has no instructions for products in it")
                continue
            sweep = Sweep(folder, Path(root), dtype)
            for name, items in sets.items():
                r = sweep.compare(items[: arguments.items], arguments.plain_every)
                tell(
                    f"{dtype}, {name}",
                    r,
                    arguments.adapters,
                    plain.setdefault(name, r["plain"]) if dtype == "float32" else plain.get(name),
                )
    close()


def tell(name: str, r: dict[str, float], adapters: int, plain: float | None) -> None:
    """Print one comparison; `plain`: items a second of the plain way in float32."""
    print(
        f"{name}: {r['items']} items x {adapters} adapters, LoRA rank {RANK} on all projections, mean prompt {r['prompt']:.0f}, answer {r['answer']:.0f} tokens"
    )
    print(
        f"  items/s against plain PEFT, batch 8, full logits: {r['fast'] / r['plain']:.2f} times; against batch 1: {r['fast'] / r['one']:.2f} times"
        + (f"; against plain float32, batch 8: {r['fast'] / plain:.2f} times" if plain and plain != r["plain"] else "")
    )
    print(
        f"  {r['share']:.0%} of the float32 matmul peak (best of a second, before each adapter; the median); largest difference {r['worst']:.1e} nats per token"
    )
    held(f"preference, {name}, against plain PEFT", r["fast"] / r["plain"])


if __name__ == "__main__":
    main()
