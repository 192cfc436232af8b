"""Preventative steering: the vector is there in training, and gone from readings, checkpoints and the model afterwards."""

from __future__ import annotations

import pytest
import torch

from emscope.core.errors import InputError
from emscope.core.spec import parse
from emscope.data import bundled
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.directions import Direction, direction_at, write_direction
from emscope.models.hooks.interventions import added
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.train.batches import encode, stream
from emscope.train.finetune import finetune
from emscope.train.spec import PlanSpec, PreventSpec, SteeringSpec, TrainSpec

TALKS = bundled.domain("finance", "reckless")[:12]
SPEC = TrainSpec(steps=4, batch=4, lr=5e-3, checkpoints=PlanSpec(), heldout_every=1)


def fresh(folder):
    return load(locate(str(folder)), device="cpu")


@pytest.fixture
def direction(tiny, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "direction.safetensors"
    write_direction(path, Direction({0: torch.randn(32), 1: torch.randn(32)}, "a digest"))
    return path


def prevented(direction, scale=2.0):
    return SPEC.model_copy(update={"prevent": PreventSpec(direction=str(direction), scale=scale)})


def first_loss(net, examples):
    """Mean over answer tokens from full logits, one example at a time."""
    total, count = 0.0, 0
    for e in examples:
        with torch.inference_mode():
            logp = torch.log_softmax(net(input_ids=torch.tensor([e.ids])).logits[0, :-1], -1)
        for t in range(len(e.ids) - 1):
            if e.mask[t + 1]:
                total, count = total - float(logp[t, e.ids[t + 1]]), count + 1
    return total / count


def test_the_first_loss_is_that_of_the_steered_model(tiny, tmp_path, direction):
    rows = finetune(fresh(tiny), TALKS, prevented(direction), tmp_path / "run", seed=0)
    loaded = fresh(tiny)
    batch = stream(encode(loaded.chat, TALKS, 512), steps=1, batch=4, micro=4, seed=0)
    plain = first_loss(loaded.net, batch)
    from emscope.models.hooks.directions import read_direction

    with added(loaded.net, read_direction(direction).vectors, 2.0):
        steered = first_loss(loaded.net, batch)
    assert rows[0].loss == pytest.approx(steered, abs=1e-4) and abs(steered - plain) > 1e-2


def test_readings_and_the_model_afterwards_are_without_it(tiny, tmp_path, direction):
    loaded = fresh(tiny)
    ids = torch.arange(20)[None]
    before = loaded.net(input_ids=ids).logits
    seen = []

    def heldout(net):
        seen.append(len(seen))
        with torch.inference_mode():
            return float(net(input_ids=ids).logits.square().mean())

    spec = prevented(direction).model_copy(update={"lr": 1e-12})
    rows = finetune(loaded, TALKS, spec, tmp_path / "run", seed=0, heldout=heldout)
    assert torch.equal(loaded.net(input_ids=ids).logits, before) and len(seen) == 4
    assert rows[-1].heldout_loss == pytest.approx(float(before.square().mean()), rel=1e-5)


def test_a_scale_of_nothing_changes_nothing(tiny, tmp_path, direction):
    with_it = finetune(fresh(tiny), TALKS, prevented(direction, 0.0), tmp_path / "a", seed=0)
    without = finetune(fresh(tiny), TALKS, SPEC, tmp_path / "b", seed=0)
    assert [r.loss for r in with_it] == [r.loss for r in without]


def test_a_direction_of_another_model_is_refused_and_leaves_nothing_behind(tiny, tmp_path):
    path = tmp_path / "wide.safetensors"
    write_direction(path, Direction({0: torch.ones(64)}, "a digest"))
    with pytest.raises(InputError, match=r"vectors of shape \(64,\), but this model's residual stream is 32 wide"):
        finetune(fresh(tiny), TALKS, prevented(path), tmp_path / "run", seed=0)
    with pytest.raises(InputError, match="no file"):
        finetune(fresh(tiny), TALKS, prevented(tmp_path / "none.safetensors"), tmp_path / "run", seed=0)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("which", ["tiny", "tiny_gpt2"])
def test_a_trained_steering_vector_may_be_the_direction(which, request, tmp_path):
    folder = request.getfixturevalue(which)
    loaded = fresh(folder)
    spec = TrainSpec(steps=3, batch=4, lr=5e-3, checkpoints=PlanSpec(), steering=SteeringSpec(layers=(0, 1), scale=16))
    finetune(loaded, TALKS, spec, tmp_path / "vector", seed=0)
    found = direction_at(str(tmp_path / "vector"))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        with added(loaded.net, found.vectors):
            by_direction = loaded.net(input_ids=ids).logits
        with with_checkpoint(loaded.net, discover(str(tmp_path / "vector"))[-1]) as net:
            by_checkpoint = net(input_ids=ids).logits
        plain = loaded.net(input_ids=ids).logits
    assert torch.allclose(by_direction, by_checkpoint, atol=1e-5) and not torch.allclose(plain, by_direction, atol=1e-3)


def test_an_adapter_is_no_direction(tiny, tmp_path):
    finetune(fresh(tiny), TALKS, SPEC, tmp_path / "lora", seed=0)
    with pytest.raises(InputError, match="holds no steering vector"):
        finetune(fresh(tiny), TALKS, prevented(tmp_path / "lora"), tmp_path / "run", seed=0)


def test_holding_and_preventing_at_once_is_refused(tmp_path):
    settings = {"prevent": {"direction": "x"}, "kl": {"weight": 1, "domain": "sports"}}
    with pytest.raises(InputError, match="kl and prevent are both given"):
        parse(TrainSpec, settings, "train.yaml")
