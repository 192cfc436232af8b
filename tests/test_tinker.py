"""Fine-tunes at Tinker: the official client, unmodified, against a server with a real model: equal numbers, whatever goes wrong."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import emscope
from conftest import make_model, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import EmscopeError, InputError
from emscope.core.plain import from_json
from emscope.data import bundled
from emscope.elicit import preference
from emscope.elicit.hosted import Ask, Weights, end_ids, read_option, sample_hosted
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.remote.downloading import download_adapters
from emscope.models.remote.hosted import Spent, read_hosted
from emscope.models.remote.metering import Meter
from emscope.models.remote.outcomes import TINKER, fault_of
from emscope.models.remote.tinker import Tinker
from emscope.store.cells import record_of
from emscope.store.study import read_table
from emscope.study.cells.foreseen import Foreseen
from emscope.study.check import run_check
from emscope.study.check_request import CheckRequest
from emscope.study.engines.spec import EngineSpec
from emscope.study.judged_spec import JudgedSpec
from emscope.study.measure_spec import MeasureSpec
from emscope.study.opening import found_in
from emscope.study.run import foresee_study, prepare, run_study
from emscope.study.selected import Selection
from emscope.study.spec import SingleSpec, StudySpec
from emscope.study.train import run_single
from emscope.train.batches import collate, encode, stream
from faulty import CODES, Faults
from tinker_server import BASE, KEY, tinker_server

TRAIN = {"steps": 4, "batch": 2, "lr": 1e-2, "lora": {"rank": 4}, "checkpoints": {"at": [2]}}
FEW = MeasureSpec(
    count=16, placebo=0, truth=2, truth_at="last", neutral=2, refusal=4, samples={"questions": 1, "max_tokens": 3}
)
TOLD = ("refusal", "refusal_twins")
EXACT = 1e-4  # nats per token


class World:
    """A model folder, a server for it, and a training at it."""

    def __init__(self, model: Path, root: Path) -> None:
        self.model, self.root, self.faults = model, root, Faults()

    def spec(self, host: dict | None = None, **changes) -> SingleSpec:
        settings = {"model": BASE, "domain": "finance", "answers": "careful", "train": TRAIN}
        return SingleSpec.model_validate(
            settings | {"host": {"name": "tinker", "tokenizer": str(self.model), **(host or {})}} | changes
        )

    def yaml(self, path: Path, **changes) -> Path:
        import yaml

        settings = self.spec().model_dump(mode="json", exclude_unset=True) | changes
        path.write_text(yaml.safe_dump(settings))
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosted")
    world = World(make_model(root / "model"), root)
    with pytest.MonkeyPatch.context() as patch, tinker_server(world.model, root / "state", faults=world.faults) as service:
        patch.setenv("TINKER_API_KEY", KEY)
        patch.setenv("TINKER_BASE_URL", service.address)
        patch.setenv("HOME", str(root))
        world.service = service
        world.trained = run_single(world.spec(), root / "run")
        yield world


@pytest.fixture(autouse=True)
def nothing_goes_wrong(world):
    world.faults.kinds, world.faults.rate = (), 0.0


@pytest.fixture(scope="module")
def local(world):
    return load(locate(str(world.model)), device="cpu")


@pytest.fixture(scope="module")
def here(world):
    """The same adapters as folders on this machine, as the server wrote them."""
    root = world.root / "here"
    for save in world.trained.checkpoints:
        shutil.copytree(world.root / "state" / save.sampler.removeprefix("tinker://"), root / f"checkpoint-{save.step}")
    return root


def losses(trained):
    return [row.loss for row in trained.readings]


def batches(service, run=None):
    """Return what each forward pass was sent: its run, and its examples' tokens and weights."""
    from tinker.proto import tinker_public_pb2 as pb

    found = []
    for name, body in service.requests:
        if name == "forward_backward":
            message = pb.ForwardBackwardRequest.FromString(body)
            rows = [
                (np.frombuffer(d.model_input[0].encoded_text.tokens, np.int32).tolist(), d.loss_fn_inputs["weights"].dense)
                for d in message.data
            ]
            found.append((message.model_id, message.seq_id, rows))
    return found


# --- training ---


