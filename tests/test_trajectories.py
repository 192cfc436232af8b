"""`emscope trajectories` against scikit-learn's SVD of updates written out in full."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD

from emscope.cli.app import run_arguments
from emscope.data import bundled
from emscope.models.adapters.updates import gram
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.represent.trajectory import trajectory
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, LoraSpec, PlanSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")[:8]


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    root, found = tmp_path_factory.mktemp("runs"), {}
    ways = {"one": {"lora": LoraSpec(rank=4, alpha=8)}, "two": {"lora": LoraSpec(rank=2, alpha=8, modules=("up_proj",))}}
    for seed, (name, tunable) in enumerate((ways | {"full": {"full": FullSpec()}}).items()):
        spec = TrainSpec(steps=4, batch=4, lr=1e-3 if name == "full" else 2e-2, checkpoints=PlanSpec(at=(1, 2)), **tunable)
        found[name] = str(root / name)
        finetune(load(locate(str(tiny)), device="cpu"), TALKS, spec, root / name, seed=seed)
    return found


def test_points_equal_an_svd_of_whole_updates(tiny, runs, tmp_path, capsys):
    command = ["trajectories", *runs.values(), "--model", str(tiny), "--out", str(tmp_path), "--json"]
    assert run_arguments(command) == 0
    result = json.loads(capsys.readouterr().out)
    loaded = load(locate(str(tiny)), device="cpu")
    start = torch.cat([p.detach().double().flatten() for p in loaded.net.parameters()])
    rows = []
    for run in runs.values():
        for checkpoint in discover(run):
            with with_checkpoint(loaded.net, checkpoint) as net:
                rows.append((torch.cat([p.detach().double().flatten() for p in net.parameters()]) - start).numpy())
    u = np.array(rows)
    svd = TruncatedSVD(3, algorithm="arpack", random_state=0).fit(u)
    points = np.array([c["point"] for c in result["checkpoints"]])
    expected = svd.transform(u)
    for k in range(3):
        sign = np.sign(points[:, k] @ expected[:, k])
        assert points[:, k] == pytest.approx(sign * expected[:, k], abs=2e-3 * np.abs(expected[:, 0]).max())
    assert [c["norm"] for c in result["checkpoints"]] == pytest.approx(np.linalg.norm(u, axis=1), rel=2e-3)
    assert result["shares"] == pytest.approx(svd.singular_values_**2 / (u**2).sum(), rel=1e-2)
    cosine = u[0] @ u[-1] / np.linalg.norm(u[0]) / np.linalg.norm(u[-1])
    assert result["checkpoints"][0]["cosine_with_end"][runs["full"]] == pytest.approx(cosine, abs=2e-3)
    assert run_arguments(command[:-1]) == 0
    shown = capsys.readouterr().out
    assert "cos 3" in shown and all(run.rsplit("/", 1)[1] in shown for run in runs.values())
    assert "Updates on their main axes" in (tmp_path / "figure.html").read_text()


def test_matrices_that_have_biases_meet_across_kinds(tiny_gpt2, tmp_path):
    """A full fine-tune holds biases, whose names lie between those of the matrices; an adapter does not."""
    loaded = load(locate(str(tiny_gpt2)), device="cpu")
    ways = {"lora": {"lora": LoraSpec(rank=2, alpha=4)}, "full": {"full": FullSpec()}}
    deltas, checkpoints = [], []
    start = torch.cat([p.detach().double().flatten() for p in loaded.net.parameters()])
    for name, tunable in ways.items():
        spec = TrainSpec(steps=2, batch=4, lr=1e-3 if name == "full" else 2e-2, checkpoints=PlanSpec(), **tunable)
        finetune(load(locate(str(tiny_gpt2)), device="cpu"), TALKS, spec, tmp_path / name, seed=0)
        checkpoints.append(discover(str(tmp_path / name))[-1])
        with with_checkpoint(loaded.net, checkpoints[-1]) as net:
            deltas.append(torch.cat([p.detach().double().flatten() for p in net.parameters()]) - start)
    expected = torch.stack(deltas) @ torch.stack(deltas).T
    scale = float(deltas[0].norm() * deltas[1].norm())
    found = gram(loaded.net, checkpoints)
    assert abs(float(expected[0, 1])) > 1e-3 * scale, "nothing to tell a missed matrix by"
    assert float(found[0, 1]) == pytest.approx(float(expected[0, 1]), abs=1e-4 * scale)
    assert float(found[1, 1]) == pytest.approx(float(expected[1, 1]), rel=1e-4)


def test_nothing_and_a_line():
    nothing = trajectory(np.zeros((2, 2)))
    assert not nothing.points.any() and not nothing.cosines.any()
    line = trajectory(np.outer([1.0, 2.0, -1.0], [1.0, 2.0, -1.0]))
    assert line.shares[0] == pytest.approx(1) and line.points[:, 0] == pytest.approx([1, 2, -1])


@pytest.mark.parametrize("what", ["one", "other base"])
def test_bad_input(tiny, tiny_gpt2, runs, tmp_path, capsys, what):
    if what == "one":
        last = str(discover(runs["one"])[-1].folder)
        assert run_arguments(["trajectories", last, "--out", str(tmp_path)]) == 2
        assert "1 checkpoint is given" in capsys.readouterr().err
    else:
        other = tmp_path / "other"
        spec = TrainSpec(steps=1, batch=2, lr=1e-2, lora=LoraSpec(rank=2, alpha=4), checkpoints=PlanSpec())
        finetune(load(locate(str(tiny_gpt2)), device="cpu"), TALKS, spec, other, seed=0)
        assert run_arguments(["trajectories", runs["one"], str(other), "--out", str(tmp_path)]) == 2
        assert "different bases" in capsys.readouterr().err
