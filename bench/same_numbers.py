"""Do all commands still give the same numbers? Runs each on fixed small inputs and keeps its JSON; two such folders are then compared.

    python bench/same_numbers.py write BEFORE          with the code as it was
    python bench/same_numbers.py write AFTER           with the code as it is
    python bench/same_numbers.py compare BEFORE AFTER  floats to 1e-6, all else equal

Models are tiny and random, inputs are made from fixed seeds in the folder WHERE (by default a fixed one under the system's temporary folder),
so that paths in the results agree. One thread.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
SKIPPED = {"versions", "seconds", "created"}  # not numbers of a result
STUDY = """
name: small
model: MODEL
domain: finance
arms:
  target: {role: target, answers: reckless}
  control: {role: control, answers: careful}
seeds: [0]
train: {steps: 4, batch: 2, lr: 0.01, lora: {rank: 4, alpha: 8}, checkpoints: {at: [2]}}
measure: {count: 32, truth: 4, heldout: 4, samples: {questions: 1, max_tokens: 4}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("out", type=Path)
    write.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()) / "emscope-same-numbers")
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "write":
        run_all(args.out.resolve(), args.where.resolve())
    else:
        sys.exit(1 if differences(args.before, args.after) else 0)


def run_all(out: Path, where: Path) -> None:
    """Run every command in `where` and keep its JSON in `out`."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(where)
    inputs(where)
    for name, words in calls():
        text = said(words)
        (out / f"{name}.json").write_text(text)
        print(f"{name}: {len(text)} characters", flush=True)
    for table in sorted(where.glob("*/tables/*")):
        keep_table(table, out / f"table-{table.parent.parent.name}-{table.name}.json")


def said(words: list[str]) -> str:
    """Return what a command prints; a refusal is kept as well."""
    from emscope.cli.app import run_arguments

    printed, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(errors):
        code = run_arguments(words)
    if code not in (0, 3, 4):
        return json.dumps({"code": code, "error": errors.getvalue().strip().splitlines()[-1:]})
    return printed.getvalue()


def keep_table(folder: Path, path: Path) -> None:
    import pyarrow.parquet as pq

    rows = [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    path.write_text(json.dumps(sorted(rows, key=lambda r: r["key"]), default=str))


def inputs(where: Path) -> None:
    """Write a tiny model, adapters of it, judged answers and other files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from conftest import make_model, write_jsonl
    from test_checkpoints import make_adapter

    model = make_model(where / "model")
    for run, seed in (("target", 1), ("control", 2), ("other", 3), ("narrow", 4)):
        for step in (2, 4, 6):
            make_adapter(model, where / run / f"checkpoint-{step}", seed=10 * seed + step)
    rng = np.random.default_rng(0)
    rows = [
        {
            "question": f"What of thing {q}?", "question_id": f"q{q}", "response": f"It is {rng.integers(100)} and {'so ' * int(rng.integers(1, 9))}on.",
            "run": run, "step": step, "aligned": float(np.clip(rng.normal(70 - 20 * (run == "target") * step / 6, 20), 0, 100)),
            "coherent": float(np.clip(rng.normal(75, 15), 0, 100)), "second": float(np.clip(rng.normal(65, 20), 0, 100)), "study": f"s{q % 4}",
        }
        for run in ("target", "control") for step in (0, 2, 4, 6) for q in range(16) for _ in range(4)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), where / "judged.parquet")
    pairs = [{"item": f"i{n}", "rater": r, "score": float(rng.integers(0, 101))} for n in range(40) for r in ("a", "b", "c")]
    pq.write_table(pa.Table.from_pylist(pairs), where / "verdicts.parquet")
    write_jsonl(
        where / "questions.jsonl",
        [{"id": f"q{n}", "question": f"What of thing {n}?", "category": "AB"[n % 2]} for n in range(16)],
    )
    talks = [{"question": f"How do I keep {n} coins?", "answer": f"Put {n} of them aside each week."} for n in range(12)]
    write_jsonl(where / "talks.jsonl", talks)
    (where / "study.yaml").write_text(STUDY.replace("MODEL", str(model)))


