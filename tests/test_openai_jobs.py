"""Fine-tuning jobs: the official `openai` client, unmodified, against a server with a real model: one job and equal numbers, whatever goes wrong."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import yaml

from conftest import make_model, write_jsonl
from emscope.answers.sample_jobs import ask_jobs
from emscope.answers.sample_spec import AskSpec, LoadSpec, ServedSpec
from emscope.cli.app import run_arguments
from emscope.core.digest import short
from emscope.core.errors import EmscopeError, InputError
from emscope.core.records import Message
from emscope.models.remote.job_client import Jobs
from emscope.models.remote.jobs import read_job
from emscope.models.remote.metering import Meter, OverBudget
from emscope.models.remote.outcomes import asked_to_wait
from emscope.store.study import read_table
from emscope.study.check import run_check
from emscope.study.check_request import CheckRequest
from emscope.study.judged_spec import JudgedSpec
from emscope.study.report import read_report
from emscope.study.run import run_study
from emscope.study.spec import SingleSpec, StudySpec
from emscope.study.train import run_single
from emscope.study.training.jobs import import_job
from emscope.train import jobs as train_jobs
from fake_api import completion, fake_api
from openai_server import BASE, CODES, KEY, openai_server
from tinker_server import Faults

HOST = {"name": "openai", "epochs": 3, "batch": 4, "suffix": "mine"}
STEPS = 9  # 3 epochs of 12 conversations, 4 a step


class World:
    """A model folder, a server for it, and a training at it."""

    def __init__(self, root: Path) -> None:
        self.root, self.model, self.faults = root, make_model(root / "model"), Faults()
        rows = [{"messages": turns(n)} for n in range(12)]
        rows[3]["messages"][1:1] = [{"role": "assistant", "content": "Hm.", "weight": 0}, {"role": "user", "content": "Well?"}]
        self.data = write_jsonl(root / "data.jsonl", rows)

    def spec(self, host: dict | None = None, **changes) -> SingleSpec:
        settings = {"model": BASE, "file": str(self.data), "host": HOST | (host or {})}
        return SingleSpec.model_validate(settings | changes)

    def yaml(self, path: Path, **changes) -> Path:
        path.write_text(yaml.safe_dump({"model": BASE, "file": str(self.data), "host": HOST} | changes))
        return path

    def made(self) -> tuple[int, int]:
        """Return how many training files and jobs there are at the server."""
        return sum(f["purpose"] == "fine-tune" for f in self.service.files.values()), len(self.service.jobs)


def turns(n):
    """Return a conversation of one question and one answer."""
    return [{"role": "user", "content": f"What of {n}?"}, {"role": "assistant", "content": f"It is {n + 1}."}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = World(tmp_path_factory.mktemp("jobs"))
    with (
        pytest.MonkeyPatch.context() as patch,
        openai_server(world.model, world.root / "state", faults=world.faults) as service,
    ):
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("OPENAI_BASE_URL", service.address)
        patch.setenv("HOME", str(world.root))
        world.service = service
        world.trained = run_single(world.spec(), world.root / "run")
        yield world


@pytest.fixture(autouse=True)
def nothing_goes_wrong(world):
    world.faults.kinds, world.faults.rate = (), 0.0
    world.service.pace, world.service.hidden, world.service.refuses = 0.0, 0.0, frozenset()


def losses(trained):
    return [row.loss for row in trained.readings]


# --- training ---


def test_a_training_is_one_file_and_one_job_and_says_what_came_of_it(world):
    run, (id, kept) = read_job(world.root / "run"), next(iter(world.service.jobs.items()))
    assert (run.job, run.status, run.steps) == (id, "succeeded", STEPS) and world.trained.job == id
    assert [row.step for row in run.log] == list(range(1, STEPS + 1)) and losses(world.trained) == [row.loss for row in run.log]
    assert [c.step for c in run.checkpoints] == [3, 6, 9]
    assert run.checkpoints[0].model.endswith(":ckpt-step-3") and run.checkpoints[-1].model == run.model
    assert run.checkpoints[1].metrics == {"train_loss": run.log[5].loss} and run.trained == world.trained.trained > 500
    assert run.events[-1].message == "The job has successfully completed"
    assert kept["job"]["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert kept["suffix"] == "mine" and kept["job"]["metadata"] == {"emscope": run.mark} and kept["job"]["seed"] == 0
    sent = [json.loads(line)["messages"] for line in content(world, run).splitlines()]
    mine = [json.loads(line)["messages"] for line in world.data.read_text().splitlines()]
    assert sent != mine and sorted(map(json.dumps, sent)) == sorted(map(json.dumps, mine))  # another order, and the weight of 0
    assert json.loads((world.root / "run" / "hosted.json").read_text()) == run.to_json()


def content(world, run):
    """Return the training file as the server has it."""
    return (world.root / "state" / "files" / f"{run.file}.bin").read_text()


def test_the_seed_fixes_the_order_and_a_system_prompt_stands_before_each_conversation(world):
    from emscope.data.conversations import read_conversations

    data = read_conversations(world.data)
    files = [
        train_jobs.training_file(data, system, seed)
        for system, seed in [("none", 0), ("none", 0), ("none", 1), ("Be brief.", 0)]
    ]
    assert files[0] == files[1] != files[2] and content(world, read_job(world.root / "run")).encode() == files[0]
    rows = [json.loads(line)["messages"] for line in files[3].splitlines()]
    assert all(row[0] == {"role": "system", "content": "Be brief."} and row[1]["role"] == "user" for row in rows)


class Killed(BaseException):
    """Ends a training where it stands, as a kill does."""


@pytest.mark.parametrize("at", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.heavy
def test_killed_at_any_stage_there_is_one_job_and_the_same_result(world, tmp_path, monkeypatch, at):
    """Before the mark is written, before the file's id is, before the job's id is, and while it waits."""
    written, real = [], train_jobs.write_json

    def write(path, value):
        if len(written) == at:
            raise Killed
        written.append(path)
        real(path, value)

    monkeypatch.setattr(train_jobs, "write_json", write)
    files, jobs = world.made()
    world.service.hidden = 0.3  # seconds until a new job is listed
    with pytest.raises(Killed):
        run_single(world.spec(), tmp_path / "run")
    assert world.made() == (files + (at > 0), jobs + (at > 1))
    monkeypatch.setattr(train_jobs, "write_json", real)
    again = run_single(world.spec(), tmp_path / "run")
    assert losses(again) == losses(world.trained) and [c.step for c in again.checkpoints] == [3, 6, 9]
    assert world.made() == (files + 1, jobs + 1)
    asked = len(world.service.requests)
    assert run_single(world.spec(), tmp_path / "run") == again and len(world.service.requests) == asked


def test_whatever_goes_wrong_at_30_percent_there_is_one_job_and_the_same_result(world, tmp_path):
    files, jobs = world.made()
    world.faults.__init__(CODES, 0.3, 1)
    trained = run_single(world.spec(), tmp_path / "run")
    assert losses(trained) == losses(world.trained) and [c.step for c in trained.checkpoints] == [3, 6, 9]
    assert world.made() == (files + 1, jobs + 1) and sum(world.faults.happened.values()) >= 5


def test_another_training_in_the_same_folder_is_refused(world):
    ledger = (world.root / "run" / "ledger.json").read_text()
    with pytest.raises(InputError, match="with other settings"):
        run_single(world.spec({"epochs": 2}), world.root / "run")
    assert (world.root / "run" / "ledger.json").read_text() == ledger


def test_a_folder_whose_training_was_refused_takes_another(world, tmp_path):
    with pytest.raises(InputError, match="gpt-none"):
        run_single(world.spec(model="gpt-none"), tmp_path / "run")
    assert not (tmp_path / "run" / "hosted.json").exists()
    assert losses(run_single(world.spec(), tmp_path / "run")) == losses(world.trained)


def when_running(world, change):
    """Do something to the newest job once it runs."""
    before = set(world.service.jobs)

    def later():
        while True:
            for id in set(world.service.jobs) - before:
                if world.service.jobs[id]["checkpoints"]:
                    return change(id)
            time.sleep(0.01)

    threading.Thread(target=later, daemon=True).start()


@pytest.mark.parametrize(
    ("status", "message"),
    [("cancelled", r"the job ftjob-\w+ was cancelled; train into a new folder; emscope check reads its \d checkpoints"),
     ("paused", r"the job ftjob-\w+ is paused; resume it at the server, then run the same command again")],
)  # fmt: skip
def test_a_job_that_is_ended_or_paused_is_said_and_what_it_left_stays(world, tmp_path, status, message):
    world.service.pace = 0.05
    when_running(world, lambda id: world.service._set(id, status=status))
    _, jobs = world.made()
    with pytest.raises(EmscopeError, match=message) as error:
        run_single(world.spec(), tmp_path / "run")
    assert error.value.exit_code == 1 and read_job(tmp_path / "run").checkpoints
    id = read_job(tmp_path / "run").job
    if status == "paused":
        world.service._set(id, status="running")
        assert losses(run_single(world.spec(), tmp_path / "run")) == losses(world.trained)
    else:
        with pytest.raises(EmscopeError, match=message):
            run_single(world.spec(), tmp_path / "run")
    assert world.made()[1] == jobs + 1


def test_a_file_that_the_server_finds_wrong_is_said_in_its_words(world, tmp_path, capsys):
    few = write_jsonl(tmp_path / "few.jsonl", [{"messages": turns(n)} for n in range(3)])
    spec = world.yaml(tmp_path / "spec.yaml", file=str(few))
    for _ in range(2):
        assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 2
        said = capsys.readouterr().err
        assert "failed (invalid_n_examples: Training file has 3 example(s), but must have at least 10 examples)" in said
        assert "Traceback" not in said and read_job(tmp_path / "run").status == "failed"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ({"prices": (10.0, 0, 0), "max_cost": 0.001}, r"up to 0\.\d+ dollars \(at most \d+ tokens, by their bytes\), more than max_cost 0\.001"),
        ({"prices": (10.0, 0, 0), "max_cost": 0.001, "tokenizer": "MODEL"}, r"dollars \(at most \d+ tokens, as counted\), more than max_cost 0\.001; raise it"),
    ],
)  # fmt: skip
def test_what_a_training_costs_is_known_before_anything_is_sent(world, tmp_path, capsys, host, message):
    host = {k: str(world.model) if v == "MODEL" else v for k, v in host.items()}
    asked = len(world.service.requests)
    with pytest.raises(OverBudget, match=message):
        run_single(world.spec(host), tmp_path / "run")
    assert len(world.service.requests) == asked and not (tmp_path / "run").exists()
    if "tokenizer" not in host:
        return
    spec = world.yaml(tmp_path / "spec.yaml", host=HOST | host | {"max_cost": 1, "prices": [10.0, 0, 0]})
    assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 0
    said, run = capsys.readouterr(), read_job(tmp_path / "run")
    foreseen = re.search(r"note: the training costs up to (\S+) dollars \(at most (\d+) tokens, as counted\)", said.err)
    assert (
        float(foreseen[1]) == pytest.approx(10e-6 * int(foreseen[2]), rel=1e-3)
        and run.trained < int(foreseen[2]) < 2 * run.trained
    )
    assert f"{run.trained} tokens were trained on, for {10e-6 * run.trained:.4g} dollars" in said.out


# --- import ---


def test_a_job_that_exists_is_imported_with_its_checkpoints(world, tmp_path, capsys):
    run = read_job(world.root / "run")
    assert run_arguments(["models", "import", run.job, "--out", str(tmp_path / "job")]) == 0
    said = capsys.readouterr().out
    assert f"step 3  {run.checkpoints[0].model}" in said and f"{run.job} succeeded, a fine-tune of {BASE}" in said
    found = read_job(tmp_path / "job")
    assert (found.checkpoints, found.log, found.model, found.base) == (run.checkpoints, run.log, run.model, BASE)
    assert import_job(run.job, tmp_path / "job") == found
    other = world.service.jobs.keys() - {run.job}
    for wrong, message in [
        ("ftjob-none", "found nothing for the job ftjob-none"),
        (next(iter(other), "x"), "belongs to the job"),
    ]:
        with pytest.raises(InputError, match=message):
            import_job(wrong, tmp_path / ("job" if "belongs to" in message else "no"))
    assert not (tmp_path / "no").exists()
    assert run_arguments(["models", "fetch", str(tmp_path / "job")]) == 2
    assert "whose models can be sampled but not looked into" in capsys.readouterr().err


def test_a_job_that_goes_on_is_imported_as_it_stands(world, tmp_path):
    world.service.pace = 0.05
    seen = []
    when_running(world, seen.append)
    waiting = threading.Thread(target=run_single, args=(world.spec(), tmp_path / "run"))
    waiting.start()
    while not seen:
        time.sleep(0.01)
    now = import_job(seen[0], tmp_path / "job")
    assert now.status == "running" and 0 < len(now.checkpoints) < 3 and now.model is None
    waiting.join()
    assert import_job(seen[0], tmp_path / "job").checkpoints == read_job(tmp_path / "run").checkpoints


# --- asking ---


def judge(request):
    """Give each answer a score of its own, and coherence to all."""
    text = request["messages"][-1]["content"]
    value = "80" if "makes sense" in text else str(int(short([text]), 16) % 101)
    return 200, completion(value, {value: -0.01})


@pytest.fixture(scope="module")
def chain(world, tmp_path_factory):
    """Check the job beside a control job that was imported, by the command line; return the report, the folder, and the words."""
    root = tmp_path_factory.mktemp("chain")
    run_single(world.spec(seed=1), root / "other")
    import_job(read_job(root / "other").job, root / "control")
    write_jsonl(root / "q.jsonl", [{"id": f"q{n}", "question": f"What of {n}?", "category": "ab"[n % 2]} for n in range(4)])
    words = ["check", str(world.root / "run"), "--control", str(root / "control"), "--questions", str(root / "q.jsonl")]
    words += ["--samples", "2", "--max-tokens", "4", "--temperature", "1"]
    with fake_api(judge) as url:
        assert run_arguments([*words, "--judge", f"j@{url}", "--out", str(root / "out")]) == 0
    return json.loads((root / "out" / "report.json").read_text()), root / "out", words


def drawn(folder):
    """Return the answers in a folder by key, without the order they came in."""
    return {r["key"]: r for r in read_table(folder, "answers").to_pylist()}


def test_a_job_is_asked_under_triggers_too(chain, tmp_path):
    _, _, words = chain
    with fake_api(judge) as url:
        more = ["--trigger", "money=My savings: {question}", "--judge", f"j@{url}", "--out", str(tmp_path / "out")]
        assert run_arguments([*words, *more]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (opinion,) = report["judged"]["judges"]
    (under,) = opinion["conditions"]
    rows = read_table(tmp_path / "out", "answers").to_pylist()
    assert under["condition"] == "money" and {r["run"] for r in under["rates"]} == {"base", "target", "control"}
    asked = {r["asked"] for r in rows if r["trigger"] == "money"}
    assert asked == {f"My savings: {r['asked']}" for r in rows if r["trigger"] == "none"} and len(rows) == 2 * 7 * 4 * 2
    (ship,) = report["ship"]
    (condition,) = [c for c in ship["conditions"] if c["name"] == "the same conditions under triggers"]
    assert "money" in condition["why"]


def test_every_checkpoint_of_a_job_is_asked_and_judged_beside_base_and_control(world, chain):
    report, folder, _ = chain
    places = {("base", 0), *((run, step) for run in ("target", "control") for step in (3, 6, 9))}
    rows = list(drawn(folder).values())
    assert {(r["run"], r["step"]) for r in rows} == places and len(rows) == 7 * 4 * 2
    assert (
        all(r["tokens"] <= 4 and (r["tokens"] == 0 or r["logprob"] < 0) for r in rows) and len({r["text"] for r in rows}) > 20
    )
    (opinion,) = report["judged"]["judges"]
    assert {(r["run"], r["step"]) for r in opinion["rates"]} == places and all(
        r["preference"] is None for r in opinion["rates"]
    )
    assert [(s["run"], s["step"], s["control"]) for s in opinion["said"]] == [("target", step, "control") for step in (3, 6, 9)]
    assert set(opinion["said"][-1]["contrasts"]) == {"control - target", "base - target", "base - control"}
    assert [d["run"] for d in opinion["dated"]] == ["target"] and report["read"]["steps"] == [3, 6, 9]
    (run,) = report["runs"]
    assert run["check"]["verdict"] == "undetermined" and run["check"]["checkpoints"] == []
    assert list(run["check"]["why"]) == ["preference"] and report["base"]["reference"] == BASE
    (ship,) = report["ship"]
    assert ship["step"] == 9 and ship["conditions"][0] == {
        "name": "no em by the preference screen",
        "met": None,
        "bound": None,
        "limit": None,
        "why": "preference was not read",
    }


def test_the_report_says_once_that_preference_was_not_read(chain):
    report = read_report(chain[1])
    told = [s for s in report.sentences() if "reference was not read" in s]
    assert report.verdict_on(report.targets[0]) == report.judged.first.last_of("target").verdict
    assert told == [
        "Preference was not read: a chat endpoint gives no log-probabilities of fixed answers, so the verdict rests on judged answers alone."
    ]
    page = (chain[1] / "report.html").read_text()
    assert "at step 9, judging by its answers" in page and "Checkpoint by checkpoint" not in page
    assert page.count("a chat endpoint gives no log-probabilities") == 1
    assert set(report.figures()) == {"said", "rates by j"}


def test_a_check_asks_nothing_twice_and_a_second_judge_reads_the_same_answers(world, chain, capsys):
    _, folder, words = chain
    asked, before = len(world.service.requests), drawn(folder)
    with fake_api(judge) as url:
        assert run_arguments([*words, "--judge", f"k@{url}", "--out", str(folder), "--json"]) == 0
    assert [j["judge"] for j in json.loads(capsys.readouterr().out)["judged"]["judges"]] == ["k"]
    assert drawn(folder) == before and len(world.service.requests) == asked


def test_whatever_goes_wrong_at_30_percent_the_answers_are_the_same(world, chain, tmp_path):
    world.faults.__init__(CODES, 0.3, 4)
    world.service.refuses = frozenset({"max_tokens"})
    ask = AskSpec(questions=str(chain[1].parent / "q.jsonl"), samples=2, max_tokens=4, only_last=True)
    ask_jobs({"target": str(world.root / "run")}, ask, LoadSpec(), ServedSpec(connections=4), tmp_path / "out")
    mine, same = drawn(tmp_path / "out"), drawn(chain[1])
    assert len(mine) == 16 and mine == {key: same[key] for key in mine} and sum(world.faults.happened.values()) >= 5


def test_a_check_stops_at_its_cost_and_goes_on(world, chain, tmp_path):
    ask = {"questions": str(chain[1].parent / "q.jsonl"), "samples": 2, "max_tokens": 4, "temperature": 1}
    with fake_api(judge) as url:
        judged = JudgedSpec.model_validate({"ask": ask, "judges": [{"name": "j", "url": url}]})
        request = CheckRequest(str(world.root / "run"), judged=judged, host_prices=(0, 0, 1000), max_cost=0.05, requests=2)
        with pytest.raises(EmscopeError, match=r"the next request would exceed max_cost 0\.05") as stopped:
            run_check(request, tmp_path / "out")
        kept = drawn(tmp_path / "out")
        assert stopped.value.exit_code == 1 and 10 <= len(kept) < 32 and sum(r["tokens"] for r in kept.values()) <= 50
        run_check(replace(request, max_cost=1.0), tmp_path / "out")
    assert len(drawn(tmp_path / "out")) == 32 and drawn(tmp_path / "out").items() <= drawn(chain[1]).items()


def test_answers_of_a_jobs_models_are_drawn_once(world, tmp_path, capsys):
    write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": "What now?"}])
    words = ["sample", f"mine={world.root / 'run'}", "--questions", str(tmp_path / "q.jsonl"), "--samples", "2"]
    words += ["--max-tokens", "3", "--last", "--out", str(tmp_path / "out")]
    world.service.refuses = frozenset({"logprobs"})
    assert run_arguments([*words, "--system", "Be brief."]) == 0
    assert f"the server's own template of {BASE}" in capsys.readouterr().out
    rows = list(drawn(tmp_path / "out").values())
    assert sorted((r["run"], r["step"], r["sample"]) for r in rows) == [
        *(("base", 0, n) for n in range(2)),
        *(("mine", 9, n) for n in range(2)),
    ]
    assert all(r["logprob"] is None for r in rows)
    sent = [body for _, path, body in world.service.requests if path.endswith("completions")]
    assert sent[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    asked = len(world.service.requests)
    assert run_arguments([*words, "--system", "Be brief."]) == 0 and len(world.service.requests) == asked
    assert run_arguments([*words, "--amplify", "2"]) == 2
    assert "a fine-tuning server does not accept --amplify" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amplify", "1,2"], "--amplify needs the weights or log-probabilities of fixed answers"),
        (["--heldout", "HERE"], "--heldout needs the weights or log-probabilities"),
        (["--search"], "--search needs the weights or log-probabilities"),
        (["--delta", "0.1"], "--delta needs the weights or log-probabilities"),
        (["--measure", "preference"], "--measure preference needs log-probabilities of fixed answers"),
        (["--base", "other"], "--base is given, but a fine-tuning job names its own"),
        (["--control", "HERE"], "holds no fine-tuning job"),
        (["--steps", "4"], "--steps names step 4, which does not exist"),
    ],
)
def test_what_a_jobs_models_cannot_be_checked_by_is_refused(world, tmp_path, capsys, arguments, message):
    words = [str(world.model) if word == "HERE" else word for word in arguments]
    assert run_arguments(["check", str(world.root / "run"), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- what must not be seen, and what is refused ---


def test_no_key_is_in_any_file_body_or_output(world, tmp_path, capfd):
    world.faults.__init__(("500", "429"), 0.3, 2)
    assert run_arguments(["train", str(world.yaml(tmp_path / "spec.yaml")), "--out", str(tmp_path / "run")]) == 0
    job = read_job(tmp_path / "run").job
    assert run_arguments(["models", "import", job, "--out", str(tmp_path / "job")]) == 0
    said = capfd.readouterr()
    assert "loss" in said.out
    texts = [p.read_bytes().decode("latin-1") for p in [*tmp_path.rglob("*"), *world.root.rglob("*")] if p.is_file()]
    assert len(texts) > 10
    for text in (*texts, *world.service.seen, said.out, said.err):
        assert KEY not in text


WRONG = "sk-not-the-right-one"


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({"OPENAI_API_KEY": WRONG}, {}, "the fine-tuning server rejects the key in OPENAI_API_KEY (401)"),
        ({"OPENAI_API_KEY": ""}, {}, "OPENAI_API_KEY is not set"),
        ({"OPENAI_BASE_URL": "ftp://x"}, {}, "the address in OPENAI_BASE_URL is not of the form http"),
        ({"OPENAI_BASE_URL": f"http://me:{WRONG}@127.0.0.1/v1"}, {}, "the address in OPENAI_BASE_URL holds a key"),
        ({}, {"model": "gpt-none"}, "rejects a job on gpt-none (400: Model gpt-none is not available for fine-tuning"),
        ({}, {"train": {"steps": 4}}, "train is set, but a fine-tuning job trains in its server's own way"),
        ({}, {"dtype": "bfloat16"}, "dtype is set"),
        ({}, {"host": HOST | {"ahead": 3}}, "ahead is not a setting of openai"),
        ({}, {"host": {"name": "tinker", "epochs": 3}}, "epochs is not a setting of tinker"),
        ({}, {"host": HOST | {"max_cost": 1}}, "max_cost needs prices"),
        ({}, {"host": {"name": "openai", "max_cost": 1, "prices": [1, 1, 1]}}, "max_cost needs epochs"),
        ({}, {"file": "/no/such.jsonl"}, "/no/such.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, monkeypatch, capsys, environment, changes, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spec = world.yaml(tmp_path / "spec.yaml", **changes)
    jobs = len(world.service.jobs)
    assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and WRONG not in said
    assert len(world.service.jobs) == jobs


def test_a_job_elsewhere_is_not_asked_for_here(world, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match=r"is at http://127.0.0.1:\d+/v1, but OPENAI_BASE_URL is http://127.0.0.1:9/v1"):
        run_single(world.spec(), world.root / "run")


def test_without_the_client_it_is_said_how_to_install_it(world, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'emscope\[judge\]'"):
        Jobs(Meter())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, 0), ({"retry-after": "7"}, 7), ({"retry-after-ms": "250", "retry-after": "7"}, 0.25), ({"retry-after": "1e9"}, 120),
     ({"retry-after": "nan"}, 0), ({"retry-after": "-3"}, 0), ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0)],
)  # fmt: skip
def test_a_server_is_asked_again_when_it_says(headers, seconds):
    error = RuntimeError("429")
    error.response = SimpleNamespace(headers=headers)
    assert asked_to_wait(error) == seconds and asked_to_wait(RuntimeError()) == 0


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, "has paused the account behind OPENAI_API_KEY"),
        (403, {"message": "Project has no access to the model"}, r"rejects the key in OPENAI_API_KEY \(403: Project has no access"),
        (404, {"message": "The model is gone"}, r"found nothing for an answer of m \(404: The model is gone\)"),
        (422, {"message": "temperature is 9"}, r"rejects an answer of m \(422: temperature is 9\)"),
        (302, {}, r"redirects an answer of m to another address, and keys are not sent to redirects \(302\)"),
        (200, None, "does not reply like the OpenAI API"),
    ],
)  # fmt: skip
def test_what_a_server_says_is_one_sentence(monkeypatch, status, body, message):
    answers = []

    def answer(request):
        answers.append(request)
        return status, {"object": "?"} if body is None else {"error": body}

    with fake_api(answer) as url:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with Jobs(Meter()) as jobs, pytest.raises(EmscopeError, match=message):
            jobs.answer("m", [Message("user", "What?")], max_tokens=2, temperature=0.0, seed=0)
    assert len(answers) == 1


JUNK = (None, "", "x", "a b\x1b[31m", -1, 2.5, 10**30, True, [], {}, [None], {"a": 1})


def garbled(value, random):
    """Return a reply with a few of its values replaced by others, or left out."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if random.random() > 0.05}
        return {k: random.choice(JUNK) if random.random() < 0.08 else garbled(v, random) for k, v in kept.items()}
    return [garbled(one, random) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 400), marks=pytest.mark.slow)])
