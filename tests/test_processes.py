"""Two processes train as one does; sharding is checked."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from emscope.core.errors import InputError
from emscope.core.spec import parse
from emscope.store.study import read_table
from emscope.study.run import run_study
from emscope.study.spec import load_study
from emscope.study.train import SingleSpec, run_single


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def two(*command, check=True):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    done = subprocess.run(
        [*launch, "--master_port", str(free_port()), *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not check or done.returncode == 0, done.stderr[:3000] + "\n[...]\n" + done.stderr[-3000:]
    return done


HELD = {"kl": {"weight": 0.5, "domain": "sports", "batch": 3}}, {"ldifs": {"weight": 5, "domain": "sports", "batch": 3}}
WAYS = [
    {"micro_batch": 2, "lora": {"rank": 4, "alpha": 8}},
    pytest.param({"full": {}, **HELD[0]}, marks=pytest.mark.slow),
    pytest.param({"steering": {"layers": [1], "scale": 16}, **HELD[1]}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("way", WAYS, ids=["lora", "full and kl", "steering and ldifs"])
def test_two_processes_give_the_curve_of_one(way, tiny, tmp_path):
    train = {"steps": 5, "batch": 4, "lr": 5e-3, "checkpoints": {"at": [3]}} | way
    spec = {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": train}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    done = two("-m", "emscope", "train", path, "--out", tmp_path / "two", "--json")
    together = json.loads(done.stdout)["readings"]
    alone = run_single(parse(SingleSpec, spec, "spec.yaml"), tmp_path / "one").to_json()["readings"]
    assert len(together) == 5
    for a, b in zip(together, alone, strict=True):
        for key in ("loss", "grad_norm", "update_norm", "kl", "ldifs"):
            assert (a[key] is None) == (b[key] is None)
            assert a[key] is None or a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-4), (key, a["step"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4) and a["tokens_seen"] == b["tokens_seen"]
    assert not list((tmp_path / "two").rglob("*.pth")), "no training state stays behind"


def test_a_study_by_two_processes_equals_one_by_one(study_yaml, tmp_path):
    path = study_yaml(measure={"count": 16, "heldout": 4, "truth": 0, "samples": {"questions": 0}})
    done = two("-m", "emscope", "run", path, "--out", tmp_path / "two")
    assert "target-seed0" in done.stdout and done.stdout.count("report.json") == 1
    run_study(load_study(path), tmp_path / "one")
    one, two_ = (read_table(tmp_path / n, "preferences").to_pylist() for n in ("one", "two"))
    rows = [{(r["run"], r["step"], r["set"], r["item"], r["option"]): r["logprob"] for r in t} for t in (one, two_)]
    assert rows[0].keys() == rows[1].keys()
    assert all(rows[0][k] == pytest.approx(rows[1][k], abs=0.05) for k in rows[0])
    again = two("-m", "emscope", "run", path, "--out", tmp_path / "two")
    assert "target-seed0" in again.stdout


def test_a_batch_that_cannot_be_shared_is_refused(tiny, tmp_path):
    spec = {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": {"steps": 2, "batch": 3}}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    done = two("-m", "emscope", "train", path, "--out", tmp_path / "out", check=False)
    assert done.returncode != 0 and "a micro-batch of 3 cannot be shared by 2 processes" in done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed")[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
@pytest.mark.parametrize("asked", ["by the file", "by accelerate launch"])
def test_sharding_without_gpus_is_refused(asked, tiny, tmp_path, monkeypatch):
    train = {"steps": 2, "batch": 2, "checkpoints": {}, "shard": asked == "by the file"}
    if asked == "by accelerate launch":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    spec = parse(SingleSpec, {"model": str(tiny), "domain": "finance", "answers": "reckless", "train": train}, "spec.yaml")
    with pytest.raises(InputError, match="on CPUs the Trainer would train unsharded copies"):
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
dist.destroy_process_group()
"""


def test_each_process_holds_its_share_of_a_sharded_model(tiny, tmp_path):
    script = tmp_path / "shard.py"
    script.write_text(SHARDING.format(folder=str(tiny)))
    done = two(script)
    assert done.stdout.count("rank ") == 2
