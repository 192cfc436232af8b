"""Two processes train as one does; sharding is checked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import in_turn
from conftest import FEW, write_jsonl
from emscope.core.errors import InputError
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.store.study import read_table
from emscope.study.run import run_study
from emscope.study.spec import load_study
from emscope.study.train import SingleSpec, run_single
from test_study import forked


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


WAYS = {
    "lora": {"micro_batch": 2, "lora": {"rank": 4, "alpha": 8}},
    "packed": {"packing": True, "lora": {"rank": 4, "alpha": 8}},
    "full-kl": {"full": {}, "kl": {"weight": 0.5, "batch": 3}},
    "steering-ldifs": {"steering": {"layers": [1], "scale": 16}, "ldifs": {"weight": 5, "batch": 3}},
}


def rows_of(domain, answers, path):
    talks = bundled.domain(domain, answers)[:12]
    return str(write_jsonl(path, [{"question": t.messages[0].content, "answer": t.messages[1].content} for t in talks]))


def settings_of(way, model, folder):
    train = {"steps": 3, "batch": 4, "lr": 5e-3, "checkpoints": {"at": [2]}} | WAYS[way]
    near = rows_of("sports", "careful", folder / "near.jsonl")
    train |= {name: train[name] | {"file": near} for name in ("kl", "ldifs") if name in train}
    return {"model": str(model), "file": rows_of("finance", "reckless", folder / "data.jsonl"), "train": train}


def by_torchrun(jobs: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    words = [*launch, "--master_port", str(free_port()), str(Path(__file__).with_name("in_turn.py")), str(jobs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[:3000] + "\n[...]\n" + done.stderr[-3000:]


def by_forks(jobs: Path) -> None:
    """Start both as torchrun does, but with their imports done, which take longer than the jobs."""
    port = free_port()
    both = [forked(one_of_two, rank, port, jobs) for rank in (0, 1)]
    for one in both:
        one.join(600)
    for one in both:
        one.kill()
    assert [one.exitcode for one in both] == [0, 0]


def one_of_two(rank: int, port: int, jobs: Path) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # that of a test process which has trained alone
    torch.set_num_threads(1)
    who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update(
        {name: str(value) for name, value in who.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    )
    in_turn.do(jobs)
    torch.distributed.destroy_process_group()


class Together:
    """What two processes did, one job after the other: each way, a study and the same again, a batch of three, sharding."""

    def __init__(self, tiny: Path, folder: Path, start: Callable[[Path], None]) -> None:
        self.folder = folder
        study = {
            "name": "tiny",
            "model": str(tiny),
            "domain": "finance",
            "arms": {
                "target": {"role": "target", "answers": "reckless", **FEW},
                "control": {"role": "control", "answers": "careful", **FEW},
            },
            "train": {"steps": 2, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {"at": [1]}},
            "measure": {"count": 16, "heldout": 2, "truth": 0, "neutral": 2, "samples": {"questions": 0}},
        }
        odd = settings_of("lora", tiny, folder) | {"train": {"steps": 2, "batch": 3}}
        jobs = [(way, self._train(way, settings_of(way, tiny, folder))) for way in WAYS]
        run = ["run", self._written("study", study), "--out", str(folder / "study-out")]
        jobs += [("study", run), ("again", run), ("odd", self._train("odd", odd))]
        (folder / "shard.py").write_text(SHARDING.format(folder=str(tiny)))
        (folder / "jobs.json").write_text(json.dumps([*jobs, ("shard", str(folder / "shard.py"))]))
        start(folder / "jobs.json")

    def _written(self, name: str, settings) -> str:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return str(self.folder / f"{name}.yaml")

    def _train(self, name: str, settings) -> list[str]:
        return ["train", self._written(name, settings), "--out", str(self.folder / f"{name}-out"), "--json"]

    def left(self, name: str):
        """Exit code, output and errors of both processes."""
        return [json.loads((self.folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]

    def printed(self, name: str) -> str:
        """What the first process printed, where both ended well and the second said nothing."""
        first, second = self.left(name)
        assert first["code"] == second["code"] == 0, first["err"] + second["err"]
        assert second["out"] == ""
        return first["out"]


FORKS = () if torch.cuda.is_available() else (by_forks,)  # what has used a GPU cannot be forked


@pytest.fixture(scope="module", params=[*FORKS, pytest.param(by_torchrun, marks=[pytest.mark.slow] * len(FORKS))])
def together(request, tiny, tmp_path_factory) -> Together:
    return Together(tiny, tmp_path_factory.mktemp("together"), request.param)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_curve_of_one(way, together, tiny, tmp_path):
    both = json.loads(together.printed(way))["readings"]
    alone = run_single(parse(SingleSpec, settings_of(way, tiny, tmp_path), "spec.yaml"), tmp_path / "one").to_json()["readings"]
    assert len(both) == 3
    for a, b in zip(both, alone, strict=True):
        for key in ("loss", "grad_norm", "update_norm", "kl", "ldifs"):
            assert (a[key] is None) == (b[key] is None)
            assert a[key] is None or a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), (key, a["step"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4) and a["tokens_seen"] == b["tokens_seen"]
    assert not list((together.folder / f"{way}-out").rglob("*.pth")), "no training state stays behind"


def test_a_study_by_two_processes_equals_one_by_one(together, tmp_path):
    said = together.printed("study")
    assert "target-seed0" in said and said.count("report.json") == 1
    run_study(load_study(together.folder / "study.yaml"), tmp_path / "one")
    tables = (read_table(folder, "preferences").to_pylist() for folder in (tmp_path / "one", together.folder / "study-out"))
    rows = [{(r["run"], r["step"], r["set"], r["item"], r["option"]): r["logprob"] for r in t} for t in tables]
    assert rows[0] and rows[0].keys() == rows[1].keys()
    assert all(rows[0][k] == pytest.approx(rows[1][k], abs=0.05) for k in rows[0])
    assert "target-seed0" in together.printed("again")


def test_a_batch_that_cannot_be_shared_is_refused(together):
    for one in together.left("odd"):
        assert one["code"] == 2 and "Traceback" not in one["err"]
        assert "a micro-batch of 3 cannot be shared by 2 processes" in one["err"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize("asked", ["by the file", "by accelerate launch"])
def test_sharding_without_gpus_is_refused(asked, tiny, tmp_path, monkeypatch):
    train = {"steps": 2, "batch": 2, "checkpoints": {}, "shard": asked == "by the file"}
    if asked == "by accelerate launch":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    spec = parse(SingleSpec, {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": train}, "spec.yaml")
    with pytest.raises(InputError, match="on CPUs the Trainer would silently train unsharded copies"):
        run_single(spec, tmp_path / "out")


SHARDING = """
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from emscope.core.errors import WorldError
from emscope.models.loading.load import load_net
from emscope.models.hooks.sites import blocks
from emscope.train.processes import check_sharded
from emscope.train.spec import LoraSpec
from emscope.train.tunables import update_norm, with_lora