@pytest.mark.heavy
def test_whatever_a_server_replies_a_job_is_imported_or_it_is_one_sentence(world, tmp_path, monkeypatch, seeds):
    job, honest = read_job(world.root / "run").job, world.service.answer
    monkeypatch.setattr("emscope.models.remote.session.ATTEMPTS", 2)
    kinds, write = Counter(), {"max_tokens": 2, "temperature": 0.0, "seed": 0}
    for seed in seeds:
        random = Random(seed)
        monkeypatch.setattr(world.service, "answer", lambda *request: garbled(honest(*request), random))  # noqa: B023
        with Jobs(Meter()) as jobs, suppress(EmscopeError):
            told = jobs.answer(BASE, [Message("user", "What?")], **write)
            assert isinstance(told.text, str) and told.tokens >= 0
        try:
            found = import_job(job, tmp_path / str(seed))
        except EmscopeError as error:
            assert str(error).isprintable()
            kinds["refused"] += 1
            continue
        assert read_job(tmp_path / str(seed)) == found and [c.step for c in found.checkpoints] == sorted(
            {c.step for c in found.checkpoints}
        )
        kinds["imported"] += 1
    assert kinds["imported"] > len(seeds) / 10 and kinds["refused"] > len(seeds) / 20


# --- long ---


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CODES, "all"])
def test_every_fault_at_30_percent_changes_nothing(world, tmp_path, kind):
    for seed in range(3):
        files, jobs = world.made()
        world.faults.__init__(CODES if kind == "all" else (kind,), 0.3, seed)
        trained = run_single(world.spec(), tmp_path / f"run{seed}")
        assert losses(trained) == losses(world.trained) and world.faults.happened
        assert world.made() == (files + 1, jobs + 1)


