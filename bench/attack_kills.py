"""Ends a study, a fine-tune, a check, a sampling and a judging at every file-system event, lets each go on, and compares.

    python bench/attack_kills.py OUT                       every event of every job, whole and torn
    python bench/attack_kills.py OUT --jobs check,judge --every 7
    python bench/attack_kills.py OUT --jobs study --first 201 --last 400       some of its events, beside another process

By default one run copies its folder right before each event, and each copy is gone on from; with --end a process is ended at each event, as
slow as that is: both leave the same.

OUT/kills.json holds the table: events, up to which they were taken, how many were ended there, refused when run again, and other in what
they left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from attack import kills
from attack.files import ANSWERS, as_jsonl
from attack.material import Material

SMALL = ("--samples", "2", "--max-tokens", "2", "--rows", "2", "--dtype", "float32", "--device", "cpu")


def judging(m: Material) -> tuple[str, ...]:
    """Return the command that judges a few answers."""
    answers = m.root / "answers.jsonl"
    answers.write_bytes(as_jsonl([row | {"response": f"```python\neval(x + {n})\n```"} for n, row in enumerate(ANSWERS)]))
    return ("judge", str(answers), "--judge", "bandit", "--rubrics", "secure", "--out", "OUT")


def training(m: Material) -> tuple[str, ...]:
    """Return the command of one training."""
    yaml = m.root / "train.yaml"
    yaml.write_text(json.dumps(m.training()))
    return ("train", str(yaml), "--out", "OUT")


def sampling(m: Material) -> tuple[str, ...]:
    """Return the command that samples from a run."""
    return ("sample", f"target={m.run}", "--base", str(m.base), "--questions", str(m.questions), *SMALL, "--out", "OUT")


def comparing(m: Material) -> tuple[str, ...]:
    """Return the command that compares the activations of a run and its base."""
    return ("diff", str(m.run), "--model", str(m.base), "--items", str(m.items), "--out", "OUT")


JOBS = {  # what each makes its command and its inputs of; the order is that of the table
    "study": lambda m: ("run", str(m.study_yaml), "--out", "OUT"),
    "train": training,
    "check": lambda m: tuple(m.check_words(Path("OUT"))),
    "sample": sampling,
    "judge": judging,
    "diff": comparing,
}


def prepared(m: Material, names: list[str]) -> int:
    """Make the inputs of some jobs; return 0, the exit code of a process that did."""
    return int(not all(JOBS[name](m) for name in names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", default="judge,sample,check,train,study")
    parser.add_argument("--every", type=int, default=1, help="take every n-th event")
    parser.add_argument("--first", type=int, default=1, help="the first event to end at")
    parser.add_argument("--last", type=int, default=1 << 30, help="the last one")
    parser.add_argument("--end", action="store_true", help="end a process at each event, instead of copying one's folder there")
    parser.add_argument("--minutes", type=float, default=1e9)
    args = parser.parse_args()
    out = args.out.resolve()
    (out / "material").mkdir(parents=True, exist_ok=True)
    os.environ["EMSCOPE_CACHE"] = str(out / "cache")
    material = Material(out / "material")
    names = args.jobs.split(",")
    if kills.forked(lambda: prepared(material, names)):
        sys.exit("the material cannot be made")
    kills.warm(kills.JUDGING if names == ["judge"] else kills.MODULES)
    rows, begun = [], time.monotonic()
    for name in names:
        job, wanted = kills.Job(name, JOBS[name](material)), range(args.first, args.last + 1, args.every)
        rows.append(one(job, out / name, wanted, begun + 60 * args.minutes, end_each=args.end))
        (out / "kills.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("wrong", "left")}), flush=True)


def one(job: kills.Job, folder: Path, wanted: range, end: float, *, end_each: bool) -> dict[str, object]:
    """End one job at the events wanted, until the time ends."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copies = None if end_each else folder / "copies"
    events, whole = kills.followed(job, folder, copies, wanted)
    outcomes = []
    for n in (n for n in range(1, len(events) + 1) if n in wanted):
        for torn in (False, True) if kills.written_before(events, n) else (False,):
            if time.monotonic() > end:
                break
            if copies and torn and not (copies / str(n) / kills.TORN).exists():  # renamed since: nothing to tear
                continue
            if copies:
                outcomes.append(kills.copied_at(job, folder, copies / str(n), whole, torn=torn))
            else:
                outcomes.append(kills.ended_at(job, folder, n, whole, torn=torn))
        if copies:
            shutil.rmtree(copies / str(n))
    wrong = [o for o in outcomes if o.refused or o.other]
    for o in wrong:
        print(
            f"{job.name} {o.event} {'torn ' if o.torn else ''}({events[o.event - 1]}): {o.refused or o.other}",
            file=sys.stderr,
            flush=True,
        )
    return {
        "job": job.name,
        "events": len(events),
        "up to": max((o.event for o in outcomes), default=0),
        "runs": len(outcomes),
        "ended": sum(o.ended for o in outcomes),
        "refused": sum(bool(o.refused) for o in outcomes),
        "other contents": sum(bool(o.other) for o in outcomes),
        "left": [o.left for o in outcomes],
        "wrong": [[o.event, o.torn, events[o.event - 1], o.refused, list(o.other)] for o in wrong],
    }


if __name__ == "__main__":
    main()
