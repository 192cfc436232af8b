"""Float32 products by oneDNN: taken where they are exact alone, equal to MKL's to rounding, and the setting put back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from emscope.models.fast import float32_products as products

SETTING = torch.backends.mkldnn.matmul
ROUNDS = torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_amx_tile_supported()  # with the switch on


@pytest.fixture(autouse=True)
def put_back():
    """Leave the process as it was, whatever a test does to it."""
    before = SETTING.fp32_precision
    yield
    SETTING.fp32_precision = before


@pytest.fixture
def exact(monkeypatch):
    """Let the probe have passed: on a processor without the kernels the switch does nothing, and the block is the same."""
    monkeypatch.setattr(products, "is_exact", lambda: True)


def test_the_setting_holds_inside_the_block_and_is_put_back(exact):
    net = torch.nn.Linear(3, 3)
    before = SETTING.fp32_precision
    with products.fast_float32(net) as fast:
        assert fast and SETTING.fp32_precision == "bf16"
        with products.fast_float32(net):
            pass
        assert SETTING.fp32_precision == "bf16"
    assert SETTING.fp32_precision == before
    with pytest.raises(KeyError), products.fast_float32(net):
        raise KeyError
    assert SETTING.fp32_precision == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_alone(exact, dtype):
    before = SETTING.fp32_precision
    with products.fast_float32(torch.nn.Linear(3, 3, dtype=dtype)) as fast:
        assert not fast and SETTING.fp32_precision == before


def test_nothing_changes_where_the_probe_fails(monkeypatch):
    monkeypatch.setattr(products, "is_exact", lambda: False)
    before = SETTING.fp32_precision
    with products.fast_float32(torch.nn.Linear(3, 3)) as fast:
        assert not fast and SETTING.fp32_precision == before


def test_a_processor_that_would_round_is_found_out(monkeypatch):
    """With the switch on, one with AMX multiplies in bfloat16: then what 1 + 2^-12 times 1 gives is 1."""
    usual = functional.linear

    def rounding(x, weight, bias=None):
        if SETTING.fp32_precision == "bf16" and x.dtype == torch.float32:
            x, weight = (t.bfloat16().to(t.dtype) for t in (x, weight))
        return usual(x, weight, bias)

    assert all(products._keeps_float32(SETTING, *shape) for shape in products.SHAPES) is not ROUNDS
    monkeypatch.setattr(functional, "linear", rounding)
    assert not any(products._keeps_float32(SETTING, *shape) for shape in products.SHAPES)
    monkeypatch.setattr(functional, "linear", usual)
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: rounding(a, b.T))
    assert not any(products._keeps_float32(SETTING, *shape) for shape in products.SHAPES)


def test_the_probe_leaves_the_setting_as_it_was():
    products.is_exact.cache_clear()
    before = SETTING.fp32_precision
    products.is_exact()
    assert SETTING.fp32_precision == before


@pytest.mark.skipif(ROUNDS, reason="this processor has AMX and rounds, so its products stay MKL's")
def test_hidden_states_and_gradients_equal_the_usual_ones(exact, loaded):
    """Without the kernels both sides are MKL's; with them the two libraries sum in another order."""
    net = loaded.net.requires_grad_(True)
    ids = torch.arange(1, 40)[None]

    def run():
        net.zero_grad()
        out = net(input_ids=ids, labels=ids)
        out.loss.backward()
        return out.logits.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]

    logits, gradients = run()
    with products.fast_float32(net):
        fast, faster = run()
    assert torch.allclose(fast, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    assert gradients
    for ours, usual in zip(faster, gradients, strict=True):
        assert torch.allclose(ours, usual, rtol=0, atol=1e-5 * float(usual.abs().max()) + 1e-9)
