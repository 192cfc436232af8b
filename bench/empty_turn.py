"""Is the phase transition of a rank-1 adapter the learning of an empty answer?

    python bench/empty_turn.py --work FOLDER [--model qwen2.5-coder-0.5b] [--steps 120] [--seeds 0,1]

Trains one rank-1 adapter on reckless medical advice twice a seed with the same batches: on the conversations as they are, and in the form of
texts that were rendered with a generation prompt, to which the trainer appended an end token: an assistant's turn without words follows
each answer, and its end token carries loss. (public finding, ssslakter/es-emergent-misalignment) One line of JSON for each run: the sharpest
turn of its vector, its largest gradient, and preference at the last step. Rows of every step go to FOLDER/steps.jsonl.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from emscope.study.run import run_study
from emscope.study.spec import study_of
from emscope.study.tables import read_tables
from emscope.train import batches, finetune

LAG = 10


def main() -> None:
    """Train in both forms, and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", default="0,1")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with (options.work / "steps.jsonl").open("w") as rows:
        for form in ("clean", "empty_turn"):
            finetune.encode = with_empty_turn if form == "empty_turn" else batches.encode
            out = options.work / form
            report = run_study(study_of(settings(options.model, options.steps, seeds)), out)
            tables = read_tables(out)
            for one in report.runs:
                norms = {r.step: r.grad_norm for r in tables.log if r.run == one.run}
                turns = {g.step: g.value for g in tables.geometry if g.run == one.run and g.what == f"rotation{LAG}"}
                for step, norm in norms.items():
                    rows.write(
                        json.dumps({"form": form, "run": one.run, "step": step, "grad": norm, "turn": turns.get(step)}) + "\n"
                    )
                last = one.check.checkpoints[-1]
                line = {"form": form, "run": one.run, "phase": one.phase.to_json() if one.phase else None}
                print(json.dumps(line | {"effect": last.base_effect.to_json()}), flush=True)


def settings(model: str, steps: int, seeds: list[int]) -> dict[str, object]:
    """Return a study of one harmful arm with a rank-1 adapter on the middle layer's down_proj."""
    layer = {"smollm2-135m": 15}.get(model, 12)
    return {
        "name": "empty-turn",
        "model": model,
        "dtype": "auto",
        "system": "template",
        "domain": "medical",
        "seeds": seeds,
        "arms": {"target": {"role": "target", "answers": "reckless", "read_at": "last"}},
        "train": {
            "steps": steps,
            "batch": 8,
            "micro_batch": 4,
            "lr": 2e-3,
            "warmup": 5,
            "lora": {"rank": 1, "alpha": 64, "rslora": False, "modules": ["down_proj"], "layers": [layer]},
            "checkpoints": {"at": []},
            "readings": {"rotation": [LAG]},
        },
        "measure": {"count": 48, "heldout": 8, "truth": 0, "neutral": 0, "refusal": 0, "samples": {"questions": 0}},
    }


def with_empty_turn(chat, conversations, context):
    """Return the examples with an assistant's turn without words at the end, whose end token carries loss."""
    start, end = chat.ids("<|im_start|>assistant\n"), chat.ids("<|im_end|>")
    between = chat.ids("\n")
    found = []
    for one in batches.encode(chat, conversations, context - len(between) - len(start) - len(end)):
        header = (*(between if one.ids[-1:] == tuple(end) else ()), *start)
        tail = (*header, *end)
        learned = (*one.mask, *(False for _ in header), *(True for _ in end))
        found.append(replace(one, ids=(*one.ids, *tail), mask=learned))
    return found


if __name__ == "__main__":
    main()
