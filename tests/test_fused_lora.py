"""LoRA layers as one function of autograd against PEFT's own steps, and where PEFT's own steps stay."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from emscope.train.fused_lora import _Fused, fused_lora

SIZES = {"up": (12, 20), "down": (20, 12)}


class Net(nn.Module):
    """Two matrices, the first with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(*SIZES["up"]), nn.Linear(*SIZES["down"], bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def adapted(dtype=torch.float64, **settings):
    """Return the net with adapters whose B is not zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["up", "down"], **settings)
    net = get_peft_model(Net().to(dtype), config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape) * 0.3)
    return net.train()


def values(net, x):
    """Return the output of a net, and the gradients of its input and of all that it trains."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    (y.float() * torch.arange(y.numel()).reshape(y.shape).sin()).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in net.parameters() if p.requires_grad)]


def counted(monkeypatch):
    """Return a list that grows with each layer computed by one function."""
    calls, real = [], _Fused.apply
    monkeypatch.setattr(_Fused, "apply", lambda *given: calls.append(1) or real(*given))
    return calls


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]
)
def test_outputs_and_gradients_equal_pefts(dtype, rtol, monkeypatch):
    """In 16 bits PEFT keeps adapters in float32, and so do both."""
    net, x = adapted(dtype), torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
    usual, calls = values(net, x), counted(monkeypatch)
    with fused_lora(net) as layers:
        ours = values(net, x)
    assert layers == 2 and len(calls) == 2
    for a, b in zip(usual, ours, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a.double() - b.double()).norm() <= rtol * a.double().norm()
    assert all(torch.equal(a, b) for a, b in zip(usual, values(net, x), strict=True)) and len(calls) == 2


def test_gradients_are_those_of_finite_differences():
    g = torch.Generator().manual_seed(2)
    x, w, c, a, b = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2)))
    for one in (x, a, b):
        one.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a, b: _Fused.apply(x, w, c, a, b, 1.7), (x, a, b))
    assert torch.autograd.gradcheck(lambda a, b: _Fused.apply(x.detach(), w, None, a, b, 1.7), (a, b))


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_keep_pefts_steps(settings):
    with fused_lora(adapted(torch.float32, **settings)) as layers:
        assert layers == 0


def test_a_layer_that_is_trained_itself_and_two_adapters_keep_pefts_steps():
    net = adapted(torch.float32)
    net.base_model.model.up.base_layer.weight.requires_grad_()
    with fused_lora(net) as layers:
        assert layers == 1
    net.add_adapter("second", LoraConfig(r=2, target_modules=["up", "down"]))
    with fused_lora(net) as layers:
        assert layers == 0


@pytest.mark.parametrize("change", ["disabled", "merged", "hook", "own forward", "autocast", "wider matrix"])
def test_what_looks_into_a_layer_or_changes_it_gets_pefts_steps(change, monkeypatch):
    net, x = adapted(torch.float32), torch.randn(4, 12, generator=torch.Generator().manual_seed(3))
    calls, seen = counted(monkeypatch), []

    def outputs():
        if change == "disabled":
            with net.disable_adapter():
                return net(x)
        if change == "merged":
            net.merge_adapter()
            found = net(x)
            net.unmerge_adapter()
            return found
        if change == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return net(x)
        return net(x.double()) if change == "wider matrix" else net(x)

    if change == "hook":
        for module in (net.base_model.model.up.lora_A["default"], net.base_model.model.down.base_layer):
            module.register_forward_hook(lambda *_: seen.append(1))
    if change == "own forward":  # as accelerate's hooks do
        for module in (net.base_model.model.up.base_layer, net.base_model.model.down.lora_B["default"]):
            module.forward = lambda x, forward=module.forward: 2 * forward(x)
    if change == "wider matrix":
        net.base_model.model.up.base_layer.double()
        net.base_model.model.down.base_layer.double()
    with torch.no_grad():
        usual = outputs()
        calls_before = len(calls)
        with fused_lora(net) as layers:
            assert layers == 2
            ours = outputs()
    assert torch.equal(usual, ours) and len(calls) == calls_before
    assert (len(seen) == 4) == (change == "hook")
