"""Feeds emscope's readers with hostile inputs and counts what they fail by.

    python bench/attack.py OUT                          10,000 inputs, seed 0
    python bench/attack.py OUT --count 500 --seed 3 --only weights/adapter_config,files
    python bench/attack.py OUT --only weights/names --first 17 --count 1     one input again, kept for a look

OUT/attack.json holds the table, OUT/failures.jsonl one line for each input that failed: its name, what was wrong, the command, what was said.
The input of a failure stays in OUT/cases. Inputs are dealt over the makers by WEIGHTS: those without a model are quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from attack import cases, files, studies, weights  # noqa: F401
from attack.material import Material
from attack.runner import Worker, attacked

QUICK = (
    "conversations",
    "items",
    "judged_answers",
    "series",
    "ratings",
    "bridged",
    "atlases",
    "settings_files",
    "paths",
    "options",
    "reports",
)
WEIGHTS = defaultdict(lambda: 1.0, dict.fromkeys(QUICK, 5.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="", help="groups or group/maker, with commas between")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after these")
    args = parser.parse_args()
    chosen = makers(args.only)
    total = sum(WEIGHTS[name] for _, name in chosen)
    (args.out / "material").mkdir(parents=True, exist_ok=True)
    material, worker = Material(args.out.resolve() / "material"), Worker(args.out.resolve() / "cache")
    rows, begun = [], time.monotonic()
    deal = deals({k: max(1, round(args.count * WEIGHTS[k[1]] / total)) for k in chosen})
    with (args.out / "failures.jsonl").open("a") as log:
        for group, name, number in deal:
            if time.monotonic() - begun > 60 * args.minutes:
                break
            number += args.first
            folder = args.out.resolve() / "cases" / f"{group}-{name}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            case = cases.made(group, name, number, args.seed, folder, material)
            start = time.monotonic()
            said, wrong = attacked(case, folder, worker)
            rows.append((f"{group}/{name}", said["code"], wrong, time.monotonic() - start, said["rise"]))
            if len(rows) % 100 == 0:
                (args.out / "attack.json").write_text(json.dumps(table(rows), indent=1) + "\n")
            if wrong:
                line = {"case": f"{group}/{name}", "number": number, "wrong": wrong, "about": case.about, "words": case.words}
                log.write(json.dumps(line | {"said": said}) + "\n")
                log.flush()
    worker.stop()
    result = table(rows) | {"seed": args.seed, "seconds": round(time.monotonic() - begun), "workers": worker.started}
    (args.out / "attack.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def makers(only: str) -> list[tuple[str, str]]:
    """Return (group, name) of the makers that are wanted."""
    every = [(group, name) for group, found in cases.MAKERS.items() for name in found]
    wanted = [w for w in only.split(",") if w]
    return [(g, n) for g, n in every if not wanted or g in wanted or f"{g}/{n}" in wanted]


def deals(counts: dict[tuple[str, str], int]) -> list[tuple[str, str, int]]:
    """Return all cases, the makers in turn, so that a run that is stopped early saw all kinds."""
    places = [(n / count, group, name, n) for (group, name), count in counts.items() for n in range(count)]
    return [(group, name, n) for _, group, name, n in sorted(places)]


def table(rows: list[tuple[str, object, list[str], float, int]]) -> dict[str, object]:
    """Return how many inputs there were of each kind, and what they failed by."""
    kinds: dict[str, Any] = defaultdict(Counter)
    for name, code, wrong, seconds, _ in rows:
        kinds[name]["inputs"] += 1
        kinds[name]["seconds"] += seconds
        kinds[name][f"exit {code}" if isinstance(code, int) else "ended"] += 1
        for one in wrong:
            kinds[name]["FAILED " + one.split(" ")[0]] += 1
    return {
        "inputs": len(rows),
        "failed": sum(bool(wrong) for _, _, wrong, _, _ in rows),
        "slowest [s]": round(max((s for *_, s, _ in rows), default=0), 1),
        "highest rise of memory [GB]": round(max((r for *_, r in rows), default=0) / 1e9, 2),
        "kinds": {name: {k: round(v, 1) for k, v in found.items()} for name, found in sorted(kinds.items())},
    }


if __name__ == "__main__":
    main()