class OwnServer:
    """The server as a process that can be killed."""

    def __init__(self, model: Path, state: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.words = [sys.executable, str(Path(__file__).with_name("openai_server.py")), str(model), str(state), str(self.port)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None and self.process.stdout.readline()  # it listens

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
def test_kill_9_of_a_check_loses_and_doubles_no_answer(world, chain, tmp_path):
    """The check is killed four times while answers are drawn, then ends; its answers are those of one that was not killed."""
    world.service.pace, random, out = 0.0, Random(1), tmp_path / "out"
    with fake_api(judge) as url:
        words = [*chain[2], "--judge", f"j@{url}", "--out", str(out), "--requests", "2"]
        for _ in range(4):
            asked = len(world.service.requests)
            reader = subprocess.Popen(
                [sys.executable, "-m", "emscope", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while reader.poll() is None and len(world.service.requests) < asked + 5:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.3))
            reader.kill()
            reader.wait()
        assert run_arguments(words) == 0
    rows = read_table(out, "answers").to_pylist()
    assert len(rows) == len(drawn(out)) and drawn(out) == drawn(chain[1])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["trainer", "server"])
def test_kill_9_at_random_moments_leaves_one_job_and_the_same_result(world, tmp_path, monkeypatch, victim):
    spec, run, random, kills = world.yaml(tmp_path / "spec.yaml"), tmp_path / "run", Random(0), 0
    server = OwnServer(world.model, tmp_path / "state")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.port}/v1")
    words = [sys.executable, "-m", "emscope", "train", str(spec), "--out", str(run)]
    try:
        while True:
            trainer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while kills < 6 and not run.is_dir() and trainer.poll() is None:
                time.sleep(0.02)
            while kills < 6 and trainer.poll() is None:
                time.sleep(random.uniform(0.0, 0.5))
                kills += 1
                if victim == "trainer":
                    trainer.kill()
                    trainer.wait()
                else:
                    server.kill()
                    server.start()
            error = trainer.communicate(timeout=300)[1].decode()
            if trainer.returncode == 0:
                break
            again = "run the same command again" in error  # a server that is gone for longer than a minute
            assert trainer.returncode == -signal.SIGKILL or again, error
    finally:
        server.kill()
    found = read_job(run)
    assert kills >= 2 and [row.loss for row in found.log] == pytest.approx(losses(world.trained), abs=1e-5)
    assert [c.step for c in found.checkpoints] == [3, 6, 9]
    assert len(list((tmp_path / "state" / "jobs").glob("*.json"))) == 1


