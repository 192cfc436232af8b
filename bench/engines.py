"""Engines under kill -9, and what a second node of a Ray cluster is worth.

    python bench/engines.py kills --trials 60 --seed 7 --of driver,worker,node
    python bench/engines.py nodes --pairs 3 --seeds 20

`kills` runs a small grid of tiny models again and again, kills the program, one of its workers, or a node of a two-node Ray cluster at a
random moment, lets what is left go on (and starts the program again where it was the program that died), and compares all tables
with those of an unbroken run by one process: nothing may be lost, nothing doubled. `nodes` times a grid on one and on two Ray nodes of one
thread, in interleaved pairs. One line of JSON a trial.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
QUIET = {"log_to_driver": False, "logging_level": "error"}
WORKER = "emscope.study.engines.local"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kills = commands.add_parser("kills")
    kills.add_argument("--trials", type=int, default=60)
    kills.add_argument("--seed", type=int, default=7)
    kills.add_argument("--of", default="driver,worker,node")
    nodes = commands.add_parser("nodes")
    nodes.add_argument("--pairs", type=int, default=3)
    nodes.add_argument("--seeds", type=int, default=20, help="each makes two fine-tunes")
    nodes.add_argument("--steps", type=int, default=40)
    ray_run = commands.add_parser("ray-run")
    ray_run.add_argument("study", type=Path)
    ray_run.add_argument("out", type=Path)
    ray_run.add_argument("address")
    args = parser.parse_args()
    if args.command == "kills":
        sys.exit(run_kills(args.trials, args.seed, args.of.split(",")))
    elif args.command == "nodes":
        run_nodes(args.pairs, args.seeds, args.steps)
    else:
        on_ray(args.study, args.out, args.address)


def grid(root: Path, seeds: int, steps: int) -> Path:
    """Write a study of two arms and so many seeds on a tiny random model."""
    from conftest import FEW, make_model

    arms = {"target": ("target", "reckless"), "control": ("control", "careful")}
    study = {
        "name": "grid",
        "model": str(make_model(root / "tiny")),
        "domain": "finance",
        "seeds": list(range(seeds)),
        "arms": {name: {"role": role, "answers": answers, **FEW} for name, (role, answers) in arms.items()},
        "train": {"steps": steps, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {"at": [1]}},
        "measure": {"count": 32, "heldout": 4, "truth": 2, "neutral": 2, "samples": {"questions": 1, "max_tokens": 4}},
        "threads": 1,
    }
    path = root / "grid.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def program(path: Path, out: Path, *more: str) -> subprocess.Popen:
    """Start emscope on a study."""
    words = [sys.executable, "-m", "emscope", "run", str(path), "--out", str(out), *more]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen) -> None:
    """Wait for a program that must end well."""
    _, said = process.communicate(timeout=3600)
    assert process.returncode == 0, said[-2000:]


def differences(one: Path, other: Path) -> list[str]:
    """Return the tables that differ, and those in which a row is there twice."""
    import pyarrow.parquet as pq

    from emscope.store.rows import parts_of, read_table
    from emscope.store.schemas import TABLES

    found = []
    for table in TABLES:
        a, b = (
            [{k: v for k, v in r.items() if k != "seconds"} for r in read_table(f, table).to_pylist()] for f in (one, other)
        )
        if a != b:
            found.append(f"{table} differs ({len(a)} and {len(b)} rows)")
        if sum(pq.read_metadata(p).num_rows for p in parts_of(other, table)) != len(b):
            found.append(f"{table} has rows twice")
    return found


def run_kills(trials: int, seed: int, targets: list[str]) -> int:
    """Kill something in each trial; return how many trials ended otherwise than an unbroken run."""
    draw, bad = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = grid(root, 2, 4)
        done(program(path, root / "whole"))
        length = {}
        for kill in dict.fromkeys(map(kill_of, targets)):
            began = time.monotonic()
            kill(path, root / kill.__name__, targets[0], 3600.0, draw)
            length[kill] = time.monotonic() - began
        for n in range(trials):
            target = targets[n % len(targets)]
            out, at, kill = root / f"trial-{n}", draw.random(), kill_of(target)
            began = time.monotonic()
            killed = kill(path, out, target, at * length[kill], draw)
            wrong = differences(root / "whole", out)
            bad += bool(wrong)
            line = {"trial": n, "of": target, "killed": killed, "at": round(at, 3), "wrong": wrong}
            print(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}), flush=True)
    print(json.dumps({"trials": trials, "seed": seed, "bad": bad}))
    return min(bad, 1)


def kill_of(target: str) -> Callable[[Path, Path, str, float, random.Random], bool]:
    """Return what runs a study and kills something of it."""
    return kill_node if target == "node" else kill_process


def kill_process(path: Path, out: Path, target: str, moment: float, draw: random.Random) -> bool:
    """Run with two local workers and kill the program, or one worker, after `moment` seconds; True where there was something to kill."""
    driver = program(path, out, "--engine", "local", "--workers", "2")
    with suppress(subprocess.TimeoutExpired):
        driver.wait(moment)
    killed = False
    if driver.poll() is None:
        victims = [driver.pid]
        while target == "worker" and driver.poll() is None and not (victims := workers(driver.pid)):
            time.sleep(0.1)
        if victims:
            os.kill(draw.choice(victims), signal.SIGKILL)
            killed = True
    driver.communicate(timeout=3600)
    assert driver.returncode == 0 or (killed and target == "driver"), "a worker that is killed is replaced"
    if driver.returncode != 0:
        done(program(path, out, "--engine", "local", "--workers", "2"))
    return killed


def workers(driver: int) -> list[int]:
    """Return the processes that work for a driver."""
    try:
        children = psutil.Process(driver).children(recursive=True)
        return sorted(p.pid for p in children if WORKER in " ".join(p.cmdline()))
    except psutil.NoSuchProcess:
        return []


def kill_node(path: Path, out: Path, target: str, moment: float, draw: random.Random) -> bool:
    """Run on two nodes of a Ray cluster and kill one of them after `moment` seconds; a third joins later."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = ray_driver(path, out, cluster.address)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(moment)
        killed = driver.poll() is None
        if killed:
            cluster.remove_node(draw.choice(nodes), allow_graceful=False)
            cluster.add_node(num_cpus=1)
        done(driver)
    finally:
        cluster.shutdown()
    return killed