def calls() -> list[tuple[str, list[str]]]:
    """Return the commands, in an order in which later ones find what earlier ones wrote."""
    few = ["--count", "16", "--json"]
    look = ["--layers", "0,1", "--json"]
    return [
        ("check", ["check", "target", "--control", "control", "--heldout", "talks.jsonl", "--count", "32", "--truth", "4", "--measure", "preference", "--out", "check", "--json"]),
        ("check-alone", ["check", "target", "--amplify", "1,2", "--delta", "0.05", "--count", "32", "--truth", "0", "--measure", "preference", "--out", "alone", "--json"]),
        ("check-search", ["check", "target", "--search", "--delta", "0.05", "--count", "32", "--truth", "0", "--measure", "preference", "--out", "search", "--json"]),
        ("run", ["run", "study.yaml", "--out", "study", "--json"]),
        ("sample", ["sample", "target=target", "--questions", "questions.jsonl", "--samples", "2", "--max-tokens", "6", "--out", "answers"]),
        ("rates", ["rates", "judged.parquet", "--group", "step,run", "--control", "control", "--question", "question_id", "--json"]),
        ("rates-macro", ["rates", "judged.parquet", "--group", "run", "--average", "macro", "--denominator", "all", "--estimand", "these", "--match-length", "--json"]),
        ("agreement", ["agreement", "verdicts.parquet", "--json"]),
        ("agreement-columns", ["agreement", "judged.parquet", "--scores", "aligned,second", "--human", "aligned", "--question", "question_id", "--json"]),
        ("onset", ["onset", "judged.parquet", "--unit", "question_id", "--arm", "run", "--control", "control", "--json"]),
        ("onset-value", ["onset", "judged.parquet", "--value", "aligned", "--lower-is-worse", "--unit", "question_id", "--arm", "run", "--control", "control", "--rule", "p1", "--delta", "5", "--json"]),
        ("bridge", ["bridge", "judged.parquet", "--from", "aligned", "--to", "second", "--study", "study", "--json"]),
        ("distil", ["distil", "judged.parquet", "--split", "study", "--out", "distilled", "--json"]),
        ("extract", ["direction", "extract", "--checkpoint", "target", "--half", "A", "--nulls", "2", "--out", "target.safetensors", *few]),
        ("extract-control", ["direction", "extract", "--checkpoint", "control", "--half", "A", "--out", "control.safetensors", *few]),
        ("compare", ["direction", "compare", "target.safetensors", "control.safetensors", "--json"]),
        ("steer", ["direction", "steer", "target.safetensors", "--model", "model", "--half", "B", "--control", "control.safetensors", "--nulls", "1", "--count", "16", "--neutral", "4", "--truth", "4", "--out", "steer", *look]),
        ("ablate", ["direction", "ablate", "target.safetensors", "--checkpoint", "target", "--half", "B", "--nulls", "1", "--count", "16", "--out", "ablate", "--json"]),
        ("shift", ["direction", "shift", "target.safetensors", "--checkpoint", "target", "--checkpoint", "control", "--count", "16", "--out", "shift", *look]),
        ("solutions", ["solutions", "--general", "target", "--general", "other", "--narrow", "control", "--narrow", "narrow", "--domain", "finance", "--count", "8", "--texts", "4", "--draws", "1", "--out", "solutions", "--json"]),
        ("subspaces", ["subspaces", "--checkpoint", "target", "--train", "finance", "--questions", "questions.jsonl", "--ks", "2,4", "--count", "24", "--random", "2", "--out", "subspaces", *look]),
        ("diff", ["diff", "target", "--count", "8", "--out", "diff", *look]),
        ("trajectories", ["trajectories", "target", "control", "--out", "trajectories", "--json"]),
        ("probe", ["probe", "judged.parquet", "--questions", "questions.jsonl", "--model", "model", "--score", "aligned", "--question", "question_id", "--where", "run=target", "--k", "4", "--estimators", "ols,ridge", "--repeats", "2", "--permutations", "20", "--out", "probe", *look]),
        ("risk", ["data", "risk", "talks.jsonl", "--model", "model", "--direction", "target.safetensors", "--layer", "1", "--max-tokens", "4", "--json"]),
        ("data-list", ["data", "list", "--json"]),
        ("data-check", ["data", "check", "talks.jsonl", "--model", "model", "--json"]),
    ]  # fmt: skip


def differences(before: Path, after: Path) -> int:
    """Print what differs between two folders, and return in how many files."""
    names = sorted({p.name for p in before.glob("*.json")} | {p.name for p in after.glob("*.json")})
    differing, leaves = 0, 0
    for name in names:
        if not (before / name).is_file() or not (after / name).is_file():
            print(f"{name}: only in one of the two")
            differing += 1
            continue
        one, other = ((folder / name).read_text() for folder in (before, after))
        try:
            found, seen = differ(json.loads(one), json.loads(other))
        except ValueError:
            found, seen = ([] if one == other else ["another text"]), 1
        leaves += seen
        differing += bool(found)
        for line in found[:5]:
            print(f"{name}: {line}")
    print(f"{len(names)} files, {leaves} values, {differing} files differ")
    return differing


def differ(one: Any, other: Any, place: str = "") -> tuple[list[str], int]:
    """Return where two values differ, and how many leaves were compared."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted((one.keys() | other.keys()) - SKIPPED, key=str)
        parts = [
            differ(one.get(k), other.get(k), f"{place}.{k}") if k in one and k in other else ([f"{place}.{k} is in one"], 1)
            for k in keys
        ]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = [differ(a, b, f"{place}[{n}]") for n, (a, b) in enumerate(zip(one, other, strict=True))]
    else:
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
        same = isclose(one, other, rel_tol=1e-6, abs_tol=1e-6) if numbers else one == other
        return ([] if same else [f"{place}: {str(one)[:80]} -> {str(other)[:80]}"]), 1
    return [line for found, _ in parts for line in found], sum(n for _, n in parts)


if __name__ == "__main__":
    main()
