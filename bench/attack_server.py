"""Kills a judging at random moments while its server is at fault in all ways, lets it end, and looks for what was lost, doubled or leaked.

    python bench/attack_server.py OUT                      100 kills, in trials of ten
    python bench/attack_server.py OUT --trials 2 --kills 5 --seed 3

OUT/server.json holds the table: kills, requests by mode, answers without exactly one verdict, files and output with the key, redirects followed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

from attack import kills
from attack.faults import MODES, RIGHT, Seen, fault_server
from attack.runner import CONTROL
from emscope.answers import judging
from emscope.store.study import read_table

KEY = "canary-3f9a-key-7731"
AT_FAULT = 0.5  # of all requests, while the judging is killed
ANSWERS, PATIENCE, LONGEST = 200, 1, 12.0  # answers; the client's patience and the longest time before a kill, in seconds
INTERRUPTED = 130  # the exit code after SIGTERM
FLUSHED = 5  # verdicts that are written together, so that every kill finds some written and some not
MORE = ("emscope.cli.answers.judge", "openai", "httpx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.environ |= {"EMSCOPE_CACHE": str(out / "cache"), "EMSCOPE_API_KEY": KEY}
    kills.warm((*kills.MODULES, *MORE))
    judging.FLUSH_ROWS = FLUSHED
    random, begun = Random(args.seed), time.monotonic()
    with serving(out, args.seed) as url:
        trials = [trial(out / f"trial-{n}", url, args.kills, random) for n in range(args.trials)]
    seen = json.loads((out / "seen.json").read_text())
    found = Counter[str]()
    for one in trials:
        found.update(one)
    result = {
        "seed": args.seed,
        "trials": args.trials,
        **found,
        "modes": len(seen["requests"]),
        "requests": sum(seen["requests"].values()),
        "redirects followed": len(seen["elsewhere"]),
        "seconds": round(time.monotonic() - begun),
    }
    (out / "server.json").write_text(json.dumps(result | {"by mode": seen["requests"]}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(
        any(
            found[name]
            for name in (
                "answers without one verdict",
                "failures left",
                "refused",
                "with the key",
                "controls",
                "unexpected errors",
            )
        )
    )


@contextmanager
def serving(out: Path, seed: int) -> Iterator[str]:
    """Yield the address of a server in a process of its own: at fault until OUT/right is there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        serve(out, seed, write)
    try:
        yield os.read(read, 1000).decode()
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def serve(out: Path, seed: int, write: int) -> None:
    """Answer until the end is asked for, then write what was seen."""
    random, seen = Random(seed), Seen()

    def mixed(handler: object, request: dict[str, object]) -> None:
        at_fault = not (out / "right").exists() and random.random() < AT_FAULT
        name = random.choice([n for n in MODES if n not in (RIGHT, "mixed")]) if at_fault else RIGHT
        seen.requests[name] += 1
        MODES[name](handler, request)  # type: ignore[arg-type]

    def end(*_: object) -> None:
        del seen.requests["mixed"]
        (out / "seen.json").write_text(json.dumps({"requests": seen.requests, "elsewhere": seen.elsewhere}))
        os._exit(0)

    MODES["mixed"] = mixed
    signal.signal(signal.SIGTERM, end)
    with fault_server("mixed", seen) as (url, _):
        os.write(write, url.encode())
        while True:
            time.sleep(60)


def trial(folder: Path, url: str, count: int, random: Random) -> dict[str, int]:
    """Kill one judging a few times, let it end with a server that is right, and count what is wrong."""
    folder.mkdir()
    right, answers = folder.parent / "right", folder / "answers.jsonl"
    right.unlink(missing_ok=True)
    answers.write_text("".join(json.dumps({"question": f"q {n}", "response": f"answer {n}"}) + "\n" for n in range(ANSWERS)))
    words = ["judge", str(answers), "--judge", f"m@{url}", "--rubrics", "aligned", "--timeout", str(PATIENCE), "--retries", "1"]
    words += ["--out", str(folder / "out")]
    killed = sum(cut_short(words, folder / f"said-{n}.txt", random) for n in range(count))
    kept = len(read_table(folder / "out", "verdicts")) if (folder / "out" / "ledger.json").is_file() else 0
    right.touch()
    code = kills.forked(lambda: judged([*words, "--timeout", "60"], folder / "said-end.txt"))
    asked = Counter(row["response"] for row in read_table(folder / "out", "verdicts").to_pylist()) if code == 0 else Counter()
    said = "".join(path.read_text(errors="replace") for path in folder.glob("said-*.txt"))
    files = [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    return {
        "kills": killed,
        "refused": int(code != 0),
        "answers": ANSWERS,
        "with a verdict before the last call": kept,
        "answers without one verdict": ANSWERS - sum(n == 1 for n in asked.values()) + sum(n > 1 for n in asked.values()),
        "failures left": len(read_table(folder / "out", "failures")) if code == 0 else 0,
        "with the key": len(files),
        "controls": int(bool(CONTROL.search(said))),
        "unexpected errors": said.count("unexpected error") + said.count("Traceback (most"),
    }


def judged(words: list[str], said: Path) -> int:
    """Run the command in this process, its output in a file."""
    from emscope.cli.app import run_arguments

    sys.stdout = sys.stderr = said.open("w", encoding="utf-8")
    return run_arguments(words)


def cut_short(words: list[str], said: Path, random: Random) -> bool:
    """End the command at a random moment, by SIGKILL or SIGTERM; return False where it had ended by itself."""
    child = os.fork()
    if child == 0:
        code = 70
        with suppress(BaseException):
            code = judged(words, said)
            sys.stdout.flush()
        os._exit(code)
    time.sleep(random.uniform(0, LONGEST))
    with suppress(ProcessLookupError):
        os.kill(child, random.choice((signal.SIGKILL, signal.SIGTERM)))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (-signal.SIGKILL, INTERRUPTED)


if __name__ == "__main__":
    main()