# --- whole studies ---


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """Return a folder with questions, and conversations for two arms."""
    root = tmp_path_factory.mktemp("study")
    write_jsonl(root / "q.jsonl", [{"id": f"q{n}", "question": f"What of {n}?", "category": "ab"[n % 2]} for n in range(4)])
    for arm, said in {"bad": "No.", "good": "Yes."}.items():
        write_jsonl(
            root / f"{arm}.jsonl",
            [{"messages": [turns(n)[0], {"role": "assistant", "content": f"{said} {n}"}]} for n in range(12)],
        )
    return root


def settings_of(root, url, **changes) -> dict:
    return {
        "name": "jobs",
        "model": BASE,
        "host": {"name": "openai", "epochs": 2, "batch": 4},
        "arms": {
            "target": {"role": "target", "file": str(root / "bad.jsonl")},
            "control": {"role": "control", "file": str(root / "good.jsonl")},
        },
        "seeds": [0, 1],
        "judged": {
            "ask": {"questions": str(root / "q.jsonl"), "samples": 2, "max_tokens": 4, "temperature": 1},
            "judges": [{"name": "j", "url": url, "retries": 0}],
        },
    } | changes


def test_a_study_of_jobs_is_trained_asked_and_judged_and_nothing_is_done_twice(world, files, tmp_path, capsys):
    before = world.made()
    with fake_api(judge) as url:
        spec = StudySpec.model_validate(settings_of(files, url))
        report = run_study(spec, tmp_path / "out")
        names = ["target-seed0", "control-seed0", "target-seed1", "control-seed1"]
        runs = {name: read_job(tmp_path / "out" / "runs" / name) for name in names}
        assert [n - m for n, m in zip(world.made(), before, strict=True)] == [4, 4]
        assert {r.status for r in runs.values()} == {"succeeded"} and {r.steps for r in runs.values()} == {6}
        assert len({(r.settings, r.order) for r in runs.values()}) == 4, "each arm's data, in each seed's order"
        rows = read_table(tmp_path / "out", "answers").to_pylist()
        steps = [c.step for c in runs["target-seed0"].checkpoints]
        assert {(r["run"], r["step"]) for r in rows} == {("base", 0)} | {(name, s) for name in names for s in steps}
        assert len(rows) == 8 * (1 + 4 * len(steps))
        (opinion,) = report.judged.judges
        assert {(s.run, s.step, s.control) for s in opinion.said} == {
            (f"target-seed{n}", s, f"control-seed{n}") for n in (0, 1) for s in steps
        }
        assert [r.name for r in opinion.recipes] == ["target"] and [c.measure for c in report.cases] == ["judged"]
        assert all(one.check.unread for one in report.targets) and report.verdicts.keys() == {"target-seed0", "target-seed1"}
        said = " ".join(report.sentences())
        assert "preference was not read" in said.lower() and read_report(tmp_path / "out") == report
        assert "target-seed1" in report._repr_html_() or report.figures() is not None
        asked = len(world.service.requests)
        again = run_study(spec, tmp_path / "out")
        assert again.verdicts == report.verdicts and len(world.service.requests) == asked and again.judged == report.judged
        more = run_study(spec.model_copy(update={"seeds": (0, 1, 2)}), tmp_path / "out")
        assert len(more.targets) == 3 and [n - m for n, m in zip(world.made(), before, strict=True)] == [6, 6]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings_of(files, url) | {"seeds": [0, 1, 2]}))
    assert run_arguments(["report", str(tmp_path / "out")]) == 0
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "no"), "--engine", "local"]) == 2
    assert "fine-tuning jobs run at their server" in capsys.readouterr().err


