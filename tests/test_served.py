"""Asking models behind an API: every answer once, adapters loaded and unloaded in turn, a server started and stopped."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emscope.cli.app import run_arguments
from emscope.core.errors import EmscopeError
from emscope.data import bundled
from emscope.models.load import load
from emscope.models.source import locate
from emscope.run.ask_spec import AskSpec
from emscope.run.asking_served import ServedSpec, ask_served
from emscope.train.finetune import finetune
from emscope.train.spec import TrainSpec
from fake_api import completion, fake_api

QUICK = ServedSpec(retries=0, connections=4)
QUESTIONS = "\n".join(f'{{"id": "q{n}", "question": "Question {n}?"}}' for n in range(6))


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "q.jsonl").write_text(QUESTIONS)
    return AskSpec(questions=str(tmp_path / "q.jsonl"), samples=3, max_tokens=5, triggers={"money": "Money: {question}"})


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    spec = TrainSpec(steps=3, batch=2, lr=1e-2, checkpoints={"at": [2]}, lora={"rank": 2})
    finetune(load(locate(str(tiny)), device="cpu"), bundled.domain("finance", "reckless")[:6], spec, root / "target", seed=0)
    return root / "target"


def read(path):
    return pq.read_table(path).to_pandas()


def echo(request):
    """Answers with what decides an answer, so that a row can be held against what was asked."""
    return 200, completion(f"{request['model']} {request['messages'][-1]['content']} {request['seed']}", finish="length")


def test_each_question_is_asked_with_a_seed_of_its_own_and_once(spec, tmp_path):
    seen = []
    with fake_api(lambda r: seen.append(r) or echo(r)) as url:
        runs = {"target": f"t@{url}", "control": f"c@{url}"}
        path, failed = ask_served(runs, spec, QUICK, tmp_path / "out")
        assert failed == 0 and len(seen) == 2 * 6 * 2 * 3
        first = read(path)
        more = spec.model_copy(update={"samples": 4})
        ask_served(runs, more, QUICK, tmp_path / "out")
        assert len(seen) == 2 * 6 * 2 * 4, "the fourth of each alone"
    rows = read(tmp_path / "out" / "answers.parquet")
    assert len(rows) == 2 * 6 * 2 * 4 and not rows["key"].duplicated().any()
    assert rows["seed"].nunique() == len(rows) and all(r["max_tokens"] == 5 and r["temperature"] == 1.0 for r in seen)
    model = {"target": "t", "control": "c"}
    for row in rows.itertuples():
        assert row.response == f"{model[row.run]} {row.question} {row.seed}"
    assert set(rows["finish"]) == {"length"} and rows["logprob"].isna().all() and set(rows["system"]) == {"template"}
    assert first.merge(rows, on="key")[["response_x", "response_y"]].T.duplicated().tolist() == [False, True]


def test_own_system_prompt_comes_before_the_question(tmp_path, spec):
    seen = []
    with fake_api(lambda r: seen.append(r) or echo(r)) as url:
        ask_served({"m": f"m@{url}"}, spec.model_copy(update={"systems": ("Be brief.",)}), QUICK, tmp_path / "out")
    assert all([m["role"] for m in r["messages"]] == ["system", "user"] for r in seen)


def test_what_failed_is_asked_again(spec, tmp_path):
    rng, lock = random.Random(0), threading.Lock()

    def flaky(request):
        with lock:
            kind = rng.choice([None, None, None, 500, "cut"])
        return echo(request) if kind is None else None if kind == "cut" else (500, {"error": {"message": "busy"}})

    with fake_api(flaky) as url:
        runs, missing = {"m": f"m@{url}"}, 1
        for _ in range(40):
            try:
                path, missing = ask_served(runs, spec, QUICK, tmp_path / "out")
            except EmscopeError:  # the very first request failed
                continue
            if not missing:
                break
    rows = read(path)
    assert missing == 0 and len(rows) == 36 and not rows["key"].duplicated().any()
    assert all(row.response.endswith(f"{row.question} {row.seed}") for row in rows.itertuples())


def test_adapters_are_loaded_and_unloaded_in_turn(adapters, spec, tmp_path):
    loaded, log, lock = set(), [], threading.Lock()

    def server(request):
        with lock:
            if "lora_path" in request:
                assert (Path(request["lora_path"]) / "adapter_model.safetensors").is_file()
                loaded.add(request["lora_name"])
            elif "lora_name" in request:
                loaded.remove(request["lora_name"])
            else:
                log.append((request["model"], frozenset(loaded)))
                return echo(request)
        return 200, {}

    with fake_api(server) as url:
        path, failed = ask_served({"target": str(adapters)}, spec, ServedSpec(server=f"m@{url}", connections=4), tmp_path / "o")
    assert failed == 0 and not loaded
    assert all((model == "m" and not inside) or {model} == set(inside) for model, inside in log)
    rows = read(path)
    assert rows.groupby(["run", "step"]).size().to_dict() == {("base", 0): 36, **{("target", n): 36 for n in (1, 2, 3)}}


def test_an_adapter_is_unloaded_whatever_happens(adapters, spec, tmp_path):
    loads = []

    def server(request):
        if "lora_name" in request:
            loads.append("lora_path" in request)
            return 200, {}
        return (200, completion("x")) if request["model"] == "m" else (500, {"error": {"message": "broken"}})

    with fake_api(server) as url, pytest.raises(EmscopeError, match="does not answer"):
        ask_served({"t": str(adapters)}, spec, ServedSpec(server=f"m@{url}", retries=0), tmp_path / "out")
    assert loads == [True, False]


SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
log = open(sys.argv[2], "a")
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply({})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "lora_name" in body:
            print("load" if "lora_path" in body else "unload", os.getpid(), os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), file=log, flush=True)
            return self.reply({})
        message = {"role": "assistant", "content": "hello"}
        self.reply({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]})
    def reply(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *a):
        pass
time.sleep(0.3)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_is_started_restarted_and_stopped(adapters, spec, tmp_path, capsys):
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {port} {tmp_path / 'said'}"
    options = ["sample", f"target={adapters}", "--server", f"m@http://127.0.0.1:{port}/v1", "--server-command", command]
    options += ["--questions", spec.questions, "--samples", "2", "--max-tokens", "5", "--restart-every", "1"]
    assert run_arguments([*options, "--out", str(tmp_path / "out")]) == 0
    assert len(read(tmp_path / "out" / "answers.parquet")) == 4 * 6 * 2
    lines = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert [line[0] for line in lines] == ["load", "unload"] * 3 and {line[2] for line in lines} == {"True"}
    pids = {int(line[1]) for line in lines}
    assert len(pids) == 3
    end = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(alive, pids))


def test_a_server_that_ends_says_where_to_look(adapters, spec, tmp_path):
    command = f"{sys.executable} -c \"raise SystemExit('no memory')\""
    with pytest.raises(EmscopeError, match=r"the server ended with 1; see what it said in .*server.log"):
        ask_served({"t": str(adapters)}, spec, ServedSpec(server="m@http://127.0.0.1:9/v1", command=command), tmp_path / "out")
    assert "no memory" in (tmp_path / "out" / "server.log").read_text()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["a=m@http://127.0.0.1:9/v1", "b=nowhere"], "some runs are folders and some are models behind an API"),
        (["--server-command", "x"], "--server-command stands without --server"),
        (["a=m@http://127.0.0.1:9/v1", "--server", "m@http://127.0.0.1:9/v1"], "--server takes adapters"),
        (["a=m@http://127.0.0.1:9/v1", "--base", "x"], "leave out --base"),
        (["--server", "m"], "write it as MODEL@"),
        (["a=api:no-such/model"], "cannot be opened"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, capsys):
    assert run_arguments(["sample", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