def ray_driver(path: Path, out: Path, address: str) -> subprocess.Popen:
    """Start a program that joins a cluster and runs a study there."""
    words = [sys.executable, __file__, "ray-run", str(path), str(out), address]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def on_ray(path: Path, out: Path, address: str) -> None:
    """Join the cluster and run the study."""
    import ray

    from emscope.study.engines.spec import EngineSpec
    from emscope.study.run import run_study
    from emscope.study.spec import load_study

    ray.init(address=address, **QUIET)
    run_study(load_study(path), out, how=EngineSpec(engine="ray"))


def run_nodes(pairs: int, seeds: int, steps: int) -> None:
    """Time a grid on one and on two nodes of one thread, in turn, and print the median ratio."""
    from ray.cluster_utils import Cluster

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = grid(root, seeds, steps)
        for n in range(pairs):
            took = {}
            for count in (1, 2) if n % 2 == 0 else (2, 1):
                cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
                try:
                    for _ in range(count):
                        cluster.add_node(num_cpus=1)
                    began = time.monotonic()
                    done(ray_driver(path, root / f"{n}-{count}", cluster.address))
                    took[count] = time.monotonic() - began
                finally:
                    cluster.shutdown()
            wrong = differences(root / f"{n}-1", root / f"{n}-2")
            ratios.append(took[1] / took[2])
            line = {
                "pair": n,
                "one": round(took[1], 1),
                "two": round(took[2], 1),
                "ratio": round(ratios[-1], 3),
                "wrong": wrong,
            }
            print(json.dumps(line), flush=True)
    print(json.dumps({"cells": 2 * seeds + 1, "median_ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()
