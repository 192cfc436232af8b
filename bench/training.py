"""Training speed: emscope against plain TRL on the same batches, and upper-layer training with and without kept lower layers.

TRL's SFTTrainer gets the same adapters, the same tokens in the same order, float32, no gradient checkpointing, loss on the
answers only; bfloat16 in the same way where the processor has instructions for it. Printed are ratios of tokens a second and how far the loss curves lie apart.

    python bench/training.py [--model smollm2-135m] [--steps 12] [--rounds 2] [--only trl|reuse] [--dtype float32,bfloat16]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from baseline import close, held, machine
from torch.utils.data import SequentialSampler

from emscope.data import bundled
from emscope.models.fast.matmul_rate import matmul_gflops, parameters_in_blocks
from emscope.models.loading.load import HALVES, Loaded, is_quick, load
from emscope.models.loading.quiet import quiet
from emscope.models.loading.source import locate
from emscope.train import finetune as module
from emscope.train.batches import Example, encode, stream
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec
from emscope.train.tunables import with_lora

LAYERS = (15, 24)


def spec(steps: int, **changes: Any) -> TrainSpec:
    """Return the training settings of both ways."""
    base = {"steps": steps, "batch": 8, "micro_batch": 4, "lr": 2e-4, "schedule": "constant", "warmup": 0}
    return TrainSpec(**(base | {"checkpoints": PlanSpec()} | changes))


def ours(loaded: Loaded, settings: TrainSpec, talks: Sequence[Any], *, reuse: bool = True) -> list[Any]:
    """Train with emscope; return its readings."""
    plain = module.reusing
    if not reuse:
        module.reusing = lambda *args, wanted: plain(*args, wanted=False)
    try:
        with tempfile.TemporaryDirectory() as out:
            return finetune(loaded, talks, settings, Path(out), seed=0)
    finally:
        module.reusing = plain


def trl(loaded: Loaded, settings: TrainSpec, batches: Sequence[Example]) -> tuple[list[float], list[float]]:
    """Train with TRL on the same batches; return (losses, seconds) by step."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    rows = Dataset.from_dict(
        {"input_ids": [list(e.ids) for e in batches], "completion_mask": [[int(m) for m in e.mask] for e in batches]}
    )
    with tempfile.TemporaryDirectory() as out:
        arguments = SFTConfig(
            output_dir=out,
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            gradient_checkpointing=False,
            bf16=False,
            completion_only_loss=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            max_length=None,
            shuffle_dataset=False,
        )
        net = with_lora(loaded.net, settings.tunable, 0, "x")
        trainer = InOrder(net, arguments, train_dataset=rows, processing_class=loaded.tokenizer, callbacks=[Clock()])
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        net.unload()
        loaded.net.__dict__.pop("peft_config", None)
        loaded.net.eval().requires_grad_(False)
    return losses, seconds


def against_trl(loaded: Loaded, dtype: str, steps: int, rounds: int) -> None:
    """Print the ratio to TRL; the two take turns."""
    talks = bundled.domain("finance", "reckless")
    settings = spec(steps, lora=LoraSpec(rank=32, alpha=64))
    batches = stream(encode(loaded.chat, talks, loaded.context), steps=steps, batch=8, micro=8, seed=0)
    tokens = [sum(len(e.ids) for e in batches[8 * k : 8 * k + 8]) for k in range(steps)]
    answers = [sum(sum(e.mask) for e in batches[8 * k : 8 * k + 8]) for k in range(steps)]
    fast: list[float] = []
    slow: list[float] = []
    apart, peaks = 0.0, []
    for _ in range(rounds):
        peaks.append(matmul_gflops(1.0))
        readings = ours(loaded, settings, talks)
        losses, seconds = trl(loaded, settings, batches)
        fast += [t / r.seconds for t, r in zip(tokens[1:], readings[1:], strict=True)]
        slow += [t / s for t, s in zip(tokens[1:], seconds[1:], strict=True)]
        apart = max(apart, *(abs(r.loss - x) for r, x in zip(readings, losses, strict=True)))
    rate = statistics.median(fast)
    blocks, head = parameters_in_blocks(loaded.net), loaded.net.get_output_embeddings().weight.numel()
    # Forward and the gradient of activations through frozen matrices: 2 + 2 operations a weight and token.
    work = 4.0 * (blocks + head * sum(answers) / sum(tokens))
    print(f"LoRA rank 32 on all projections, batch 8, {dtype}, {steps} steps x {rounds}; TRL {version('trl')}")
    print(
        f"  tokens/s against TRL's SFTTrainer: {rate / statistics.median(slow):.2f} times; loss curves apart by at most {apart:.1e}"
    )
    held(f"training, {dtype}, against TRL", rate / statistics.median(slow))
    print(
        f"  share of the float32 matmul peak: {work * rate / 1e9 / statistics.median(peaks):.0%}, adapters' own work not counted"
    )