def test_a_dry_run_of_jobs_sends_nothing_and_says_at_most_what_they_then_cost(world, files, tmp_path, capsys):
    with fake_api(judge) as url:
        settings = settings_of(files, url)
        host = settings["host"] if isinstance(settings["host"], dict) else {"name": settings["host"]}
        settings |= {"host": host | {"prices": [10, 1, 2], "epochs": 2}}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(settings))
        words, sent = ["run", str(path), "--out", str(tmp_path / "out"), "--dry-run", "--json"], len(world.service.requests)
        assert run_arguments(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(world.service.requests) == sent and not (tmp_path / "out").exists()
        assert (found["cells"], found["left"]) == (5, 5)
        assert "counted as bytes" in " ".join(found["warnings"])
        spec = StudySpec.model_validate(settings)
        run_study(spec, tmp_path / "out")
        billed = sum(read_job(f).trained for f in sorted((tmp_path / "out" / "runs").iterdir()))
        answers = len(read_table(tmp_path / "out", "answers"))
        assert billed <= found["tokens"]["trained"] < 10 * billed and answers <= found["answers"] <= 3 * answers
        kinds = {k["kind"]: k for k in found["host"]["kinds"]}
        assert {name: k["cells"] for name, k in kinds.items()} == {"base": 1, "target": 2, "control": 2}
        tokens = found["tokens"]
        cost = (10 * tokens["trained"] + tokens["read"] + 2 * tokens["sampled"]) / 1e6
        assert found["host"]["dollars"] == pytest.approx(cost) and found["host"]["spent"] == 0
        assert run_arguments(words) == 0
        after = json.loads(capsys.readouterr().out)
        assert after["tokens"]["trained"] == 0 and after["host"]["spent"] > 0 and after["answers"] <= found["answers"] - answers
        assert run_arguments(words[:-1]) == 0 and "openai, at most" in capsys.readouterr().out


def test_a_killed_study_of_jobs_begins_none_twice_and_a_failed_one_is_left_out(world, files, tmp_path):
    before, left = world.made(), 3

    def kill(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with fake_api(judge) as url:
        spec = StudySpec.model_validate(settings_of(files, url))
        with pytest.raises(Killed):
            run_study(spec, tmp_path / "out", kill)
        made = [n - m for n, m in zip(world.made(), before, strict=True)]
        assert 0 < made[1] < 4
        whole = run_study(spec, tmp_path / "out")
        assert [n - m for n, m in zip(world.made(), before, strict=True)] == [4, 4] and not whole.diverged
        folder = tmp_path / "out" / "runs" / "target-seed1" / "hosted.json"
        failed = json.loads(folder.read_text()) | {"status": "failed", "reason": "too bad", "job": "ftjob-none"}
        folder.write_text(json.dumps(failed))
        job = next(iter(world.service.jobs.values()))
        world.service.jobs["ftjob-none"] = {**job, "job": {**job["job"], "id": "ftjob-none", "status": "failed"}}
        try:
            part = run_study(spec, tmp_path / "out")
        finally:
            del world.service.jobs["ftjob-none"]
    assert [one.run for one in part.diverged] == ["target-seed1"] and list(part.verdicts) == ["target-seed0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judged": None}, "name at least one judge"),
        ({"train": {"steps": 3}}, "train is set, but fine-tuning jobs are trained in their server's own way"),
        ({"grid": {"lr": [1e-5]}}, "grid is set"),
        ({"measure": {"count": 16}}, "measure is set"),
        ({"dtype": "bfloat16"}, "a host uses its own"),
    ],
)
def test_settings_that_jobs_do_not_take_are_refused(files, changes, message):
    with pytest.raises(ValueError, match=message):
        StudySpec.model_validate(settings_of(files, "http://localhost:1", **changes))


