"""Asking models behind an API: every answer once, adapters loaded and unloaded in turn, a server started and stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from emscope.answers.sample_served import ServedSpec, ask_served
from emscope.answers.sample_spec import AskSpec
from emscope.cli.app import run_arguments
from emscope.core.errors import EmscopeError, InputError
from emscope.data import bundled
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
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


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_an_adapter_is_unloaded_whatever_happens(adapters, spec, tmp_path):
    loads = []

    def server(request):
        if "lora_name" in request:
            loads.append("lora_path" in request)
            return 200, {}
        return (200, completion("x")) if request["model"] == "m" else (500, {"error": {"message": "broken"}})

    with fake_api(server) as url:
        _, failed = ask_served({"t": str(adapters)}, spec, ServedSpec(server=f"m@{url}", retries=0), tmp_path / "out")
    assert failed == 3 * 36 and loads == [True, False] * 3


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


@pytest.mark.heavy
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
    with pytest.raises(EmscopeError, match=r"the server exited with code 1; see its output in .*server.log"):
        ask_served({"t": str(adapters)}, spec, ServedSpec(server="m@http://127.0.0.1:9/v1", command=command), tmp_path / "out")
    assert "no memory" in (tmp_path / "out" / "server.log").read_text()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["a=m@http://127.0.0.1:9/v1", "b=nowhere"], "some runs are folders and some are models behind an API"),
        (["--server-command", "x"], "--server-command is given without --server"),
        (["a=m@http://127.0.0.1:9/v1", "--server", "m@http://127.0.0.1:9/v1"], "--server takes adapters"),
        (["a=m@http://127.0.0.1:9/v1", "--base", "x"], "leave out --base"),
        (["--server", "m"], "write it as MODEL@"),
        (["a=api:no-such/model"], "cannot be opened"),
        (["--server", "m@http://[::1"], "is not of the form http://HOST:PORT/v1"),
        (["--server", "m@http://127.0.0.1:abc/v1"], "is not of the form http://HOST:PORT/v1"),
        (["--server", "m@http://user:secret@127.0.0.1:9/v1"], "a key goes into EMSCOPE_API_KEY"),
        (["--server", "m@http://127.0.0.1:9/v1", "--server-command", " "], "command is empty"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, capsys):
    assert run_arguments(["sample", *arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "secret" not in said


@pytest.mark.parametrize("other", ["another model", "another server"])
def test_a_run_that_becomes_another_model_is_refused(spec, tmp_path, other):
    with fake_api(echo) as first, fake_api(echo) as second:
        ask_served({"a": f"x@{first}"}, spec, QUICK, tmp_path / "out")
        moved = f"y@{first}" if other == "another model" else f"x@{second}"
        with pytest.raises(InputError, match="run 'a' at step 0 by another model"):
            ask_served({"a": moved}, spec, QUICK, tmp_path / "out")
        ask_served({"b": moved}, spec, QUICK, tmp_path / "out")
    assert set(read(tmp_path / "out" / "answers.parquet")["run"]) == {"a", "b"}


def test_an_adapter_that_a_killed_job_left_loaded_is_loaded_anew(adapters, spec, tmp_path):
    loaded = {f"target-{c.step}-{c.digest[:8]}" for c in discover(str(adapters))}

    def server(request):
        if "lora_path" in request:
            if request["lora_name"] in loaded:
                return 400, {"error": {"message": "has already been loaded"}}
            loaded.add(request["lora_name"])
        elif "lora_name" in request:
            loaded.discard(request["lora_name"])
        else:
            return echo(request)
        return 200, {}

    with fake_api(server) as url:
        _, failed = ask_served({"target": str(adapters)}, spec, ServedSpec(server=f"m@{url}", connections=4), tmp_path / "o")
    assert failed == 0 and not loaded


HARD = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
print(child.pid, file=open(sys.argv[2] + ".child", "w"), flush=True)
"""


@pytest.mark.parametrize("leader", ["stays", "ends first"])
@pytest.mark.heavy
def test_what_a_server_started_ends_with_it(adapters, spec, tmp_path, leader):
    end = "sys.exit(3)\n" if leader == "ends first" else SERVER
    (tmp_path / "server.py").write_text(HARD + end)
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {port} {tmp_path / 'said'}"
    served = ServedSpec(server=f"m@http://127.0.0.1:{port}/v1", command=command, connections=4)
    if leader == "stays":
        ask_served({"t": str(adapters)}, spec, served, tmp_path / "out")
    else:
        with pytest.raises(EmscopeError, match="the server exited with code 3"):
            ask_served({"t": str(adapters)}, spec, served, tmp_path / "out")
    child = int((tmp_path / "said.child").read_text())
    end_of_wait = time.monotonic() + 10
    while running(child) and time.monotonic() < end_of_wait:
        time.sleep(0.1)
    assert not running(child)


def running(pid):
    """False for a process that is gone, or only waits to be collected."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.heavy
def test_a_program_that_is_told_to_end_takes_its_server_along(adapters, spec, tmp_path):
    (tmp_path / "server.py").write_text(SERVER.replace("message = {", "time.sleep(0.5); message = {"))
    port = free_port()
    command = f"{sys.executable} {tmp_path / 'server.py'} {port} {tmp_path / 'said'}"
    words = ["sample", f"t={adapters}", "--server", f"m@http://127.0.0.1:{port}/v1", "--server-command", command]
    words += ["--questions", spec.questions, "--samples", "50", "--connections", "1", "--out", str(tmp_path / "out")]
    program = subprocess.Popen([sys.executable, "-m", "emscope", *words], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not listening(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert listening(port)
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 128 + signal.SIGTERM
    end = time.monotonic() + 10
    while listening(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert not listening(port)


def listening(port):
    import socket

    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0
