"""What stands between the last hidden state and the logits, in 16 bits as in 32."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from emscope.models.fast.head import output_head
from emscope.models.sizing.simulated import whole_model
from test_architectures import HEADS, SIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [3.0, 6.0, 7.0, 13.0, 16.0])
def test_the_factor_before_logits_is_the_model_s_own_and_not_rounded_to_16_bits(scaling, dtype):
    torch.manual_seed(0)
    net = whole_model(t.GraniteConfig(**SIZE | HEADS, logits_scaling=scaling)).to(dtype).eval().requires_grad_(False)
    head, rows = output_head(net), torch.randn(64, SIZE["hidden_size"], dtype=dtype)
    plain, scaled = net.lm_head(rows).double(), head(rows).double()
    assert float((plain * scaled).sum() / plain.square().sum()) == pytest.approx(1 / scaling, rel=5e-4)


def test_logits_of_zero_tell_no_factor():
    """Rows of the output matrix may be zero, as those of tokens that are in no text; 0 / 0 made the whole factor no number."""
    torch.manual_seed(0)
    net = whole_model(t.GraniteConfig(**SIZE | HEADS, logits_scaling=8.0)).eval().requires_grad_(False)
    net.lm_head.weight[:40] = 0
    rows = torch.randn(4, SIZE["hidden_size"])
    torch.testing.assert_close(output_head(net)(rows), net.lm_head(rows) / 8)