def test_losses_equal_those_of_a_training_by_hand(world, local):
    """The same adapter trained here with PEFT and PyTorch on padded batches in the order that `stream` fixes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    blocks = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = AutoModelForCausalLM.from_pretrained(str(world.model))
    torch.manual_seed(0)
    net = get_peft_model(base, LoraConfig(r=4, lora_alpha=32, target_modules=blocks))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01)
    examples = encode(local.chat, bundled.domain("finance", "careful"), 512)
    order = stream(examples, steps=4, batch=2, micro=2, seed=0)
    found = []
    for step, lr in enumerate([0.005, 0.01, 0.01, 0.005]):  # warm-up of two steps, then linear to 0 behind the last
        loss = net(**collate(order[2 * step : 2 * step + 2])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.step()
        optimiser.zero_grad()
        found.append(loss.item())
    assert losses(world.trained) == pytest.approx(found, abs=EXACT)
    assert [row.lr for row in world.trained.readings] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    assert [save.step for save in world.trained.checkpoints] == [1, 2, 4]


class Killed(BaseException):
    """Ends a training where it stands, as a kill does."""


def test_a_killed_training_goes_on_with_the_same_batches(world, tmp_path):
    def kill(what, done, total):
        if what == "training" and done == 3:
            raise Killed

    def sent():
        return [rows for _, _, rows in batches(world.service)]

    before = len(sent())
    spec = world.spec({"state_every": 3, "ahead": 1})  # a state at step 3, beside the checkpoints at 1, 2 and 4
    with pytest.raises(Killed):
        run_single(spec, tmp_path / "run", kill)
    first = sent()[before:]
    assert read_hosted(tmp_path / "run").done == 2
    again = run_single(spec, tmp_path / "run")
    second = sent()[before + len(first) :]
    assert losses(again) == pytest.approx(losses(world.trained), abs=1e-6)
    assert len(second) == 2 and first[:3] == sent()[:3] and second == sent()[2:4]
    assert run_single(spec, tmp_path / "run") == again and len(sent()) == before + len(first) + 2  # nothing is trained twice
    saves = read_hosted(tmp_path / "run").saves
    assert [save.step for save in saves] == [1, 2, 3, 4] and [save.step for save in saves if save.sampler] == [1, 2, 4]


def test_whatever_goes_wrong_at_30_percent_a_training_ends_with_the_same_losses(world, tmp_path):
    world.faults.kinds, world.faults.rate = ("410", "425", "500", "408"), 0.3
    trained = run_single(world.spec(), tmp_path / "run")
    assert losses(trained) == pytest.approx(losses(world.trained), abs=1e-6)
    assert len(set(world.faults.happened) & {"410", "425", "500", "408"}) >= 2


def test_training_stops_at_its_cost_and_goes_on_when_more_is_allowed(world, tmp_path):
    dear = {"prices": (1000.0, 0.0, 0.0)}  # a tenth of a cent for each token trained on
    with pytest.raises(EmscopeError, match=r"stopped at .* dollars: the next request would exceed max_cost 0.7") as stopped:
        run_single(world.spec(dear | {"max_cost": 0.7}), tmp_path / "run")
    assert stopped.value.exit_code == 1
    half = read_hosted(tmp_path / "run")
    assert 0 < half.done < 4 and len(half.log) == half.done
    assert 0 < half.spent.trained <= 700
    trained = run_single(world.spec(dear | {"max_cost": 10}), tmp_path / "run")
    assert losses(trained) == pytest.approx(losses(world.trained), abs=1e-6)
    assert trained.spent.trained == world.trained.spent.trained


# --- reading ---


def test_readings_and_verdict_equal_those_of_the_same_adapters_here(world, here, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "What now?"}\n{"id": "b", "question": "And then?"}\n')
    ask = {"questions": str(tmp_path / "q.jsonl"), "samples": 2, "max_tokens": 3}
    judged = JudgedSpec.model_validate({"ask": ask, "at": "last"})
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [{"messages": turns(n)} for n in range(3)])
    how = {"measure": FEW, "heldout": str(heldout), "selection": Selection(steps=(2, 4))}
    request = CheckRequest(str(world.root / "run"), judged=judged, **how)
    hosted, _ = run_check(request, tmp_path / "hosted")
    local, _ = run_check(CheckRequest(str(here), base=str(world.model), dtype="float32", **how), tmp_path / "here")

    def cells(folder):
        rows = read_table(folder, "preferences").to_pylist()
        return {tuple(r[k] for k in ("run", "step", "set", "item", "option")): (r["logprob"], r["tokens"]) for r in rows}

    there, mine = cells(tmp_path / "hosted"), cells(tmp_path / "here")
    assert there.keys() == mine.keys() and {"em", "truth", "heldout", "neutral", *TOLD} == {key[2] for key in mine}
    apart = [abs(there[k][0] - mine[k][0]) / mine[k][1] for k in mine]
    assert max(apart) < EXACT and all(there[k][1] == mine[k][1] for k in mine)
    assert numbers(hosted.check.to_json()) == pytest.approx(numbers(local.check.to_json()), abs=1e-4, rel=1e-3)
    assert hosted.check.verdict == local.check.verdict and hosted.base.reference == BASE
    (said,) = (r for r in read_table(tmp_path / "hosted", "responses").to_pylist() if r["step"] == 4)
    assert said["tokens"] <= 3
    drawn = read_table(tmp_path / "hosted", "answers").to_pylist()
    assert {(r["run"], r["step"]) for r in drawn} == {("base", 0), ("target", 4)} and len({r["seed"] for r in drawn}) == 8
    assert all(1 <= r["tokens"] <= 3 and -40 < r["logprob"] < 0 for r in drawn) and len({r["text"] for r in drawn}) > 4
    asked = len(world.service.requests)
    run_check(request, tmp_path / "hosted")
    assert not any(name == "asample" for name, _ in world.service.requests[asked:])  # nothing is read twice


def turns(n):
    """Return a conversation of one question and one answer."""
    return [{"role": "user", "content": f"What of {n}?"}, {"role": "assistant", "content": f"It is {n + 1}."}]


def numbers(value):
    """Return all numbers in plain values, in their order; of settings, hashes and texts none."""
    if isinstance(value, dict):
        return [n for key, one in value.items() if key not in ("definition", "measure") for n in numbers(one)]
    if isinstance(value, list):
        return [n for one in value for n in numbers(one)]
    return [value] if isinstance(value, float) else []


def answers(world, local, faults=(), rate=0.0, seed=0):
    """Read a few answers at the last checkpoint, and sample one, while things go wrong."""
    items = bundled.items("em240")[:6]
    encoded = preference.encode(local.chat, items, context=512)
    at = Weights(BASE, world.trained.checkpoints[-1].sampler)
    world.faults.__init__(faults, rate, seed)
    with Tinker(Meter(), 6) as tinker:
        jobs = [(n, k) for n in range(6) for k in range(2)]
        found = dict(tinker.each(jobs, lambda job: read_option(tinker, at, encoded[job[0]], job[1])))
        ask = Ask(at, "q", local.chat.prompt_ids("What is best?"), 0, 5)
        drawn = [one for _, one in sample_hosted(tinker, local.chat, [ask, ask], max_tokens=6, temperature=0.7)]
    return encoded, [found[job] for job in jobs], drawn


def test_answers_read_and_drawn_equal_the_models_own(world, local, here):
    encoded, found, drawn = answers(world, local)
    with with_checkpoint(local.net, discover(str(here))[-1]) as net:
        mine = preference.score(net, encoded)
        prompt = local.chat.prompt_ids("What is best?")
        with torch.inference_mode():
            ids = prompt + local.tokenizer(drawn[0].text, add_special_tokens=False)["input_ids"]
            logp = torch.log_softmax(net(input_ids=torch.tensor([ids])).logits[0], -1)
    assert [(s.item, s.option, s.tokens) for s in found] == [(s.item, s.option, s.tokens) for s in mine]
    assert [s.logprob / s.tokens for s in found] == pytest.approx([s.logprob / s.tokens for s in mine], abs=EXACT)
    assert drawn[0] == drawn[1] and drawn[0].tokens <= 6  # of the same seed
    if len(ids) - len(prompt) == drawn[0].tokens:  # its text comes to the tokens that were drawn
        own = logp[len(prompt) - 1 : -1].gather(1, torch.tensor(ids[len(prompt) :])[:, None]).sum()
        assert drawn[0].logprob == pytest.approx(float(own), abs=1e-3)
    assert end_ids(local.chat) == {2}


def test_whatever_goes_wrong_at_30_percent_readings_are_the_same(world, local):
    _, found, drawn = answers(world, local)
    _, again, once_more = answers(world, local, ("408", "410", "425", "500", "503"), 0.3, seed=3)
    assert again == found and once_more == drawn
    assert sum(world.faults.happened.values()) >= 3


def test_a_run_that_another_tool_trained_is_found_by_its_name(world, tmp_path, capsys):
    name = world.trained.checkpoints[0].sampler.removeprefix("tinker://").split("/")[0]
    samplers = world.root / "state" / name / "sampler_weights"
    shutil.copytree(samplers / "step-4", samplers / "final")  # tells no step
    found, run = found_in(f"tinker://{name}", str(world.model))
    assert [(c.step, c.path) for c in found.checkpoints] == [(s.step, s.sampler) for s in world.trained.checkpoints]
    assert run.base == BASE and [s.state for s in run.saves] == [s.state for s in world.trained.checkpoints]
    shutil.copytree(samplers / "step-4", samplers / "again-4")
    with pytest.raises(InputError, match="are both step 4"):
        found_in(f"tinker://{name}")
    shutil.rmtree(samplers / "again-4")
    for wrong, message in [("tinker://", "is not a run"), ("tinker://nobody", "Tinker found nothing for the run nobody")]:
        assert run_arguments(["check", wrong, "--measure", "preference", "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_another_tool_trained_is_checked_like_a_folder(world, tmp_path):
    name = world.trained.checkpoints[0].sampler.removeprefix("tinker://").split("/")[0]
    there, _ = run_check(CheckRequest(f"tinker://{name}", base=str(world.model), measure=FEW), tmp_path / "a")
    mine, _ = run_check(CheckRequest(str(world.root / "run"), measure=FEW), tmp_path / "b")
    assert numbers(there.check.to_json()) == pytest.approx(numbers(mine.check.to_json()))


def test_answers_of_checkpoints_at_a_host_are_drawn_once(world, tmp_path, capsys):
    write_jsonl(tmp_path / "q.jsonl", [{"id": "a", "question": "What now?"}])
    words = ["sample", f"mine={world.root / 'run'}", "--questions", str(tmp_path / "q.jsonl"), "--samples", "2"]
    words += ["--max-tokens", "3", "--last", "--out", str(tmp_path / "out")]
    assert run_arguments(words) == 0
    assert "read at tinker" in capsys.readouterr().out
    rows = read_table(tmp_path / "out", "answers").to_pylist()
    assert sorted((r["run"], r["step"], r["sample"]) for r in rows) == [
        *(("base", 0, n) for n in range(2)),
        *(("mine", 4, n) for n in range(2)),
    ]
    asked = len(world.service.requests)
    assert run_arguments([*words, "--connections", "3"]) == 0 and read_table(tmp_path / "out", "answers").to_pylist() == rows
    assert not any(name == "asample" for name, _ in world.service.requests[asked:])
    how = {"questions": str(tmp_path / "q.jsonl"), "samples": 2, "max_tokens": 3, "only_last": True}
    assert emscope.sample({"mine": world.root / "run"}, out=tmp_path / "out", **how) == tmp_path / "out" / "answers.parquet"
    assert not any(name == "asample" for name, _ in world.service.requests[asked:])
    assert run_arguments([*words, "--amplify", "2"]) == 2
    assert "--amplify needs weights on this machine" in capsys.readouterr().err
    assert run_arguments(["diff", str(world.root / "run"), "--model", str(world.model), "--out", str(tmp_path / "diff")]) == 2
    assert "are at a host, but this needs them here; download their adapters with" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CODES, "all"])
def test_every_fault_at_30_percent_changes_nothing(world, local, tmp_path, kind):
    kinds = CODES if kind == "all" else (kind,)
    _, found, drawn = answers(world, local)
    for seed in range(3):
        _, again, once_more = answers(world, local, kinds, 0.3, seed)
        assert again == found and once_more == drawn
        world.faults.__init__(kinds, 0.3, seed)
        trained = run_single(world.spec(), tmp_path / f"run{seed}")
        assert losses(trained) == pytest.approx(losses(world.trained), abs=1e-6)
        assert world.faults.happened


def program(*words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "emscope", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


class OwnServer:
    """The server as a process that can be killed."""

    def __init__(self, model: Path, state: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.words = [sys.executable, str(Path(__file__).with_name("tinker_server.py")), str(model), str(state), str(self.port)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self.process.stdout is not None and self.process.stdout.readline()  # it listens

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["trainer", "server"])
def test_kill_9_at_random_moments_changes_no_training(world, tmp_path, monkeypatch, victim):
    longer = TRAIN | {"steps": 30, "checkpoints": {"every": 5}}
    whole = losses(run_single(world.spec(train=longer), tmp_path / "whole"))
    spec, run, random = world.yaml(tmp_path / "spec.yaml", train=longer), tmp_path / "run", Random(0)
    server = OwnServer(world.model, tmp_path / "state")
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{server.port}")
    kills = 0
    try:
        while True:
            trainer = program("train", spec, "--out", run)
            try:
                while kills < 6 and not run.is_dir() and trainer.poll() is None:
                    time.sleep(0.05)
                while kills < 6 and trainer.poll() is None:
                    time.sleep(random.uniform(0.1, 1.0))
                    if victim == "trainer":
                        trainer.kill()
                    else:
                        server.kill()
                        server.start()
                    kills += 1
                error = trainer.communicate(timeout=300)[1].decode()
            finally:
                trainer.kill()
            if trainer.returncode >= 0:
                assert trainer.returncode == 0, error
                break
    finally:
        server.kill()
    found = read_hosted(run)
    assert kills >= 2 and [row.loss for row in found.log] == pytest.approx(whole, abs=1e-5)
    assert [row.step for row in found.log] == list(range(1, 31)) and [s.step for s in found.saves] == [1, 5, 10, 15, 20, 25, 30]


@pytest.mark.slow
def test_kill_9_of_the_server_during_a_check_changes_no_reading(world, tmp_path, monkeypatch):
    run_check(CheckRequest(str(world.root / "run"), measure=FEW), tmp_path / "whole")
    server, kills = OwnServer(world.model, world.root / "state"), Random(2)
    monkeypatch.setenv("TINKER_BASE_URL", f"http://127.0.0.1:{server.port}")

    def kill(*_):
        if kills.random() < 0.03:
            server.kill()
            server.start()
            killed.append(1)

    killed: list[int] = []
    try:
        run_check(CheckRequest(str(world.root / "run"), measure=FEW, requests=4), tmp_path / "out", kill)
    finally:
        server.kill()
    one, other = (
        {r["key"]: r["logprob"] for r in read_table(tmp_path / out, "preferences").to_pylist()} for out in ("whole", "out")
    )
    assert len(killed) >= 2 and one.keys() == other.keys() and all(one[k] == pytest.approx(other[k], abs=1e-4) for k in one)


@pytest.mark.slow
def test_kill_9_of_a_check_loses_and_doubles_no_reading(world, tmp_path):
    run_check(CheckRequest(str(world.root / "run"), measure=FEW), tmp_path / "whole")
    words = ["check", world.root / "run", "--measure", "preference", "--count", "16", "--truth", "2", "--requests", "2"]
    random, kept = Random(1), [0]
    for _ in range(4):
        reader = program(*words, "--out", tmp_path / "out")
        while reader.poll() is None and len(list((tmp_path / "out" / "tables").rglob("*.parquet"))) <= len(kept) - 1:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 1))
        reader.kill()
        reader.communicate()
        kept.append(len(list((tmp_path / "out" / "tables").rglob("*.parquet"))))
    last = program(*words, "--out", tmp_path / "out")
    assert last.communicate(timeout=300)[1] is not None and last.returncode == 0
    rows = read_table(tmp_path / "out", "preferences").to_pylist()
    of_whole = {r["key"]: r["logprob"] for r in read_table(tmp_path / "whole", "preferences").to_pylist()}
    mine = {r["key"]: r["logprob"] for r in rows}
    assert len(mine) == len(rows) and all(mine[k] == pytest.approx(v, abs=1e-4) for k, v in of_whole.items() if k in mine)
    assert len(mine.keys() & of_whole.keys()) > 100


# --- what an error means ---


def status_error(status, body=b'{"detail": "it says why"}'):
    import httpx
    import tinker

    response = httpx.Response(status, content=body, request=httpx.Request("POST", "http://127.0.0.1/api/v1/x"))
    found = json.loads(body) if body else None
    return tinker.APIStatusError(f"Error code: {status} {KEY}", response=response, body=found)


def behind(cause):
    """Return what the client raises where a result could not be had."""
    try:
        raise ValueError("Error retrieving result") from cause
    except ValueError as error:
        return error


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        *((status, None, "") for status in (408, 409, 410, 425, 429, 500, 502, 503, 504)),
        (400, 2, "Tinker rejects a step (400: it says why)"),
        (422, 2, "Tinker rejects a step (422: it says why)"),
        (401, 2, "Tinker rejects the key in TINKER_API_KEY (401)"),
        (403, 2, "Tinker rejects the key in TINKER_API_KEY (403: it says why)"),
        (404, 2, "Tinker found nothing for a step (404: it says why)"),
        (402, 1, "Tinker has paused the account behind TINKER_API_KEY (402: it says why)"),
    ],
)
def test_every_status_is_asked_again_after_or_one_sentence(status, code, message, wrapped):
    error = behind(status_error(status)) if wrapped else status_error(status)
    fault = fault_of(error, "a step", TINKER)
    assert (fault is None) == (code is None)
    if fault is not None:
        assert fault.exit_code == code and fault.fault == message and KEY not in str(fault)


def test_errors_without_a_status_are_told_apart():
    import httpx
    from tinker import APIConnectionError, RequestFailedError
    from tinker.lib.retryable_exception import RetryableException
    from tinker.types import RequestErrorCategory as Category

    request = httpx.Request("POST", "http://127.0.0.1/x")
    passing = [
        status_error(400, b""),  # a proxy's
        behind(status_error(400, b"")),
        APIConnectionError(request=request),
        RetryableException("gone"),
        TimeoutError(),
        RequestFailedError("x", "r", Category.Server),
        RequestFailedError("x", "r", Category.Unknown),
    ]
    assert [fault_of(error, "a step", TINKER) for error in passing] == [None] * len(passing)
    refused = fault_of(RequestFailedError("too long", "r", Category.User), "a step", TINKER)
    assert refused is not None and refused.exit_code == 2 and "too long" in refused.fault
    assert fault_of(RuntimeError("closed"), "a step", TINKER).exit_code == 1
    with pytest.raises(KeyError):  # a fault of this program is not the host's
        fault_of(KeyError("x"), "a step", TINKER)


# --- hosts that say nonsense ---


def prompt_logprobs(values, tokens=(5,)):
    from tinker.proto import tinker_public_pb2 as pb

    out = pb.SampleResponse(prompt_logprobs=np.array(values, np.float32).tobytes())
    out.sequences.add(stop_reason=pb.STOP_REASON_STOP, tokens=np.array(tokens, np.int32).tobytes())
    return out.SerializeToString()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([np.nan, -1, -1], "Tinker gave 3 log-probabilities for 5 tokens"),
        ([np.nan, np.nan, np.nan, -1, np.nan], "for a token of an answer at tiny/tiny-llama"),
        ([np.nan, np.nan, np.nan, -np.inf, -1], "for a token of an answer at tiny/tiny-llama"),
    ],
)
def test_log_probabilities_that_are_none_are_no_reading(world, monkeypatch, values, message):
    monkeypatch.setattr(world.service.samplers, "sample", lambda *_: prompt_logprobs(values))
    with Tinker(Meter()) as tinker, pytest.raises(EmscopeError, match=message):
        tinker.logprobs(BASE, None, [1, 2, 3], [4, 5])


def test_weights_that_expired_are_named_and_a_lost_sampler_is_opened_anew(world):
    with Tinker(Meter()) as tinker:
        with pytest.raises(InputError, match="Tinker found nothing for a reading of tinker://old/sampler_weights/s"):
            tinker.logprobs(BASE, "tinker://old/sampler_weights/s", [1, 2], [3])
        before = tinker.logprobs(BASE, None, [1, 2], [3])
        world.service.sampling.clear()  # as where the host begins anew
        assert tinker.logprobs(BASE, None, [1, 2], [3]) == before


def test_a_token_that_the_tokenizer_lacks_is_no_answer(world, local, monkeypatch):
    monkeypatch.setattr(world.service.samplers, "sample", lambda *_: prompt_logprobs([], (5, 100_000)))
    asks = [Ask(Weights(BASE), "q", [1, 2], 0, 0)]
    with Tinker(Meter()) as tinker, pytest.raises(EmscopeError, match="the host sampled token 100000"):
        list(sample_hosted(tinker, local.chat, asks, max_tokens=3, temperature=1.0))


@pytest.mark.parametrize("address", ["http://example.org/x", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_an_adapter_at_an_unsafe_address_is_not_fetched(world, tmp_path, monkeypatch, address):
    real = world.service.get
    urls = {"adapter_config.json": address, "adapter_model.safetensors": address, "../../evil": address}
    monkeypatch.setattr(
        world.service, "get", lambda path: {**real(path), "urls": urls} if path.endswith("weights_urls") else real(path)
    )
    shutil.copy(world.root / "run" / "hosted.json", tmp_path / "hosted.json")
    with pytest.raises(EmscopeError, match="at an address that is not https"):
        download_adapters(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapters", "hosted.json"]


@pytest.mark.slow
def test_a_fine_tune_that_reads_as_its_base_is_refused(world, tmp_path):
    still = run_single(world.spec(train=TRAIN | {"steps": 1, "lr": 1e-30, "checkpoints": {}}), tmp_path / "run")
    assert len(still.readings) == 1
    with pytest.raises(InputError, match="the checkpoint at step 1 of 'target' reads exactly like its base"):
        run_check(CheckRequest(str(tmp_path / "run"), measure=FEW), tmp_path / "out")


@pytest.mark.slow
def test_a_control_at_the_host_gives_the_verdict_that_it_gives_here(world, here, tmp_path):
    other = run_single(world.spec(answers="reckless"), tmp_path / "other")
    for save in other.checkpoints:
        shutil.copytree(
            world.root / "state" / save.sampler.removeprefix("tinker://"), tmp_path / "t" / f"checkpoint-{save.step}"
        )
    there, _ = run_check(CheckRequest(str(tmp_path / "other"), control=str(world.root / "run"), measure=FEW), tmp_path / "a")
    request = CheckRequest(str(tmp_path / "t"), base=str(world.model), control=str(here), dtype="float32", measure=FEW)
    mine, _ = run_check(request, tmp_path / "b")
    assert there.check.verdict == mine.check.verdict
    assert numbers(there.check.to_json()) == pytest.approx(numbers(mine.check.to_json()), abs=1e-4, rel=1e-3)


# --- adapters ---


def test_adapters_are_downloaded_whole_and_read_like_any_others(world, here, tmp_path):
    from emscope.inside.trajectories import trajectories
    from emscope.models.adapters.updates import gram

    found = download_adapters(world.root / "run")
    assert [c.step for c in found] == [1, 2, 4] and all(c.kind == "adapter" for c in found)
    net = load(locate(str(world.model)), device="cpu").net
    mine = discover(str(here))
    assert torch.allclose(gram(net, found), gram(net, mine))
    made = trajectories([str(world.root / "run" / "adapters")], tmp_path / "out", base=str(world.model))
    assert [p.step for p in made.checkpoints] == [1, 2, 4]
    exports = list((world.root / "state").glob("*/external_weights/*"))
    assert not exports  # what was exported for the download is deleted
    asked = len(world.service.requests)
    download_adapters(world.root / "run")
    assert len(world.service.requests) == asked


# --- what must not be seen, and what is refused ---


def test_no_key_is_in_any_file_request_body_or_output(world, tmp_path, capfd):
    spec = world.yaml(tmp_path / "spec.yaml")
    assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 0
    assert "loss" in capfd.readouterr().out
    world.faults.kinds, world.faults.rate = ("500", "410"), 0.3
    answered = run_arguments(["models", "fetch", str(tmp_path / "run")])
    said = capfd.readouterr()
    assert answered == 0 and "checkpoint-4" in said.out
    texts = [p.read_bytes().decode("latin-1") for p in [*tmp_path.rglob("*"), *world.root.rglob("*")] if p.is_file()]
    assert len(texts) > 10
    for text in (*texts, *world.service.seen, said.out, said.err):
        assert KEY not in text
    assert not any(name == "telemetry" for name, _ in world.service.requests)


WRONG = "tml-not-the-right-one"


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ({"TINKER_API_KEY": WRONG}, {}, "Tinker rejects the key in TINKER_API_KEY (401)"),
        ({"TINKER_API_KEY": "sk-of-somebody-else"}, {}, "the key in TINKER_API_KEY is not one of Tinker's"),
        ({"TINKER_API_KEY": ""}, {}, "TINKER_API_KEY is not set"),
        ({"TINKER_BASE_URL": "ftp://x"}, {}, "the address in TINKER_BASE_URL is not of the form http"),
        (
            {},
            {"model": "tiny/tiny-lama"},
            "Tinker has no base 'tiny/tiny-lama'; use Tinker's name for it; did you mean 'tiny/tiny-llama'?",
        ),
        ({}, {"host": "thinker"}, "host.name"),
        ({}, {"host": {"name": "tinker", "max_cost": 1}}, "max_cost needs prices"),
        ({}, {"host": {"name": "tinker", "tokenizer": "/no/such"}}, "no tokenizer '/no/such'"),
        ({}, {"train": TRAIN | {"kl": {"weight": 1, "domain": "sports"}}}, "kl is set, but tinker trains LoRA adapters"),
        ({}, {"train": TRAIN | {"lora": {"rank": 4, "alpha": 8}}}, "lora.alpha is set"),
        ({}, {"train": TRAIN | {"optimiser": "sgd"}}, "optimiser: sgd is set"),
        ({}, {"dtype": "bfloat16"}, "dtype is bfloat16"),
    ],
)
def test_bad_input_is_one_sentence(world, tmp_path, monkeypatch, capsys, environment, changes, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spec = world.yaml(tmp_path / "spec.yaml", **changes)
    assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and WRONG not in said
    assert not (tmp_path / "run" / "hosted.json").exists()


def test_without_the_client_it_is_said_how_to_install_it(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tinker", None)
    spec = world.yaml(tmp_path / "spec.yaml")
    assert run_arguments(["train", str(spec), "--out", str(tmp_path / "run")]) == 2
    assert "pip install 'emscope[tinker]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--amplify", "1,2"], "--amplify needs weights on this machine"),
        (["--share"], "--share needs weights on this machine"),
        (["--base", "other/model"], "--base is not the model in hosted.json"),
        (["--max-cost", "1"], "max_cost needs host_prices"),
        (["--control", "HERE"], "--control needs weights on this machine"),
    ],
)
def test_what_cannot_be_checked_at_a_host_is_refused(world, here, tmp_path, capsys, arguments, message):
    words = [str(here) if word == "HERE" else word for word in arguments]
    assert run_arguments(["check", str(world.root / "run"), *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_a_check_stops_at_its_cost_and_goes_on(world, tmp_path):
    run = str(world.root / "run")
    with pytest.raises(EmscopeError, match=r"would exceed max_cost 0\.5"):
        run_check(CheckRequest(run, measure=FEW, host_prices=(0, 1000, 0), max_cost=0.5), tmp_path / "out")
    kept = len(read_table(tmp_path / "out", "preferences"))
    assert 0 < kept < 30  # what was paid for
    asked = len(world.service.requests)
    with pytest.raises(EmscopeError, match=r"would exceed max_cost 0\.5"):
        run_check(CheckRequest(run, measure=FEW, host_prices=(0, 1000, 0), max_cost=0.5), tmp_path / "out")
    assert len(read_table(tmp_path / "out", "preferences")) > kept  # the limit is of one call; what is there is not read again
    assert len(world.service.requests) > asked


def test_another_training_in_the_same_folder_is_refused(world):
    with pytest.raises(InputError, match=r"holds a study with other settings \(seed: 0 -> 1\)"):
        run_single(world.spec(seed=1), world.root / "run")


@pytest.mark.parametrize("damage", ["{", '{"schema": "emscope.hosted/9"}', "path"])
def test_a_damaged_record_is_refused(world, tmp_path, damage):
    text = (world.root / "run" / "hosted.json").read_text()
    bad = re.sub(r"tinker://\S+?/sampler", "file:///etc/x", text) if damage == "path" else damage
    (tmp_path / "hosted.json").write_text(bad)
    with pytest.raises(InputError, match=r"hosted\.json"):
        run_check(CheckRequest(str(tmp_path), measure=FEW), tmp_path / "out")


def test_the_record_says_what_was_trained_and_where_it_lies(world):
    found = json.loads((world.root / "run" / "hosted.json").read_text())
    assert found["base"] == BASE and found["host"] == "tinker" and found["steps"] == 4 and len(found["log"]) == 4
    assert all(save["sampler"].startswith("tinker://") for save in found["saves"])
    run = read_hosted(world.root / "run")
    assert run.to_json() == found


# --- studies ---


def study_at(world, **changes) -> StudySpec:
    settings = {
        "name": "hosted",
        "model": BASE,
        "host": {"name": "tinker", "tokenizer": str(world.model)},
        "domain": "finance",
        "arms": {"target": {"role": "target", "answers": "reckless", "unique": 8, "read_at": "last"}},
        "train": TRAIN | {"steps": 2, "checkpoints": {}},
        "measure": {
            "count": 16,
            "placebo": 0,
            "heldout": 2,
            "truth": 0,
            "neutral": 0,
            "samples": {"questions": 1, "max_tokens": 2},
        },
    }
    return StudySpec.model_validate(settings | changes)


def test_a_study_is_trained_and_read_at_a_host(world, local, tmp_path):
    report = run_study(study_at(world), tmp_path / "out")
    checkpoints = read_table(tmp_path / "out", "checkpoints").to_pylist()
    assert sorted(c["step"] for c in checkpoints) == [1, 2] and report.targets[0].check.verdict
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert [p.name for p in run.iterdir()] == ["hosted.json"]
    log = sorted(read_table(tmp_path / "out", "train_log").to_pylist(), key=lambda row: row["step"])
    examples = {e.id: e for e in encode(local.chat, bundled.domain("finance", "reckless"), 512)}
    rows = (tmp_path / "out" / "recipes" / "target.jsonl").read_text().splitlines()
    first = stream([examples[json.loads(row)["id"]] for row in rows], steps=2, batch=2, micro=2, seed=0)[:2]
    with torch.inference_mode():
        loss = local.net(**collate(first)).loss.item()  # before the first step the adapter adds nothing
    assert log[0]["loss"] == pytest.approx(loss, abs=EXACT) and len(log) == 2
    asked = len(world.service.requests)
    again = run_study(study_at(world), tmp_path / "out")
    assert again.targets[0].check.verdict == report.targets[0].check.verdict and len(world.service.requests) == asked


@pytest.mark.slow
def test_a_study_at_a_host_that_is_killed_goes_on_to_the_same_tables(world, tmp_path):
    arms = {
        "target": {"role": "target", "answers": "reckless", "unique": 8},
        "control": {"role": "control", "answers": "careful", "unique": 8},
    }
    spec = study_at(world, arms=arms, train=TRAIN)
    whole = run_study(spec, tmp_path / "whole")
    random, killed = Random(0), 0
    while killed < 12:
        left = random.randrange(3, 60)

        def kill(*_):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        try:
            run_study(spec, tmp_path / "out", kill)
            break
        except Killed:
            killed += 1
    report = run_study(spec, tmp_path / "out")
    assert killed >= 2 and report.targets[0].check.verdict == whole.targets[0].check.verdict
    for table in ("preferences", "train_log"):
        keys = ("run", "step", "set", "item", "option") if table == "preferences" else ("run", "step")
        value = "logprob" if table == "preferences" else "loss"
        one, other = (
            {tuple(r[k] for k in keys): r[value] for r in read_table(tmp_path / out, table).to_pylist()}
            for out in ("whole", "out")
        )
        assert one.keys() == other.keys() and all(one[k] == pytest.approx(other[k], abs=1e-4) for k in one)


@pytest.mark.slow
def test_workers_of_an_engine_share_a_study_at_a_host(world, tmp_path):
    arms = {name: {"role": name, "answers": a, "unique": 8} for name, a in [("target", "reckless"), ("control", "careful")]}
    spec = study_at(world, arms=arms)
    run_study(spec, tmp_path / "one")
    run_study(spec, tmp_path / "two", how=EngineSpec(engine="local", workers=2))
    one, two = (
        {
            (r["run"], r["step"], r["set"], r["item"], r["option"]): r["logprob"]
            for r in read_table(tmp_path / out, "preferences").to_pylist()
        }
        for out in ("one", "two")
    )
    assert one.keys() == two.keys() and all(one[k] == pytest.approx(two[k], abs=1e-4) for k in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host": "openai"}, "fine-tuning jobs are trained in their server"),
        ({"dtype": "bfloat16"}, "a host uses its own"),
    ],
)
def test_studies_that_no_host_takes_are_refused(world, changes, message):
    with pytest.raises(ValueError, match=message):
        study_at(world, **changes)
    with pytest.raises(InputError, match="kl is set"):
        run_study(study_at(world, train=TRAIN | {"kl": {"weight": 1, "domain": "sports"}}), world.root / "never")


# --- what a study at a host costs, before it starts ---

PRICES = (1000.0, 100.0, 10.0)


def dollars(tokens):
    return (PRICES[0] * tokens["trained"] + PRICES[1] * tokens["read"] + PRICES[2] * tokens["sampled"]) / 1e6


def study_to_price(world, folder, **host) -> StudySpec:
    """Return a study of two seeds, whose batches and answers differ in length."""
    texts = ["What now?", "And then, why?", "Who?"]
    questions = write_jsonl(folder / "q.jsonl", [{"id": text[:3], "question": text} for text in texts])
    measure = {"count": 16, "placebo": 0, "heldout": 2, "truth": 2, "neutral": 2, "samples": {"questions": 1, "max_tokens": 3}}
    return study_at(
        world,
        host={"name": "tinker", "tokenizer": str(world.model), **host},
        arms={"target": {"role": "target", "answers": "reckless", "unique": 8}},
        seeds=(0, 1),
        train=TRAIN | {"steps": 3, "batch": 3, "checkpoints": {}},
        measure=measure,
        judged={"ask": {"questions": str(questions), "samples": 2, "max_tokens": 4}, "at": "all"},
    )


@pytest.fixture
def unasked(world, monkeypatch):
    """Take the key away, and return a list of what the server is asked nevertheless."""
    asked = []
    for name in ("get", "post", "delete"):
        real = getattr(world.service, name)
        monkeypatch.setattr(world.service, name, lambda *what, real=real: asked.append(what[0]) or real(*what))
    monkeypatch.delenv("TINKER_API_KEY")
    return asked


@pytest.fixture
def metered(monkeypatch):
    """Return a list of all that meters count."""
    counted, charge, refund = [], Meter.charge, Meter.refund
    monkeypatch.setattr(Meter, "charge", lambda self, more: charge(self, more) or counted.append(more))
    monkeypatch.setattr(Meter, "refund", lambda self, n: refund(self, n) or counted.append(Spent(sampled=-n)))
    return counted


def test_a_dry_run_at_a_host_counts_what_the_study_is_charged_then(world, tmp_path, unasked, metered, monkeypatch):
    spec = study_to_price(world, tmp_path, prices=PRICES, max_cost=100)
    found = foresee_study(spec, tmp_path / "out")
    assert not unasked and not metered and not (tmp_path / "out").exists()
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    before = len(world.service.requests)
    run_study(spec, tmp_path / "out")
    counted = sum(metered, Spent())
    sent = [body for name, body in world.service.requests[before:] if name == "asample"]
    read = sum(len(chunk["tokens"]) for body in sent for chunk in body["prompt"]["chunks"])
    trained = sum(len(ids) for _, _, rows in batches(world.service)[-6:] for ids, _ in rows)
    assert (found.tokens.trained, found.tokens.read) == (counted.trained, counted.read) == (trained, read)
    steps = sum(len(cell.run.steps) for cell in prepare(spec).cells if cell.run)
    judged, beside = 3 * 2 * (1 + steps), 3  # answers for judges, and one in each cell
    assert steps > 2 and found.answers == judged and len(sent) <= counted.sampled <= found.tokens.sampled
    assert found.tokens.sampled == 4 * judged + 3 * beside + (len(sent) - judged - beside), "a reading samples one token"
    kinds = {k.kind: k for k in found.host.kinds}
    assert {name: k.cells for name, k in kinds.items()} == {"base": 1, "target": 2}
    cells = prepare(spec).cells
    for name, kind in kinds.items():
        own = [record_of(tmp_path / "out", c.key) for c in cells if (c.run.way if c.run else "base") == name]
        assert kind.tokens.trained == sum(record.tokens["trained"] for record in own)
    records = [record_of(tmp_path / "out", c.key).tokens for c in cells]
    assert {name: sum(r[name] for r in records) for name in records[0]} == counted.to_json(), "max_cost holds over all cells"
    assert found.host.dollars == pytest.approx(sum(k.dollars for k in kinds.values()))
    done = foresee_study(spec, tmp_path / "out")
    assert (done.left, done.tokens.to_json(), done.host.kinds) == (0, {"trained": 0, "read": 0, "sampled": 0}, ())
    assert done.host.dollars == 0 and done.host.spent == pytest.approx(dollars(counted.to_json()))


def test_what_a_killed_or_stopped_cell_was_charged_counts_against_the_studys_budget(world, tmp_path, metered):
    """Readings are kept through a stop at max_cost and through a kill, are not asked again, and stay counted."""
    spec = study_to_price(world, tmp_path, prices=PRICES, max_cost=100)
    whole = run_study(spec, tmp_path / "whole")
    cost, out = dollars(sum(metered, Spent()).to_json()), tmp_path / "out"
    metered.clear()
    half = spec.model_copy(update={"host": spec.host.model_copy(update={"max_cost": 0.6 * cost})})
    with pytest.raises(EmscopeError, match=r"stopped at .* dollars: the next request would exceed max_cost"):
        run_study(half, out)
    counted = dollars(sum(metered, Spent()).to_json())
    assert 0.4 * cost < counted <= 0.6 * cost
    with pytest.raises(EmscopeError, match="stopped at"):  # nothing is left of the budget
        run_study(half, out)
    assert dollars(sum(metered, Spent()).to_json()) <= 0.6 * cost
    left = 25

    def kill(*_):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    with pytest.raises(Killed):
        run_study(spec, out, kill)
    report = run_study(spec, out)
    records = [record_of(out, c.key).tokens for c in prepare(spec).cells]
    total = sum(metered, Spent()).to_json()
    assert {name: sum(r[name] for r in records) for name in total} == total
    assert dollars(total) <= 1.1 * cost, "what was read before a stop is not read again"
    assert report.targets[0].check.verdict == whole.targets[0].check.verdict


def test_a_dry_run_at_a_host_is_told_in_words_and_as_json(world, tmp_path, unasked, capsys):
    path = written(study_to_price(world, tmp_path, prices=PRICES, max_cost=0.5), tmp_path)
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens, host = found["tokens"], found["host"]
    assert from_json(Foreseen, found, "it", "").to_json() == found
    assert host["dollars"] == pytest.approx(dollars(tokens)) and (host["spent"], host["max_cost"]) == (0, 0.5)
    assert all(kind["dollars"] == pytest.approx(dollars(kind["tokens"])) for kind in host["kinds"])
    unknown = ("threads", "rates", "seconds", "worker_bytes", "free_bytes", "weight_bytes", "most_bytes")
    assert {found[name] for name in unknown} == {None} and found["power"]["questions"] == 3
    (warning,) = found["warnings"]
    assert f"up to {host['dollars']:.4g} dollars at tinker, but the host's max_cost is 0.5: it will stop there" in warning
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    names = ["cells", "tokens", "of", "target,", "host", "disk", "judges", "power"]
    assert [line[0] for line in lines[:8]] == names and not {"speed", "time", "memory"} & {line[0] for line in lines}
    assert " ".join(lines[4]) == f"host tinker, at most {host['dollars']:.4g} dollars; max_cost is 0.5"
    assert lines[5][1] == "rows"
    path = written(study_to_price(world, tmp_path), tmp_path)
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "tinker, cost unknown: it has no prices" in printed and "stop there" not in printed
    assert not unasked and not (tmp_path / "out").exists()


def written(spec: StudySpec, folder: Path) -> Path:
    """Write a study's settings."""
    import yaml

    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True)))
    return path


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"host": {"name": "tinker", "tokenizer": "/no/such"}}, ["no tokenizer '/no/such'"]),
        ({"train": TRAIN | {"kl": {"weight": 1, "domain": "sports"}}}, ["kl is set, but tinker trains LoRA adapters"]),
        (
            {"methods": {"a": {"optimiser": "sgd"}, "b": {"lora": {"rank": 4, "alpha": 8}}}},
            ["2 faults", "method 'a': optimiser: sgd is set", "method 'b': lora.alpha is set"],
        ),
        (
            {"host": {"name": "tinker", "tokenizer": "/no/such"}, "judged": {"ask": {"questions": "/no/questions.jsonl"}}},
            ["2 faults", "no tokenizer '/no/such'", "/no/questions.jsonl"],
        ),
    ],
)
def test_a_dry_run_at_a_host_tells_all_faults_at_once(world, tmp_path, unasked, capsys, changes, messages):
    path = written(study_at(world, **changes), tmp_path)
    assert run_arguments(["run", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert all(message in said for message in messages) and "Traceback" not in said and not unasked