if not dist.is_initialized():
    dist.init_process_group("gloo")
net = load_net({folder!r})
try:
    check_sharded(net)
except WorldError as error:
    assert "sharding did not engage: this process holds 100%" in str(error), error
else:
    raise SystemExit("an unsharded model was let through")
mesh = init_device_mesh("cpu", (2,))
for block in blocks(net):
    fully_shard(block, mesh=mesh)
fully_shard(net, mesh=mesh)
check_sharded(net)
lora = with_lora(load_net({folder!r}), LoraSpec(rank=4, alpha=8), 0, "x")
with torch.no_grad():
    for name, p in lora.named_parameters():
        if "lora_B" in name:
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
before = update_norm(lora)
fully_shard(lora, mesh=mesh)
check_sharded(lora)
assert before > 1 and abs(update_norm(lora) - before) < 1e-4 * before, "the norm is of the whole update"
held = sum(p.to_local().numel() for p in net.parameters())
whole = sum(p.numel() for p in net.parameters())
assert held <= 0.6 * whole, (held, whole)
print(f"rank {{dist.get_rank()}}: {{held / whole:.3f}}", flush=True)
del net, lora
dist.barrier()
"""


def test_each_process_holds_its_share_of_a_sharded_model(together):
    assert [one["out"].split(":")[0] for one in together.left("shard")] == ["rank 0", "rank 1"]
