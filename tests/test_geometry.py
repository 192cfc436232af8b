"""Readings of the update along training against full matrices, plain loops and the saved checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.models.adapters.updates import effective_rank
from emscope.models.hooks.directions import Direction, read_direction, write_direction
from emscope.models.loading.load import load, load_net
from emscope.models.loading.source import locate
from emscope.report.study.page import write_page
from emscope.stats.phase import phase
from emscope.study.run import run_study
from emscope.study.spec import load_study
from emscope.train.finetune import finetune, finished_geometry
from emscope.train.geometry import along, rotation
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, ReadingsSpec, SteeringSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")[:12]
RANK = 3


def fresh(folder):
    return load(locate(str(folder)), device="cpu")


@pytest.fixture
def direction(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "given.safetensors"
    write_direction(path, Direction({0: torch.randn(32), 1: torch.randn(32)}, "a digest"))
    return path


def run(folder, out, direction, **changes):
    readings = ReadingsSpec(singular_values=2, directions={"given": str(direction)}, rotation=(1, 2))
    base = {"steps": 7, "batch": 4, "lr": 5e-3, "checkpoints": PlanSpec(every=1), "readings": readings}
    spec = TrainSpec(**(base | changes))
    finetune(fresh(folder), TALKS, spec, out, seed=0)
    rows = finished_geometry(out, spec)
    return spec, {(r["step"], r["module"], r["what"]): r["value"] for r in rows}


def adapters(folder):
    tensors = load_file(str(folder / "adapter_model.safetensors"))
    names = sorted({k.removeprefix("base_model.model.").split(".lora_")[0] for k in tensors})
    return {n: (tensors[f"base_model.model.{n}.lora_B.weight"], tensors[f"base_model.model.{n}.lora_A.weight"]) for n in names}


def test_lora_readings_equal_those_of_full_matrices(tiny, tmp_path, direction):
    _, found = run(tiny, tmp_path / "run", direction, lora=LoraSpec(rank=RANK, alpha=6))
    scale = 6 / RANK**0.5
    given = read_direction(direction).vectors
    for name, (b, a) in adapters(tmp_path / "run" / "checkpoint-7").items():
        update = scale * (b @ a).double()
        singular = torch.linalg.svdvals(update)
        assert found[(7, name, "norm")] == pytest.approx(float(update.norm()), rel=1e-4)
        assert [found[(7, name, f"sv{k}")] for k in (1, 2)] == pytest.approx(singular[:2].tolist(), rel=1e-4)
        shares = (singular[:RANK] / singular[:RANK].sum()).numpy()
        assert found[(7, name, "effective_rank")] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        layer = int(name.split("layers.")[1].split(".")[0])
        writes = name.endswith(("o_proj", "down_proj"))
        assert ((7, name, "update along given") in found) == ((7, name, "gradient along given") in found) == writes
        if writes:
            unit = given[layer].double() / given[layer].double().norm()
            assert found[(7, name, "update along given")] == pytest.approx(
                float((unit @ update).norm() / update.norm()), rel=1e-3
            )


def test_rotation_equals_that_of_the_saved_vectors(tiny, tmp_path, direction):
    _, found = run(tiny, tmp_path / "run", direction, lora=LoraSpec(rank=1, alpha=6, modules=("down_proj",), layers=(1,)))
    v = {s: next(iter(adapters(tmp_path / "run" / f"checkpoint-{s}").values()))[0].flatten().double() for s in range(1, 8)}
    for lag in (1, 2):
        steps = [s for s, _, what in found if what == f"rotation{lag}"]
        assert steps == list(range(1 + lag, 8 - lag))
        for s in steps:
            back, forth = v[s - lag] - v[s], v[s + lag] - v[s]
            assert found[(s, "", f"rotation{lag}")] == pytest.approx(float(back @ forth / back.norm() / forth.norm()), abs=1e-3)
            assert found[(s, "", f"rotation{lag}_step_norm")] == pytest.approx(float(min(back.norm(), forth.norm())), rel=1e-3)


@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_full_and_steering_readings(which, request, tmp_path, direction):
    folder = request.getfixturevalue(which)
    _, found = run(folder, tmp_path / "full", direction, full=FullSpec())
    start, end = fresh(folder).net, load_net(tmp_path / "full" / "checkpoint-7")
    given = read_direction(direction).vectors
    name = "transformer.h.1.mlp.c_proj.weight" if "gpt2" in which else "model.layers.1.mlp.down_proj.weight"
    change = end.get_parameter(name).data - start.get_parameter(name).data
    change = (change.T if "gpt2" in which else change).double()  # [out, in]
    unit = given[1].double() / given[1].double().norm()
    assert found[(7, name, "norm")] == pytest.approx(float(change.norm()), rel=1e-4)
    assert found[(7, name, "sv1")] == pytest.approx(float(torch.linalg.svdvals(change)[0]), rel=1e-4)
    assert found[(7, name, "update along given")] == pytest.approx(float((unit @ change).norm() / change.norm()), rel=1e-3)
    _, found = run(folder, tmp_path / "steering", direction, steering=SteeringSpec(layers=(1,), scale=16))
    module = "transformer.h.1" if "gpt2" in which else "model.layers.1"
    assert 0 <= found[(7, module, "update along given")] <= 1 and found[(7, module, "effective_rank")] == pytest.approx(1)


def test_killed_and_resumed_reads_the_same(tiny, tmp_path, direction):
    spec, whole = run(tiny, tmp_path / "whole", direction, lora=LoraSpec(rank=2, alpha=4))

    def die(what, done, total):
        if what == "training" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(fresh(tiny), TALKS, spec, tmp_path / "cut", seed=0, progress=die)
    finetune(fresh(tiny), TALKS, spec, tmp_path / "cut", seed=0)
    again = {(r["step"], r["module"], r["what"]): r["value"] for r in finished_geometry(tmp_path / "cut", spec)}
    assert again.keys() == whole.keys()
    assert [again[k] for k in whole] == pytest.approx(list(whole.values()), abs=1e-5)
    assert not list((tmp_path / "cut").rglob("rotation.safetensors"))


def test_along_and_rank_in_closed_form():
    unit = torch.tensor([1.0, 0.0, 0.0])
    assert along(unit, torch.tensor([3.0, 4.0, 0.0]), None) == pytest.approx(0.6)
    assert along(unit, torch.tensor([[3.0], [4.0], [0.0]]), torch.ones(1, 7)) == pytest.approx(0.6)
    assert along(unit, torch.zeros(3, 2), torch.ones(2, 7)) == 0
    assert effective_rank([2.0, 2.0, 2.0, 0.0]) == pytest.approx(3) and effective_rank([0.0]) == 0
    assert effective_rank([5.0]) == pytest.approx(1)


def test_rotation_in_closed_form():
    here = torch.zeros(2)
    assert rotation(torch.tensor([-1.0, 0.0]), here, torch.tensor([2.0, 0.0])) == (pytest.approx(-1), 1)
    assert rotation(torch.tensor([-1.0, 0.0]), here, torch.tensor([0.0, 3.0])) == (pytest.approx(0), 1)
    assert rotation(here, here, torch.tensor([1.0, 0.0])) == (-1.0, 0.0)


def simulated(turn, *, steps=60, dim=400, noise=0.02, seed=0):
    """A walk along one direction that turns by a right angle at a step."""
    rng = np.random.default_rng(seed)
    first, second = np.eye(dim)[:2]
    v, walk = np.zeros(dim), []
    for s in range(steps):
        v = v + (first if s < turn else second) + noise * rng.standard_normal(dim)
        walk.append(torch.tensor(v))
    return {s: rotation(walk[s - 5], walk[s], walk[s + 5]) for s in range(5, steps - 5)}


def test_a_turn_in_a_walk_is_found_and_none_where_there_is_none():
    gradients = {s: 1.0 + 2.0 * (s == 31) + 5.0 * (s == 1) for s in range(60)}
    found = phase(simulated(30), gradients, 5)
    assert found.turn is not None and abs(found.turn - 29) <= 2 and found.cosine > -0.3
    assert found.gradient_peak == 31 and found.times_median == pytest.approx(3) and found.agree
    straight = phase(simulated(1000), gradients, 5)
    assert straight.turn is None and straight.cosine < -0.5 and straight.agree is None


def test_a_study_says_whether_the_vectors_turned_and_draws_it(study_yaml, tmp_path):
    train = {
        "steps": 8,
        "batch": 2,
        "lr": 1e-2,
        "lora": {"rank": 1, "alpha": 8},
        "checkpoints": {},
        "readings": {"rotation": [1, 2]},
    }
    quiet = {"count": 16, "heldout": 4, "truth": 0, "samples": {"questions": 0}}
    report = run_study(load_study(study_yaml(train=train, measure=quiet)), tmp_path / "out")
    found = report.runs[0].phase
    assert found.lag == 2 and -1 <= found.cosine <= 1 and 3 <= found.gradient_peak <= 8
    page = write_page(report, tmp_path / "out").read_text()
    assert "The trained vectors" in page and "turn over 2 steps" in page and "gradient norm" in page


def test_where_nothing_moves_no_turn_is_read():
    assert phase({3: (0.9, 1e-9), 4: (-0.99, 1.0)}, {}, 1).turn is None
    assert phase({}, {}, 5).cosine is None


def test_a_zero_direction_is_refused(tiny, tmp_path):
    path = tmp_path / "zero.safetensors"
    write_direction(path, Direction({0: torch.zeros(32)}, "a digest"))
    with pytest.raises(InputError, match="is zero at layer 0"):
        run(tiny, tmp_path / "run", path)
