"""The same grid by every engine: identical tables. Workers, drivers and nodes that are killed lose nothing and double nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from conftest import FEW
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError, WorldError
from emscope.core.progress import silent
from emscope.store.rows import parts_of, read_table
from emscope.store.schemas import TABLES
from emscope.study.cells import plan_file
from emscope.study.cells.plan_file import FILE, planned_in
from emscope.study.cells.standing import standing
from emscope.study.engines import local, on_slurm
from emscope.study.engines.spec import EngineSpec
from emscope.study.engines.table import Job
from emscope.study.run import run_study
from emscope.study.spec import load_study
from test_study import contents, forked

GRID = {
    "name": "grid",
    "domain": "finance",
    "seeds": [0],
    "arms": {
        "target": {"role": "target", "answers": "reckless", **FEW},
        "control": {"role": "control", "answers": "careful", **FEW},
    },
    "train": {"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {}},
    "measure": {"count": 16, "heldout": 2, "truth": 0, "neutral": 2, "samples": {"questions": 1, "max_tokens": 2}},
    "threads": 1,
}


@pytest.fixture(scope="module")
def grid(tiny, tmp_path_factory):
    """A grid of two fine-tunes done by this process alone: (yaml path, folder)."""
    root = tmp_path_factory.mktemp("grid")
    path = root / "grid.yaml"
    path.write_text(yaml.safe_dump({"model": str(tiny)} | GRID))
    run_study(load_study(path), root / "serial")
    return path, root / "serial"


def equal(one: Path, other: Path) -> None:
    """Assert identical tables, in which no row is there twice."""
    assert contents(one) == contents(other)
    for table in TABLES:
        parts = parts_of(other, table)
        assert sum(len(local_rows(path)) for path in parts) == len(read_table(other, table)), table


def local_rows(path: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def kill_one(out: Path, killed: list[int], ended: threading.Event) -> None:
    """Kill the first worker that has a fine-tune in hand."""
    while not ended.wait(0.05):
        if (out / FILE).is_file():
            for cell in standing(out).cells:
                if cell.state == "running" and cell.cell != "base" and cell.pid is not None:
                    os.kill(cell.pid, signal.SIGKILL)
                    killed.append(cell.pid)
                    return


class Forked:
    """A worker with its imports done, which takes most of a worker's time: what `local` asks of a process that it starts."""

    def __init__(self, job: Job, number: int) -> None:
        self._process = forked(be_a_worker, [str(job.root.resolve()), str(job.threads), str(os.getpid())])

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.join()


def be_a_worker(words: list[str]) -> None:
    sys.argv[1:] = words
    local.main()


def test_processes_of_this_machine_give_the_tables_of_one_though_one_of_them_is_killed(grid, tmp_path, capsys, monkeypatch):
    path, serial = grid
    monkeypatch.setattr(local, "_start", Forked)
    out, killed, ended = tmp_path / "out", [], threading.Event()
    thread = threading.Thread(target=kill_one, args=(out, killed, ended))
    thread.start()
    try:
        words = ["run", str(path), "--out", str(out), "--engine", "local", "--workers", "2", "--threads", "1", "--json"]
        assert run_arguments(words) == 0
    finally:
        ended.set()
        thread.join()
    assert killed
    equal(serial, out)
    found = standing(out)
    assert found.finished == 3 and not list(out.glob("work/*"))
    said = capsys.readouterr()
    assert len(json.loads(said.out)["runs"]) == 1 and "cells: 100%" in said.err
    assert {json.loads(p.read_text())["threads"] for p in out.glob("cells/*.json")} == {1}


def without(serial: Path, name: str, out: Path) -> Path:
    """Copy the finished grid without one cell and what came of it."""
    shutil.copytree(serial, out, ignore=shutil.ignore_patterns(".lock"))
    key = next(cell.key for cell in planned_in(serial).cells if cell.name == name)
    for path in (out / "report.json", out / "cells" / f"{key}.json", *out.glob(f"tables/*/cell-{key}.parquet")):
        path.unlink()
    shutil.rmtree(out / "runs" / name)
    return out


def test_a_worker_with_a_command_of_its_own_does_what_is_left(grid, tmp_path):
    path, serial = grid
    out = without(serial, "control-seed0", tmp_path / "out")
    run_study(load_study(path), out, how=EngineSpec(engine="local", workers=1, retries=0))
    equal(serial, out)
    assert list(out.glob("logs/worker-0.log"))


