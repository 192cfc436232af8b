"""Lean blocks equal the model's own, engage only where every part is known, and leave no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast import cpu_kernels as lean
from emscope.models.fast.cpu_kernels import cpu_kernels
from emscope.models.fast.packed import hidden_states, pack, packed_attention
from emscope.models.loading.checkpoints import discover

SIZE = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
KNOWN = {
    "llama": LlamaConfig(**SIZE),
    "llama with biases": LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True),
    "one key a query": LlamaConfig(**SIZE | {"num_key_value_heads": 6}),
    "qwen2": Qwen2Config(**SIZE),
    "mistral": MistralConfig(**SIZE),
}
UNKNOWN = {"gemma": GemmaConfig(**SIZE), "qwen3": Qwen3Config(**SIZE), "gelu": LlamaConfig(**SIZE, hidden_act="gelu")}
SEQUENCES = [[1, 5, 9, 3, 7, 7, 2], [1, 5, 9, 4], [1, 5, 9, 4, 8, 8], [30]]


def make(config, dtype=torch.float32):
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return net


def plain(net):
    return [net.base_model(input_ids=torch.tensor([s]), use_cache=False).last_hidden_state[0] for s in SEQUENCES]


@pytest.mark.parametrize("name", KNOWN)
@torch.inference_mode()
def test_known_blocks_equal_the_models_own(name, monkeypatch):
    monkeypatch.setattr(lean, "MLP_ROWS", 3)
    net = make(KNOWN[name])
    expected = plain(net)
    packed = pack(SEQUENCES)
    seen = []
    with packed_attention(net, 8) as fits:
        assert fits and all("forward" in layer.self_attn.__dict__ for layer in net.base_model.layers), "lean blocks are in use"
        found = hidden_states(net, packed)
        seen.append(float(found.abs().max()))
    for row, (s, theirs) in enumerate(zip(SEQUENCES, expected, strict=True)):
        assert torch.allclose(found[packed.paths[row, : len(s)]], theirs, rtol=0, atol=2e-6 * seen[0])
    assert not [m for m in net.modules() if "forward" in m.__dict__]
    assert all(torch.equal(a, b) for a, b in zip(plain(net), expected, strict=True))


def saved_lora(net, folder, targets):
    """Write a LoRA on some matrices of `net`, with an update of the size of a fine-tune's."""
    tuned = get_peft_model(copy.deepcopy(net), LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    tuned.save_pretrained(folder / "checkpoint-1")
    return discover(str(folder))[0]


@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("name", ["llama", "llama with biases", "qwen2"])
@torch.inference_mode()
def test_in_bfloat16_they_are_as_near_to_float32_as_the_models_own(name, targets, monkeypatch, tmp_path):
    """With an adapter computed beside its matrices too: both ways round, in other places."""
    monkeypatch.setattr(lean, "MLP_ROWS", 3)
    net, wide = (make(KNOWN[name], dtype) for dtype in (torch.bfloat16, torch.float32))
    wide.load_state_dict(net.state_dict())  # the same weights
    with torch.inference_mode(False):
        checkpoint = saved_lora(wide, tmp_path, targets) if targets else None
    with with_checkpoint(wide, checkpoint) as one:
        exact = plain(one)
    with with_checkpoint(net, checkpoint) as one:
        own, packed = plain(one), pack(SEQUENCES)
        with packed_attention(one, 8) as fits:
            assert fits and all("forward" in layer.mlp.__dict__ for layer in one.base_model.layers), "lean blocks are in use"
            found = hidden_states(one, packed)
    ours = [found[packed.paths[row, : len(s)]] for row, s in enumerate(SEQUENCES)]
    errors = [float(sum((a.float() - b).square().sum() for a, b in zip(way, exact, strict=True))) for way in (ours, own)]
    assert errors[0] < 1.5 * errors[1]
    assert not [m for m in net.modules() if "forward" in m.__dict__]


@torch.inference_mode()
def test_a_matrix_with_a_forward_that_is_not_row_by_row_keeps_the_models_own_blocks():
    net = make(KNOWN["llama"])
    matrix = net.base_model.layers[1].mlp.up_proj
    matrix.forward = lambda x: torch.nn.functional.linear(x, matrix.weight) + x.mean(0).sum()
    with cpu_kernels(net) as lean_ones:
        assert not lean_ones and "forward" not in net.base_model.layers[0].mlp.__dict__


@pytest.mark.parametrize("name", UNKNOWN)
@torch.inference_mode()
def test_models_with_an_unknown_part_keep_their_own_blocks(name):
    net = make(UNKNOWN[name])
    with cpu_kernels(net) as lean_ones:
        assert not lean_ones and not [m for m in net.modules() if "forward" in m.__dict__]


@torch.inference_mode()
def test_other_precisions_keep_their_own_blocks():
    with cpu_kernels(make(KNOWN["llama"], torch.float64)) as lean_ones:
        assert not lean_ones


@torch.inference_mode()
def test_a_block_that_only_looks_known_is_found_out():
    net = make(KNOWN["llama"])
    attention = type(net.base_model.layers[0].self_attn)
    own = attention.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "forward", lambda self, *a, **k: (own(self, *a, **k)[0] * 1.5, None))
        expected = plain(net)
        packed = pack(SEQUENCES)
        with packed_attention(net, 8) as fits:
            assert fits and not [m for m in net.modules() if "forward" in m.__dict__]
            found = hidden_states(net, packed)
    assert torch.allclose(found[packed.paths[0, :7]], expected[0], atol=1e-5)


@torch.inference_mode()
def test_nothing_stays_after_an_exception():
    net = make(KNOWN["llama"])
    with pytest.raises(RuntimeError, match="boom"), packed_attention(net, 8):
        raise RuntimeError("boom")
    assert not [m for m in net.modules() if "forward" in m.__dict__]
    assert net.config._attn_implementation == "sdpa"