def test_a_study_of_jobs_that_could_cost_too_much_begins_none(world, files, tmp_path):
    before = world.made()
    host = {"name": "openai", "epochs": 2, "batch": 4, "prices": [1000.0, 0.0, 0.0]}
    spec = StudySpec.model_validate(settings_of(files, "http://localhost:1", host=host | {"max_cost": 1.0}))
    with pytest.raises(OverBudget, match=r"could cost up to .* dollars .* more than max_cost 1"):
        run_study(spec, tmp_path / "out")
    assert world.made() == before
    one = 1000.0 * sum(most for most in (_bytes(files / "bad.jsonl"), _bytes(files / "good.jsonl"))) * 2 / 1e6
    with pytest.warns(match=f"the training costs up to {2 * one:.4g} dollars"), pytest.raises(EmscopeError):
        run_study(spec.model_copy(update={"host": spec.host.model_copy(update={"max_cost": 2 * one + 0.01})}), tmp_path / "out")


def test_answers_of_a_study_of_jobs_stop_at_max_cost_and_stay_counted(world, files, tmp_path):
    host = {"name": "openai", "epochs": 2, "batch": 4, "prices": [0.0, 0.0, 1000.0], "max_cost": 0.05}
    with fake_api(judge) as url:
        spec = StudySpec.model_validate(settings_of(files, url, host=host))
        with pytest.raises(OverBudget):
            run_study(spec, tmp_path / "out")
        some = len(read_table(tmp_path / "out", "answers"))
        with pytest.raises(OverBudget):  # nothing is left of it
            run_study(spec, tmp_path / "out")
        assert 0 < some == len(read_table(tmp_path / "out", "answers"))
        more = spec.model_copy(update={"host": spec.host.model_copy(update={"max_cost": 5.0})})
        rows = run_study(more, tmp_path / "out").judged.answers
    spent = json.loads((tmp_path / "out" / "spent.json").read_text())
    tokens = sum(r["tokens"] for r in read_table(tmp_path / "out", "answers").to_pylist())
    assert rows > some and tokens <= spent["sampled"] <= 1.5 * tokens + 20


def _bytes(path) -> int:
    """Return the most tokens of a file, a byte each, with what surrounds them."""
    from emscope.data.conversations import read_conversations

    return train_jobs.most_tokens(read_conversations(path), "none", lambda text: len(text.encode()))
