"""Memory: what is counted from a configuration beside what a process really takes, and a table of what larger models need.

Each measurement is a process of its own: it does the same job on a tiny model first, so that libraries are loaded, has the kernel
forget its highest mark, and loads the model, reads, writes or trains. Taken is the highest resident memory less what was resident before.

    python bench/memory.py [--only reading,sampling] [--models smollm2-135m]     three sizes, measured and predicted
    python bench/memory.py --table                                              the table of docs/hardware.md, predicted only
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emscope.models.sizing import memory, needs
from emscope.models.sizing.needs import Need, Reading, Sampling, Training

SHAPES = {
    "random 304M": {
        "vocab_size": 49152,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 17,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "random 494M": {  # the shape of Qwen2.5-0.5B
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
TINY = {
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN = {"vocab_size": 152064, "max_position_embeddings": 32768, "num_key_value_heads": 8, "tie_word_embeddings": False}
LARGE: dict[str, tuple[str, dict[str, Any]]] = {  # from the models' public config.json
    "Qwen2.5-7B": (
        "qwen2",
        QWEN
        | {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
        },
    ),
    "Llama-3.1-8B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "Qwen2.5-14B": (
        "qwen2",
        QWEN | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40},
    ),
    "Qwen2.5-32B": (
        "qwen2",
        QWEN | {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40},
    ),
    "Llama-3.1-70B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
    ),
    "Qwen2.5-72B": (
        "qwen2",
        QWEN | {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64},
    ),
}
PROMPT, OPTION, WRITTEN, RANK = 24, 31, 12, 32


@dataclass(frozen=True)
class Sizes:
    """How much one job does: items read, answers written, examples a step and their words."""

    items: int
    rows: int
    micro: int
    words: int


WORK = {"smollm2-135m": Sizes(24, 100, 4, 60), "random 304M": Sizes(12, 60, 2, 60), "random 494M": Sizes(6, 40, 2, 30)}
JOBS = ("reading", "reading with lora", "sampling", "lora", "lora, checkpointing", "upper half", "full")


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(JOBS).replace("lora, ", "lora; "))
    parser.add_argument("--models", default=",".join(WORK))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plain-heap", action="store_true", help="leave glibc's heap as it is, also in training")
    parser.add_argument("--measure", nargs=3, metavar=("JOB", "NAME", "FOLDER"))
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(*args.measure)))
    elif args.table:
        print(table())
    else:
        compare(args.models.split(","), [job.replace(";", ",") for job in args.only.split(",")], plain_heap=args.plain_heap)


def compare(names: Sequence[str], jobs: Sequence[str], *, plain_heap: bool) -> None:
    """Print measured and predicted bytes of each job on each model.

    Training is measured with MALLOC_MMAP_THRESHOLD_ set unless `plain_heap`: glibc's heap keeps much of what a step gave back.
    """
    from emscope.models.loading.quiet import quiet

    quiet()
    print(f"{'':36} {'predicted':>10} {'measured':>10} {'ratio':>6} {'beside weights':>15} {'seconds':>8}", flush=True)
    worst = 0.0
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            folder = _model(name, Path(root))
            for job in jobs:
                command = [sys.executable, __file__, "--measure", job, name, str(folder)]
                heap = (
                    {}
                    if plain_heap or job in ("reading", "reading with lora", "sampling")
                    else {"MALLOC_MMAP_THRESHOLD_": "131072"}
                )
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | heap)
                found = json.loads(done.stdout.splitlines()[-1])
                ours, real, weights = found["predicted"], found["measured"], found["parts"]["weights"]
                worst = max(worst, abs(ours / real - 1))
                beside = (ours - weights) / (real - weights)
                print(
                    f"{name + ', ' + job:36} {ours / 1e6:7.0f} MB {real / 1e6:7.0f} MB {ours / real:6.2f} {beside:15.2f} {found['seconds']:8.1f}",
                    flush=True,
                )
    print(f"largest error {worst:.1%}")


def table() -> str:
    """Return the table of docs/hardware.md: what larger models need, predicted."""
    import transformers as t

    from emscope.study.doctor import EXAMPLES, LEARNED, TOKENS, _default_lora

    kinds = {"qwen2": t.Qwen2Config, "llama": t.LlamaConfig}
    works: dict[str, Callable[..., Need]] = {
        "reading": needs.reading,
        "sampling": needs.sampling,
        "LoRA": lambda c, **on: needs.training(c, Training(EXAMPLES, TOKENS, LEARNED, _default_lora), **on),
        "LoRA, checkpointing": lambda c, **on: needs.training(
            c, Training(EXAMPLES, TOKENS, LEARNED, _default_lora, checkpointing=True), **on
        ),
    }
    rows = [f"| model | weights | device, dtype | {' | '.join(works)} |", f"|---|---|---|{'---|' * len(works)}"]
    for name, (kind, shape) in LARGE.items():
        config = kinds[kind](**shape)
        weights = memory.counted(config)
        for device, dtype in (("cpu", "float32"), ("cuda", "bfloat16"), ("cuda", "nf4")):
            cells = [f"{work(config, dtype=dtype, device=device, weights=weights).total / 1e9:.1f}" for work in works.values()]
            start = f"{name} ({weights.parameters / 1e9:.2f} B)" if dtype == "float32" else ""
            rows.append(
                f"| {start} | {weights.bytes_in(dtype, on_cpu=device == 'cpu') / 1e9:.1f} | {device}, {dtype} | {' | '.join(cells)} |"
            )
    return "\n".join(rows)


def _model(name: str, root: Path) -> Path:
    """Return the folder of a model, made at random where it is no alias."""
    from emscope.models.loading.source import locate

    return _random(SHAPES[name], root / name.replace(" ", "-")) if name in SHAPES else locate(name).folder


def _random(shape: dict[str, Any], folder: Path) -> Path:
    import torch
    import transformers as t

    torch.manual_seed(0)
    t.AutoModelForCausalLM.from_config(t.Qwen2Config(**shape, max_position_embeddings=2048)).save_pretrained(folder)
    return folder


def measured(job: str, name: str, folder: str) -> dict[str, Any]:
    """Return the bytes that a job takes in this process and what is predicted for it."""
    from emscope.models.loading.quiet import quiet
    from emscope.models.loading.source import locate

    quiet()
    warnings.simplefilter("ignore")
    chat = _chat(locate("smollm2-135m").folder)
    with tempfile.TemporaryDirectory() as root:
        tiny = _random(TINY, Path(root) / "tiny")
        run, want = _job(job, Sizes(2, 4, 2, 20), tiny, chat, Path(root) / "warm")
        want()
        run()
        run, want = _job(job, WORK[name], Path(folder), chat, Path(root) / "job")
        predicted = want()
        del want
        gc.collect()
        before = _start()
        began = time.monotonic()
        run()
        taken = _highest() - before
    return {
        "predicted": predicted.total,
        "parts": dict(predicted.parts),
        "measured": taken,
        "seconds": time.monotonic() - began,
    }


def _chat(folder: Path) -> Any:
    from emscope.models.loading.carried import tokenizer_in
    from emscope.models.loading.chat import ChatFormat

    return ChatFormat.of(tokenizer_in(folder), "none")


def _job(job: str, sizes: Sizes, folder: Path, chat: Any, out: Path) -> tuple[Callable[[], Any], Callable[[], Need]]:
    """Return what does a job and what predicts it."""
    import torch

    from emscope.models.loading.load import Loaded, load_net
    from emscope.models.loading.source import Model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = memory.read_config(folder)

    def load() -> Loaded:
        net = load_net(folder).to(device).eval().requires_grad_(False)
        return Loaded(net, chat.tokenizer, chat, Model(folder.name, folder, ""))

    if job.startswith("reading"):
        adapter = _adapter(config, out) if job != "reading" else None
        return _reading(sizes, load, config, device, adapter)
    if job == "sampling":
        return _sampling(sizes, load, config, device, chat)
    return _training(job, sizes, load, config, device, chat, out)


def _reading(sizes: Sizes, load: Any, config: Any, device: str, adapter: Any) -> Any:
    from emscope.elicit.preference import Encoded, score
    from emscope.models.adapters.with_checkpoint import with_checkpoint

    def ids(n: int, count: int) -> tuple[int, ...]:
        return tuple((97 * n + 31 * k) % 30_000 + 3 for k in range(count))

    items = [
        Encoded(str(n), ids(n, PROMPT), (ids(n + 1000, OPTION), ids(n + 2000, OPTION)), (0, 1)) for n in range(sizes.items)
    ]

    def run() -> None:
        net = load().net
        with with_checkpoint(net, adapter) as one:
            score(one, items)

    work = Reading(sum(e.cost for e in items), 2 * len(items), PROMPT + OPTION - 1, len(items) * (2 * OPTION - 1))
    return run, lambda: needs.reading(config, work, device=device, checkpoint=adapter)


def _adapter(config: Any, out: Path) -> Any:
    """Write a LoRA adapter for a model of this configuration, as training leaves it, and return it."""
    import torch
    from peft import LoraConfig, get_peft_model

    from emscope.models.loading.checkpoints import read_checkpoint
    from emscope.models.sizing.simulated import text_model

    with torch.device("meta"):
        net = get_peft_model(text_model(config), LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    made = {k.replace(".default", ""): torch.randn(p.shape) * 0.01 for k, p in net.named_parameters() if "lora_" in k}
    out.mkdir(parents=True)
    from safetensors.torch import save_file

    save_file(made, out / "adapter_model.safetensors")
    net.peft_config["default"].save_pretrained(out)
    return read_checkpoint(out, 1)


def _sampling(sizes: Sizes, load: Any, config: Any, device: str, chat: Any) -> Any:
    from emscope.elicit.sampling import Job, sample_batches

    prompts = {str(n): tuple((97 * n + 31 * k) % 30_000 + 3 for k in range(PROMPT)) for n in range(max(2, sizes.rows // 10))}
    wanted = [(p, s) for p in prompts for s in range(sizes.rows // len(prompts))]

    def run() -> None:
        net = load().net
        net.generation_config.eos_token_id = None
        list(sample_batches(net, chat, Job(prompts, max_tokens=WRITTEN, seed=0, rows=len(wanted)), wanted))

    work = Sampling(len(wanted), WRITTEN, len(prompts), PROMPT, shrinks=False)
    return run, lambda: needs.sampling(config, work, device=device)


def _training(job: str, sizes: Sizes, load: Any, config: Any, device: str, chat: Any, out: Path) -> Any:
    from emscope.core.records import Conversation, Message
    from emscope.models.loading.load import Loaded
    from emscope.models.loading.source import Model
    from emscope.train.batches import encode
    from emscope.train.finetune import finetune
    from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, TrainSpec
    from emscope.train.tunables import tuned

    depth = config.get_text_config().num_hidden_layers
    upper = tuple(range(depth // 2, depth))
    kind: dict[str, Any] = {
        "upper half": {"lora": LoraSpec(layers=upper)},
        "full": {"full": FullSpec()},
    }.get(job, {"lora": LoraSpec(rank=RANK)})
    checkpointing = job == "lora, checkpointing"
    spec = TrainSpec(
        steps=2,
        batch=sizes.micro,
        warmup=0,
        checkpoints=PlanSpec(at=(2,)),
        gradient_checkpointing=checkpointing,
        **kind,
    )
    talks = [
        Conversation(
            f"c{n}",
            (Message("user", "Say it."), Message("assistant", " ".join(f"word{(n + 7 * k) % 50}" for k in range(sizes.words)))),
        )
        for n in range(sizes.micro)
    ]
    examples = encode(chat, talks, 1 << 20)

    def run() -> None:
        finetune(load(), talks, spec, out, seed=0)

    longest = max(len(e.ids) for e in examples)
    work = Training(
        len(examples),
        longest,
        sum(sum(e.mask) for e in examples) // len(examples),
        lambda net: tuned(Loaded(net, None, None, Model("", Path(), "")), spec.tunable, 0),  # type: ignore[arg-type]
        checkpointing=checkpointing,
        kept=sum(len(e.ids) for e in examples) if job == "upper half" else 0,
        layers=upper if job == "upper half" else None,
    )
    return run, lambda: needs.training(config, work, device=device)


def _start() -> int:
    """Return the resident bytes now; the highest mark begins here."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux: the highest mark is the process's, which libraries alone do not reach
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    return _status("VmRSS")


def _highest() -> int:
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return (
        _status("VmHWM")
        if Path("/proc/self/status").is_file()
        else int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
    )


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


if __name__ == "__main__":
    main()
