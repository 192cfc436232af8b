"""Sampling from several adapters: emscope against `generate`, side by side in one run.

The plain way is transformers + PEFT as most people write it: adapters attached and switched one by one, a question at a time,
`generate` with `num_return_sequences`. Printed are the ratio of tokens a second, whether answers are as long in both, and how far the
log-probabilities of what was drawn lie from a plain forward pass.

    python bench/sampling.py [--model smollm2-135m] [--questions 8] [--samples 50] [--tokens 32] [--adapters 2]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from baseline import close, held
from peft import PeftModel
from preference import make_adapters
from scipy import stats

from emscope.data import bundled
from emscope.elicit import sampling
from emscope.elicit.sampling import sample
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.matmul_rate import matmul_gflops, parameters_in_blocks
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import Loaded, load, load_net
from emscope.models.loading.quiet import quiet
from emscope.models.loading.source import locate


def plain_lengths(net: PeftModel, loaded: Loaded, questions: list[str], samples: int, most: int) -> list[int]:
    """Sample the plain way; return how many tokens each answer has, its end included."""
    ends = sampling._end_ids(loaded.net, loaded.chat)
    found = []
    for question in questions:
        ids = torch.tensor([loaded.chat.prompt_ids(question)])
        out = net.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            temperature=1.0,
            max_new_tokens=most,
            num_return_sequences=samples,
            eos_token_id=sorted(ends),
            pad_token_id=loaded.tokenizer.pad_token_id,
        )
        for row in out[:, ids.shape[1] :].tolist():
            found.append(next((n for n, t in enumerate(row) if t in ends), len(row) - 1) + 1)
    return found


def worst_gap(net: torch.nn.Module, loaded: Loaded, question: str, most: int) -> float:
    """Return the largest difference between an answer's log-probability as drawn and from a plain forward pass [nats per token]."""
    kept: list[list[int]] = []
    answer = sampling._answer
    sampling._answer = lambda chat, q, s, tokens, *more: kept.append(tokens) or answer(chat, q, s, tokens, *more)
    try:
        found = sample(net, loaded.chat, [question], samples=8, max_tokens=most, seed=1)
    finally:
        sampling._answer = answer
    gaps = []
    prompt = loaded.chat.prompt_ids(question)
    for a, tokens in zip(found, kept, strict=True):
        with torch.inference_mode():
            logits = net(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        plain = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None]).sum()
        gaps.append(abs(float(plain) - a.logprob) / len(tokens))
    return max(gaps)


def main() -> None:
    """Sample both ways with every adapter in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    for name, default in (("questions", 8), ("samples", 50), ("tokens", 32), ("adapters", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    quiet()
    items = bundled.items("em240")
    questions = [i.question for i in items[:: len(items) // args.questions]][: args.questions]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(locate(args.model).folder)
        make_adapters(folder, Path(root), args.adapters)
        loaded, checkpoints = load(locate(args.model), device="cpu"), discover(root)
        peft = PeftModel.from_pretrained(load_net(folder), str(checkpoints[0].folder), adapter_name="1")
        for c in checkpoints[1:]:
            peft.load_adapter(str(c.folder), adapter_name=str(c.step))
        peft.eval().requires_grad_(False)
        fast = slow = 0.0
        mine: list[int] = []
        theirs: list[int] = []
        gap, peak = 0.0, []
        for c in checkpoints:
            peak.append(matmul_gflops(1.0))
            start = time.perf_counter()
            with with_checkpoint(loaded.net, c) as net:
                answers = sample(net, loaded.chat, questions, samples=args.samples, max_tokens=args.tokens, seed=c.step)
                fast += time.perf_counter() - start
                gap = max(gap, worst_gap(net, loaded, questions[0], args.tokens))
            mine += [a.tokens for a in answers]
            peft.set_adapter(str(c.step))
            start = time.perf_counter()
            with torch.inference_mode():
                theirs += plain_lengths(peft, loaded, questions, args.samples, args.tokens)
            slow += time.perf_counter() - start
    prompts = len(checkpoints) * sum(len(loaded.chat.prompt_ids(q)) for q in questions)
    blocks, head = parameters_in_blocks(loaded.net), loaded.net.get_output_embeddings().weight.numel()
    work = 2.0 * (blocks * (sum(mine) + prompts) + head * sum(mine))
    print(f"{args.questions} questions x {args.samples} samples x {args.adapters} adapters, {args.tokens} new tokens at most")
    print(f"  tokens/s against generate, adapter by adapter: {sum(mine) / fast / (sum(theirs) / slow):.2f} times")
    held("sampling, against generate", sum(mine) / fast / (sum(theirs) / slow))
    print(f"  share of the float32 matmul peak: {work / fast / 1e9 / (sum(peak) / len(peak)):.0%}")
    print(
        f"  token counts: mean {sum(mine) / len(mine):.1f} and {sum(theirs) / len(theirs):.1f}, KS p = {stats.ks_2samp(mine, theirs).pvalue:.3f}"
    )
    print(f"  log-probability of what was drawn against a plain pass: at most {gap:.1e} nats a token apart")
    close()


if __name__ == "__main__":
    main()
