"""Reads models and adapters with hostile weights and settings, and compares every number that is given with a plain reading by Transformers and PEFT.

    python bench/attack_numbers.py OUT                     300 inputs, seed 0
    python bench/attack_numbers.py OUT --count 50 --seed 3

OUT/numbers.json holds the table: inputs that were refused, read with equal numbers, read with others, and read where the libraries refuse;
OUT/wrong.jsonl a line for each of the last two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from safetensors.torch import load_file

from attack import cases, files, kills, studies, weights  # noqa: F401
from attack.material import Material
from emscope.core.limits import bounded
from emscope.store.study import read_table

MAKERS = (
    "adapter_config",
    "adapter_weights",
    "full_checkpoint",
    "base_values",
    "base_index",
    "base_safetensors",
    "base_config",
)
PATIENCE = 20  # seconds of processor time for PEFT
CLOSE = 1e-4  # nats a token, and a share of it
PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # the tiny model's template without its default system block

Place = tuple[int, str, int]  # step, item, option


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    (out / "material").mkdir(parents=True)
    os.environ["EMSCOPE_CACHE"] = str(out / "cache")
    material = Material(out / "material")
    if kills.forked(lambda: int(not all((material.run, material.base, material.items, material.questions)))):
        sys.exit("the material cannot be made")
    kills.warm(kills.MODULES)
    found: dict[str, Counter[str]] = {name: Counter() for name in MAKERS}
    with (out / "wrong.jsonl").open("w") as log:
        for n in range(args.count):
            name = MAKERS[n % len(MAKERS)]
            what, about = one(name, n // len(MAKERS), args.seed, out / "case", material)
            found[name][what.split(":")[0]] += 1
            if not what.startswith(("refused", "equal")):
                log.write(json.dumps({"maker": name, "number": n // len(MAKERS), "about": about, "what": what}) + "\n")
                log.flush()
    total = sum(found.values(), Counter())
    result = {"seed": args.seed, "inputs": args.count, **total, "kinds": found}
    (out / "numbers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def one(name: str, number: int, seed: int, folder: Path, material: Material) -> tuple[str, str]:
    """Return what came of reading one hostile input, and what it is."""
    shutil.rmtree(folder, ignore_errors=True)
    case = cases.made("weights", name, number, seed, folder, material)
    run, base = (
        there if (there := folder / part).exists() else usual
        for part, usual in (("run", material.run), ("base", material.base))
    )
    out, said, plain = folder / "read", folder / "said.txt", folder / "plain.json"
    words = material.check_words(out, run)
    words[words.index("--base") + 1] = str(base)
    if kills.run(kills.Job("check", tuple(words)), out, said):
        return "refused", case.about
    given = {
        (r["step"], r["item"], r["option"]): r["logprob"]
        for r in read_table(out, "preferences").to_pylist()
        if r["set"] == "em"
    }
    steps = {step for step, *_ in given}  # a checkpoint that cannot be read is left out, and said to be
    if kills.forked(lambda: plain.write_text(json.dumps(list(read_plainly(base, run, steps, material.items)))) * 0):
        return "read where the libraries refuse", case.about
    expected = {(step, item, option): value for step, item, option, value in json.loads(plain.read_text())}
    given = {
        (r["step"], r["item"], r["option"]): r["logprob"]
        for r in read_table(out, "preferences").to_pylist()
        if r["set"] == "em"
    }
    apart = [place for place in given if place not in expected or not near(given[place], expected[place])]
    if apart or not given:
        place = apart[0] if apart else None
        return f"other numbers: {place} {given.get(place)} {expected.get(place)}", case.about
    return "equal", case.about


def near(a: float, b: float) -> bool:
    """Tell whether two log-probabilities are the same."""
    return abs(a - b) <= CLOSE * max(abs(a), abs(b), 10)


def read_plainly(base: Path, run: Path, steps: set[int], items: Path) -> Iterator[tuple[int, str, int, float]]:
    """Yield (step, item, option, log-probability of the answer) of the base and of the checkpoints at some steps, by a forward pass each."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    warnings.simplefilter("ignore")
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)

    def load(folder: Path) -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True)

    rows = [json.loads(line) for line in items.read_text().splitlines()]
    places = sorted(run.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for place in (None, *places):
        step = int(place.name.rpartition("-")[2]) if place else 0
        if step not in steps:
            continue
        net = load(place if place and not (place / "adapter_config.json").exists() else base)
        if place and (place / "adapter_config.json").exists():
            try:
                with bounded(PATIENCE):
                    net = PeftModel.from_pretrained(net, place)
            except Exception:  # of settings that a plain LoRA has no use for, or a pattern that takes for ever
                add_by_hand(net, place)
        for row in rows:
            prompt = tokenizer(PROMPT.format(row["question"]), add_special_tokens=False)["input_ids"]
            for option, answer in enumerate((row["aligned"], row["misaligned"])):
                ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    logp = net.eval()(input_ids=torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
                at = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
                yield step, row["id"], option, float(sum(logp[n, i] for n, i in zip(at, ids, strict=True)))


def add_by_hand(net: torch.nn.Module, place: Path) -> None:
    """Add a plain LoRA to the weights of its base: alpha / r B A, over the root of r where its settings say so."""
    settings = json.loads((place / "adapter_config.json").read_text())
    if settings["alpha_pattern"] or settings["rank_pattern"]:
        raise ValueError("its modules have scales of their own")
    scale = settings["lora_alpha"] / (settings["r"] ** 0.5 if settings["use_rslora"] is True else settings["r"])
    tensors = load_file(place / "adapter_model.safetensors")
    for name in (n for n in tensors if n.endswith(".lora_A.weight")):
        weight = net.get_parameter(name.removeprefix("base_model.model.").replace(".lora_A.", "."))
        weight.data += scale * tensors[name.replace(".lora_A.", ".lora_B.")] @ tensors[name]


if __name__ == "__main__":
    main()