def test_a_job_of_submitit_gives_the_tables_of_one(grid, tmp_path):
    path, serial = grid
    out = without(serial, "control-seed0", tmp_path / "out")
    run_study(load_study(path), out, how=EngineSpec(engine="slurm", workers=1, slurm={"cluster": "local"}))
    equal(serial, out)
    assert len(list(out.glob("slurm/*_submitted.pkl"))) == 1


def test_jobs_are_queued_in_arrays_no_longer_than_the_site_allows(tmp_path, monkeypatch):
    arrays = []

    def queued(hand, numbers):
        arrays.append(list(numbers))
        return [SimpleNamespace(done=lambda: True) for _ in numbers]

    monkeypatch.setattr(on_slurm, "_executor", lambda *_: SimpleNamespace(map_array=queued))
    how = EngineSpec(engine="slurm", slurm={"array_max": "2"})
    job = SimpleNamespace(root=tmp_path, how=how, workers=5, threads=1, cells=("a", "b", "c"), tell=lambda progress: [])
    on_slurm.run(job, silent)
    assert arrays == [[0, 1], [2]], "no more jobs than cells"


@pytest.mark.slow
def test_two_nodes_of_a_ray_cluster_give_the_tables_of_one(grid, tmp_path):
    import ray
    from ray.cluster_utils import Cluster

    path, serial = grid
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        run_study(load_study(path), tmp_path / "out", how=EngineSpec(engine="ray", threads=1))
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
    finally:
        ray.shutdown()
        cluster.shutdown()
    equal(serial, tmp_path / "out")


def start(path: Path, out: Path) -> subprocess.Popen:
    words = ["run", str(path), "--out", str(out), "--engine", "local", "--workers", "2", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "emscope", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def workers_of(driver: subprocess.Popen) -> list[psutil.Process]:
    found = psutil.Process(driver.pid).children(recursive=True)
    return [p for p in found if "emscope.study.engines.local" in " ".join(p.cmdline())]


def wait_until(found, alive) -> None:
    while not found():
        assert alive(), "it ended too early"
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_end_with_their_driver_and_the_next_one_goes_on(grid, tmp_path):
    path, serial = grid
    out = tmp_path / "out"
    driver = start(path, out)
    wait_until(lambda: list(out.glob("cells/*.json")), lambda: driver.poll() is None)
    workers = workers_of(driver)
    assert workers
    driver.kill()
    driver.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert gone and not alive
    run_study(load_study(path), out, how=EngineSpec(engine="serial"))
    equal(serial, out)


def test_a_worker_refuses_where_the_code_or_the_data_changed_since_planning(grid, tmp_path, monkeypatch):
    _, serial = grid
    out = tmp_path / "out"
    shutil.copytree(serial, out)
    assert len(planned_in(out).cells) == 3
    recipe = out / "recipes" / "target.jsonl"
    kept = recipe.read_text()
    recipe.write_text(kept.replace("Message", "Massage", 1).replace("the", "teh", 1))
    with pytest.raises(InputError, match=r"'target-seed0' is not the cell that .* planned: a file"):
        planned_in(out)
    recipe.write_text(kept)
    monkeypatch.setattr(plan_file, "code_digest", lambda: "another")
    with pytest.raises(InputError, match="emscope's code changed since"):
        planned_in(out)


def test_workers_that_end_again_and_again_end_the_run(grid, tmp_path, monkeypatch):
    path, _ = grid
    started = []

    def broken(job: Job, number: int) -> subprocess.Popen:
        started.append(number)
        log = job.root / local.LOGS / f"worker-{number}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as file:
            return subprocess.Popen([sys.executable, "-c", "raise SystemExit('no card')"], stderr=file)

    monkeypatch.setattr(local, "_start", broken)
    how = EngineSpec(engine="local", workers=1, threads=1, retries=2)
    with pytest.raises(WorldError, match=r"workers keep dying \(no card\)"):
        run_study(load_study(path), tmp_path / "out", how=how)
    assert len(started) == 4


def test_settings_that_submitit_does_not_know_are_one_sentence(grid, tmp_path, capsys):
    path, _ = grid
    words = ["run", str(path), "--out", str(tmp_path / "out"), "--engine", "slurm", "--workers", "1"]
    assert run_arguments([*words, "--slurm", "cluster=local", "--slurm", "time_out=3"]) == 2
    assert "submitit does not accept --slurm" in capsys.readouterr().err.splitlines()[-1]