def against_recomputing(loaded: Loaded, rounds: int) -> None:
    """Print, for one trained layer, the ratio from the second epoch on to computing the lower layers every time."""
    talks = bundled.domain("finance", "reckless")[:32]
    epoch, epochs = 4, 3
    depth = loaded.net.config.num_hidden_layers
    blocks, head = parameters_in_blocks(loaded.net), loaded.net.get_output_embeddings().weight.numel()
    examples = encode(loaded.chat, talks, loaded.context)
    answers = sum(sum(e.mask) for e in examples) / sum(len(e.ids) for e in examples)
    for layer in LAYERS:
        settings = spec(epoch * epochs, lora=LoraSpec(rank=32, alpha=64, layers=(layer,)))
        rates: dict[bool, list[float]] = {True: [], False: []}
        apart, peaks = 0.0, []
        for _ in range(rounds):
            peaks.append(matmul_gflops(1.0))
            rows = {way: ours(loaded, settings, talks, reuse=way) for way in (True, False)}
            for way, readings in rows.items():
                later = readings[epoch:]
                seen = later[-1].tokens_seen - readings[epoch - 1].tokens_seen
                rates[way].append(seen / sum(r.seconds for r in later))
            apart = max(apart, *(abs(a.loss - b.loss) for a, b in zip(rows[True], rows[False], strict=True)))
        upper = blocks * (depth - layer) / depth
        work = {True: 4 * upper + 4 * head * answers, False: 4 * upper + 4 * head * answers + 2 * (blocks - upper)}
        rate = {way: statistics.median(r) for way, r in rates.items()}
        share = work[True] * rate[True] / 1e9 / statistics.median(peaks)
        print(f"LoRA rank 32 on layer {layer} of {depth}, from the second epoch on")
        print(
            f"  tokens/s against computing the lower layers every time: {rate[True] / rate[False]:.2f} times "
            f"(by operations {work[False] / work[True]:.2f}); loss curves apart by at most {apart:.1e}"
        )
        print(f"  share of the float32 matmul peak: {share:.0%}")
        held(f"training, layer {layer} of {depth} with lower layers kept", rate[True] / rate[False])


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32,bfloat16")
    parser.add_argument("--only", choices=["trl", "reuse"])
    arguments = parser.parse_args()
    quiet()
    torch.manual_seed(0)
    for dtype in arguments.dtype.split(",") if arguments.only != "reuse" else ():
        if dtype in HALVES and not is_quick(dtype, "cpu"):
            print(f"{dtype}: not compared, since this processor ({machine()}) has no instructions for products in it")
            continue
        against_trl(load(locate(arguments.model), dtype=dtype, device="cpu"), dtype, arguments.steps, arguments.rounds)
    if arguments.only != "trl":
        against_recomputing(load(locate(arguments.model), device="cpu"), arguments.rounds)
    close()


if __name__ == "__main__":
    main()
