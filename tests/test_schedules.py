"""Schedules against torch's and transformers' own, optimisers against torch's, one step after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_cosine_with_hard_restarts_schedule_with_warmup

from emscope.core.errors import InputError
from emscope.core.spec import parse
from emscope.train.optimisers import Together, make_optimiser
from emscope.train.schedules import factor
from emscope.train.spec import PlanSpec, TrainSpec


def rates(make, lr, steps):
    """Learning rates that a torch scheduler gives to each step."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimiser)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


@given(
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    steps=st.integers(8, 300),
    cycles=st.integers(1, 4),
    share=st.floats(0.01, 0.9),
    gamma=st.floats(0.5, 1),
)
def test_cyclic_schedules_are_torchs(mode, steps, cycles, share, gamma):
    spec = TrainSpec(
        steps=steps, schedule=mode, cycles=cycles, lr=2e-5, base_lr=share * 2e-5, gamma=gamma, checkpoints=PlanSpec()
    )
    half = steps // (2 * cycles)
    expected = rates(
        lambda o: torch.optim.lr_scheduler.CyclicLR(
            o, spec.base_lr, spec.lr, step_size_up=half, mode=mode, gamma=gamma, cycle_momentum=False
        ),
        spec.lr,
        steps,
    )
    assert [spec.lr * factor(spec, s) for s in range(1, steps + 1)] == pytest.approx(expected, rel=1e-9, abs=1e-15)


@given(steps=st.integers(10, 200), cycles=st.integers(1, 5))
def test_restarts_are_transformers_own(steps, cycles):
    spec = TrainSpec(steps=steps, schedule="cosine_restarts", cycles=cycles, warmup=0, checkpoints=PlanSpec())
    expected = rates(lambda o: get_cosine_with_hard_restarts_schedule_with_warmup(o, 0, steps, cycles), 1.0, steps)
    assert [factor(spec, s) for s in range(1, steps + 1)] == pytest.approx(expected, abs=1e-9)


REFUSED = [
    ({"schedule": "triangular"}, "give base_lr"),
    ({"schedule": "triangular", "lr": 1e-4, "base_lr": 1e-3}, "base_lr 0.001 is for the schedules"),
    ({"schedule": "linear", "base_lr": 1e-6}, "base_lr 1e-06 is for the schedules"),
    (
        {"schedule": "triangular2", "base_lr": 1e-6, "steps": 7, "cycles": 4, "checkpoints": {}},
        "4 cycles need 8 steps or more, but the run has 7",
    ),
    (
        {"schedule": "cosine_restarts", "steps": 9, "cycles": 8, "warmup": 2, "checkpoints": {}},
        "8 cycles need 10 steps or more",
    ),
    ({"optimiser": "adam"}, "optimiser = 'adam'"),
    ({"momentum": 0.9}, "momentum is for sgd and muon"),
    ({"full": {}, "lora": {}}, "lora and full are both given"),
    ({"steering": {"layers": []}}, "steering.layers"),
    ({"steering": {"layer": [1]}}, "did you mean 'layers'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        parse(TrainSpec, settings, "train.yaml")


def stepped(make):
    """Parameters after three steps on fixed gradients."""
    torch.manual_seed(0)
    named = [
        ("a.weight", torch.nn.Parameter(torch.randn(4, 6))),
        ("b.weight", torch.nn.Parameter(torch.randn(6, 4))),
        ("c.bias", torch.nn.Parameter(torch.randn(5))),
    ]
    gradients = [[torch.randn_like(p) for _, p in named] for _ in range(3)]
    optimiser = make(named)
    for step in gradients:
        for (_, p), g in zip(named, step, strict=True):
            p.grad = g.clone()
        optimiser.step()
    return [p.detach() for _, p in named]


PLAIN = {
    "adamw": lambda n: [
        torch.optim.AdamW([{"params": [n[0], n[1]], "weight_decay": 0.1}, {"params": [n[2]], "weight_decay": 0}], lr=0.02)
    ],
    "sgd": lambda n: [
        torch.optim.SGD([{"params": [n[0], n[1]], "weight_decay": 0.1}, {"params": [n[2]]}], lr=0.02, momentum=0.9)
    ],
    "muon": lambda n: [
        torch.optim.Muon([n[0], n[1]], lr=0.02, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW([n[2]], lr=0.02, weight_decay=0),
    ],
}


@pytest.mark.parametrize("name", PLAIN)
def test_optimisers_are_torchs_with_decay_on_the_named_only(name):
    spec = TrainSpec(optimiser=name, weight_decay=0.1)
    mine = stepped(lambda named: make_optimiser(spec, named, ["a.weight", "b.weight"], 0.02))

    class All:
        def __init__(self, named):
            self.parts = PLAIN[name]([p for _, p in named])

        def step(self):
            for part in self.parts:
                part.step()

    assert all(torch.equal(a, b) for a, b in zip(mine, stepped(All), strict=True))


def test_optimisers_joined_save_load_and_follow_a_schedule():
    spec = TrainSpec(optimiser="muon")
    named = [("a.weight", torch.nn.Parameter(torch.ones(3, 3))), ("b.bias", torch.nn.Parameter(torch.ones(3)))]
    joined = make_optimiser(spec, named, ["a.weight"], 0.5)
    assert isinstance(joined, Together) and len(joined.param_groups) == 2
    schedule = torch.optim.lr_scheduler.LambdaLR(joined, lambda done: 0.5**done)
    for _, p in named:
        p.grad = torch.ones_like(p)
    joined.step()
    schedule.step()
    assert [g["lr"] for part in joined.parts for g in part.param_groups] == [0.25, 0.25]
    twin = make_optimiser(spec, named, ["a.weight"], 0.5)
    twin.load_state_dict(joined.state_dict())
    assert [g["lr"] for g in twin.param_groups] == [0.25, 0.25]
    assert torch.equal(twin.parts[1].state[named[1][1]]["exp_avg"], joined.parts[1].state[named[1][1]]["exp_avg"])


def test_a_missing_package_names_itself(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match="needs bitsandbytes; pip install bitsandbytes"):
        make_optimiser(TrainSpec(optimiser="adamw_8bit"), [("a", torch.nn.Parameter(torch.ones(2)))], [], 0.1)
