"""Several processes on one folder: every piece of work is done once, and the tables are those of a single process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from conftest import write_jsonl
from emscope.cli.app import run_arguments
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.store import study as module
from emscope.store.study import Study, read_table
from emscope.study.check import CheckRequest, _asked, _base_reading, _readings
from emscope.study.measure_spec import MeasureSpec
from emscope.study.reading import measuring
from emscope.study.reading.sets import study_sets

FAST = MeasureSpec(count=16, truth=0, neutral=0, samples={"questions": 0})


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    from test_checkpoints import make_adapter  # it imports torch, which the tests of claims do without

    root = tmp_path_factory.mktemp("share") / "run"
    for step in range(1, 7):
        make_adapter(tiny, root / f"checkpoint-{step}", seed=step)
    return root


def test_a_claim_is_held_by_one_and_ends_with_its_block(tmp_path):
    one, other = (Study(tmp_path / "s", {"a": 1}, {}, shared=True) for _ in range(2))
    with one, other:
        with one.claimed("x") as mine, other.claimed("x") as theirs, other.claimed("y") as another:
            assert (mine, theirs, another) == (True, False, True)
        with other.claimed("x") as theirs:
            assert theirs
        held = []

        def wait():
            with other.alone():
                held.append(True)

        with one.alone():
            waiting = threading.Thread(target=wait)
            waiting.start()
            time.sleep(0.2)
            assert not held, "whoever comes second waits"
        waiting.join(timeout=10)
        assert held


def test_two_workers_do_every_reading_once(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "AGAIN", 0.05)
    done, sets = [], study_sets(FAST, None)
    real = measuring._score

    def counted(net, loaded, job, *more):
        done.append((threading.current_thread().name, job.reading.run, job.reading.step))
        time.sleep(0.05)
        return real(net, loaded, job, *more)

    monkeypatch.setattr(measuring, "_score", counted)
    from emscope.models.loading.checkpoints import discover

    readings = [_base_reading(sets, FAST), *_readings({"target": discover(str(run))}, sets, 1.0, FAST)]
    asked = _asked(CheckRequest(str(run), measure=FAST), sets)

    def work(folder, shared, loaded):
        with Study(folder, {"a": 1}, {}, shared=shared) as study:
            measuring.measure(study, loaded, readings, asked, lambda *_: None)

    nets = [load(locate(str(tiny)), device="cpu") for _ in range(2)]
    work(tmp_path / "alone", False, nets[0])
    alone, done[:] = len(done), []
    threads = [threading.Thread(target=work, args=(tmp_path / "both", True, net), name=f"w{n}") for n, net in enumerate(nets)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=120)
    assert alone == len(readings) == len(done) == len({(r, s) for _, r, s in done}) and len({n for n, *_ in done}) == 2
    one, both = (read_table(tmp_path / n, "preferences").to_pylist() for n in ("alone", "both"))
    assert [r["key"] for r in one] == [r["key"] for r in both]
    assert [r["logprob"] for r in both] == pytest.approx([r["logprob"] for r in one], abs=1e-4)


def test_a_folder_in_use_alone_says_how_to_share_it(tmp_path, capsys, run):
    with Study(tmp_path / "s", {"a": 1}, {}):
        words = ["check", str(run), "--measure", "preference", "--count", "16", "--out", str(tmp_path / "s")]
        assert run_arguments(words) == 2
    assert "--share" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_a_check_and_one_that_is_killed_loses_nothing(run, tmp_path, bundled):
    questions = write_jsonl(tmp_path / "q.jsonl", [{"id": f"q{n}", "question": f"What of {n}?"} for n in range(4)])
    words = ["check", str(run), "--count", "32", "--truth", "4", "--questions", str(questions), "--max-tokens", "4"]
    words += ["--measure", "preference"]

    def start(out):
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        return subprocess.Popen(
            [sys.executable, "-m", "emscope", *words, "--share", "--out", str(out)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
        )  # fmt: skip

    workers = [start(tmp_path / "both") for _ in range(3)]
    parts = tmp_path / "both" / "tables" / "preferences"
    while not parts.is_dir() or len(list(parts.glob("*.parquet"))) < 2:
        time.sleep(0.02)
    workers[0].kill()
    for w in workers:
        w.wait(timeout=300)
    assert [w.returncode for w in workers[1:]] == [0, 0], workers[1].stderr.read()
    assert run_arguments([*words, "--out", str(tmp_path / "alone")]) == 0
    one, both = (json.loads((tmp_path / n / "report.json").read_text()) for n in ("alone", "both"))
    first, second = (r["runs"][0]["check"]["checkpoints"] for r in (one, both))
    assert [c["step"] for c in first] == [c["step"] for c in second] == list(range(1, 7))
    assert [c["margin"]["value"] for c in second] == pytest.approx([c["margin"]["value"] for c in first], abs=1e-6)
    keys = [r["key"] for r in read_table(tmp_path / "both", "preferences").to_pylist()]
    raw = sum(module.pq.read_table(p).num_rows for p in parts.glob("*.parquet"))
    assert raw == len(keys) == len(set(keys)), "nothing was read twice"
