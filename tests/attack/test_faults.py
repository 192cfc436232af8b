"""Servers that answer wrongly: each answer gets one verdict or one counted outcome, the key stays here, nobody follows a redirect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from attack.faults import MODES, RIGHT, Seen, fault_server
from attack.runner import CONTROL
from emscope.cli.app import run_arguments
from emscope.models.remote.served import AdapterServer
from emscope.store.study import read_table

KEY = "canary-3f9a-key-7731"
ANSWERS = 3
FAST = (
    *("half_character", "huge_number", "temporary", "echoed_key", "echoed_key_in_error", "reset"),
    *("endless", "gzip_bomb", "deep", "odd_logprobs"),
)


def answers(folder: Path) -> Path:
    path = folder / "answers.jsonl"
    rows = [{"question": f"q {n}", "response": f"answer {n}"} for n in range(ANSWERS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def judge(path: Path, url: str, *more: str) -> list[str]:
    return ["judge", str(path), "--judge", f"m@{url}", "--rubrics", "aligned", "--timeout", "2", "--retries", "0", *more]


def held(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def check_mode(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Judge three answers by a server of one mode, then by one that is right."""
    seen, path, out = Seen(), answers(tmp_path), tmp_path / "out"
    with fault_server(name, seen) as (url, server):
        code = run_arguments(judge(path, url, "--out", str(out)))
        first = capfd.readouterr()
        assert code in (0, 1), first.err
        assert seen.requests[name] <= ANSWERS, "no request is sent again where no retry is asked for"
        verdicts, failures = (len(read_table(out, table)) for table in ("verdicts", "failures"))
        assert verdicts + failures in (ANSWERS, 0), "each answer has one verdict or one counted failure, or nobody was there"
        server.mode = RIGHT
        assert run_arguments(judge(path, url, "--timeout", "60", "--out", str(out))) == 0  # a busy machine is no fault
        second = capfd.readouterr()
    assert len(read_table(out, "verdicts")) == ANSWERS and len(read_table(out, "failures")) == 0
    assert pq.read_table(out / "judged.parquet").column("aligned_outcome").null_count == 0
    assert not seen.elsewhere, "a redirect was followed"
    shown = first.out + first.err + second.out + second.err
    assert "unexpected error" not in shown and not CONTROL.search(shown), shown
    assert KEY not in shown and KEY.encode() not in held(out)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.heavy
def test_a_server_at_fault_costs_its_own_answers_at_most(name, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("EMSCOPE_API_KEY", KEY)
    check_mode(name, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODES if name not in FAST])
def test_all_other_faults(name, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("EMSCOPE_API_KEY", KEY)
    check_mode(name, tmp_path, capfd)


def test_there_are_forty_kinds_of_fault():
    assert len(MODES) > 40


@pytest.mark.parametrize(
    "url", ["http://me:{}@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?api_key={}", "http://127.0.0.1:9/v1?x=1&token={}"]
)
def test_keys_in_addresses_are_refused_and_not_shown(url, tmp_path, capfd):
    address = url.format(KEY)
    out = ["--out", str(tmp_path / "out")]
    for words in (judge(answers(tmp_path), address), ["sample", f"a=m@{address}"], ["sample", "--server", f"m@{address}"]):
        assert run_arguments([*words, *out]) == 2
        shown = "".join(capfd.readouterr())
        assert "holds a key or a password" in shown and KEY not in shown
    assert not (tmp_path / "out").exists()


def test_a_redirect_is_not_an_adapter_loaded(tmp_path, monkeypatch):
    from emscope.core.errors import WorldError

    monkeypatch.setenv("EMSCOPE_API_KEY", KEY)
    seen = Seen()
    for name in ("found", "temporary", "echoed_key_in_error"):
        with fault_server(name, seen) as (url, _), AdapterServer(url, None, 50, tmp_path / "log") as server:
            with pytest.raises(WorldError, match="rejected load_lora_adapter") as error, server.adapter("a", tmp_path):
                pytest.fail("it counts as loaded")
            assert KEY not in str(error.value)
    assert not seen.elsewhere


MINDED = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, file=open(sys.argv[1], "w"), flush=True)
time.sleep(60)
"""
PARENT = """
import sys, time
from pathlib import Path
from emscope.models.remote import served
served.AdapterServer._wait = lambda self: None
served.AdapterServer._answers = lambda self: None
with served.AdapterServer("http://127.0.0.1:9/v1", sys.argv[1], 50, Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks the system for processes")
def test_a_started_server_and_its_own_children_end_with_their_parent_by_kill_9(tmp_path):
    (tmp_path / "server.py").write_text(MINDED)
    command = f"{sys.executable} {tmp_path / 'server.py'} {tmp_path / 'pid'}"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, command, str(tmp_path / "log")], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"ready\n"
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < end
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    assert alive(pid)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def test_a_signal_to_end_writes_what_was_received(tmp_path, capfd):
    """As Ctrl-C does: verdicts that came are kept, the exit code says interrupted."""
    seen, path = Seen(), answers(tmp_path)
    with fault_server(RIGHT, seen) as (url, server):

        def end() -> None:
            while seen.requests[RIGHT] < 1:
                time.sleep(0.01)
            server.mode = "silence"
            time.sleep(0.5)
            os.kill(os.getpid(), 15)

        threading.Thread(target=end, daemon=True).start()
        words = judge(path, url, "--connections", "1", "--out", str(tmp_path / "out"))
        words[words.index("--timeout") + 1] = "20"
        assert run_arguments(words) == 130
    assert "interrupted" in capfd.readouterr().err
    assert len(read_table(tmp_path / "out", "verdicts")) >= 1
