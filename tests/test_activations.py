"""Activations against transformers' own hidden states, other libraries, plain loops; places found in every known shape."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from emscope.core.errors import InputError, WorldError
from emscope.models.hooks.capture import branches_at, captured, watched
from emscope.models.hooks.interventions import ablated, added, replaced
from emscope.models.hooks.roles import answers_at
from emscope.models.hooks.sites import Place, blocks
from emscope.represent.activations import POOLS, Text, pooled, read_pooled, read_tokens
from emscope.store.arrays import array_file

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
SHAPES = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": {},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "gpt_neox": {},
    "olmo": {},
    "olmo2": {"num_key_value_heads": 2},
    "gpt2": {},
}
TEXTS = [
    Text("a", (1, 2, 3, 4, 5), (6, 7)),
    Text("b", (1, 2, 3, 9), (8, 8, 8, 4, 4)),
    Text("c", (1, 2), (5,)),
    Text("d", (1, 2, 3, 4, 5), (6, 9, 9), (7, 3)),
]


def make(kind, dtype=torch.float32):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | SHAPES[kind]))
    net = AutoModelForCausalLM.from_config(config).to(dtype).eval().requires_grad_(False)
    for parameter in net.parameters():  # matrices of the default scale change the stream too little to tell parts apart
        if parameter.ndim == 2:
            parameter.mul_(4.0)
    return net


def hidden_states(net, text):
    ids = torch.tensor([[*text.prompt, *text.answer, *text.after]])
    return net(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states


@pytest.mark.parametrize("kind", SHAPES)
def test_pooled_activations_equal_means_of_hidden_states(kind):
    """hidden_states[n] stands in front of block n; its last entry is behind the final norm, so the last block is not in it."""
    net = make(kind)
    places = [Place("block", 0), Place("before", 2), Place("before", 0)]
    values = pooled(net, TEXTS, places, POOLS, batch_tokens=12)
    for n, text in enumerate(TEXTS):
        states = [hidden_states(net, text)[k][0] for k in (1, 2, 0)]
        answered = len(text.prompt) + len(text.answer)
        spans = [(len(text.prompt) - 1, len(text.prompt)), (1, len(text.prompt)), (len(text.prompt), answered)]
        spans.append((len(text) - 1, len(text)))
        expected = torch.stack([torch.stack([s[start:stop].mean(0) for s in states]) for start, stop in spans])
        torch.testing.assert_close(values[n], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", SHAPES)
def test_attention_and_mlp_are_what_a_block_adds(kind):
    net = make(kind)
    places = [Place(site, 1) for site in ("before", "attention", "mlp", "block")]
    with captured(net, places) as found:
        net(input_ids=torch.tensor([[1, 2, 3, 4, 9]]), use_cache=False)
    before, attention, mlp, block = (found[p] for p in places)
    torch.testing.assert_close(before + attention + mlp, block, rtol=1e-4, atol=1e-4)
    assert float(attention.abs().max()) > 1e-3 and float(mlp.abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_watched_pass_is_exactly_the_plain_one(kind):
    """Same batch, same pass: equal to the last bit, but for the last block, which hidden_states hold behind the final norm."""
    net, ids = make(kind), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    depth = len(blocks(net))
    with captured(net, [Place("block", n) for n in range(depth)]) as found:
        states = net(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    for n in range(depth - 1):
        assert torch.equal(found[Place("block", n)], states[n + 1])
    final = net.base_model.norm if kind == "llama" else net.base_model.ln_f
    assert torch.equal(final(found[Place("block", depth - 1)]), states[-1])


def test_packed_equals_padded_equals_one_by_one():
    net = make("llama", torch.float64)
    places = [Place("block", n) for n in range(3)]
    packed = pooled(net, TEXTS, places, ("prompt", "answer"))
    alone = torch.cat([pooled(net, [t], places, ("prompt", "answer")) for t in TEXTS])
    torch.testing.assert_close(packed, alone, rtol=1e-6, atol=1e-6)
    net.config.sliding_window = 2  # a window that reaches less far than the texts cannot be packed
    import emscope.represent.activations as module

    kept = module.packed_attention
    try:
        from contextlib import nullcontext

        module.packed_attention = lambda net, longest: nullcontext(False)
        padded = pooled(net, TEXTS, places, ("prompt", "answer"))
    finally:
        module.packed_attention = kept
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-6)


def test_token_0_is_left_out_unless_asked_for():
    net = make("llama")
    place = [Place("block", 1)]
    state = hidden_states(net, TEXTS[0])[2][0]
    plain, whole = (pooled(net, TEXTS[:1], place, ["prompt"], first=first)[0, 0, 0] for first in (False, True))
    torch.testing.assert_close(plain, state[1:5].mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, state[:5].mean(0), rtol=1e-4, atol=1e-4)


def test_every_token_of_a_text():
    net = make("gpt2")
    found = {}
    read_tokens(net, TEXTS, [Place("block", 0), Place("block", 1)], lambda which, values: found.update({which[0]: values}))
    for n, text in enumerate(TEXTS):
        states = hidden_states(net, text)
        torch.testing.assert_close(found[n], torch.stack([states[1][0], states[2][0]], 1), rtol=1e-4, atol=1e-4)


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


def test_nothing_above_the_highest_place_is_computed():
    net, seen = make("llama"), []
    handle = blocks(net)[2].register_forward_pre_hook(lambda *_: seen.append(1))
    read_pooled(net, TEXTS, [Place("block", 0), Place("attention", 1)], ["answer"], lambda *_: seen.clear())
    seen.clear()
    read_pooled(net, TEXTS, [Place("block", 1)], ["answer"], lambda which, values: None, batch_tokens=1000)
    assert len(seen) <= 6, "only the probes of the packed attention reach the last block"
    handle.remove()
    assert hooks(net) == 0


class Broken(Exception):
    pass


@pytest.mark.parametrize("fails_at", range(4))
def test_hooks_are_gone_after_an_exception_at_any_point(fails_at):
    net = make("llama")
    calls = 0

    def see(place, values):
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise Broken

    with pytest.raises(Broken), watched(branches_at(net, [*(Place("block", n) for n in range(3)), Place("before", 0)]), see):
        net(input_ids=torch.tensor([[1, 2, 3]]))
    assert hooks(net) == 0
    attention = net.config._attn_implementation
    with pytest.raises(Broken):
        read_pooled(net, TEXTS, [Place("block", 0)], ["answer"], lambda *_: (_ for _ in ()).throw(Broken()))
    assert hooks(net) == 0 and net.config._attn_implementation == attention
    assert not any("forward" in vars(m) for m in net.modules())


def test_a_place_that_does_not_exist():
    net = make("llama")
    for place, said in (
        (Place("blok", 0), "there is no site 'blok', did you mean 'block'?"),
        (Place("block", 3), "layer 3 is out of range, this model has layers 0 to 2"),
    ):
        with pytest.raises(InputError) as error:
            branches_at(net, [place])
        assert said.split(",")[0] in str(error.value)
    with pytest.raises(InputError, match="there is no pool 'answers'"):
        pooled(net, TEXTS, [Place("block", 0)], ["answers"])
    with pytest.raises(InputError, match="'x' has no token for the pool 'answer'"):
        pooled(net, [Text("x", (1, 2))], [Place("block", 0)], ["answer"])


def test_sites_may_be_named():
    net = make("llama")
    net.config.emscope_sites = {"mlp": "mlp.down_proj"}
    with captured(net, [Place("mlp", 0)]) as found:
        net(input_ids=torch.tensor([[1, 2, 3]]))
    with captured(make("llama"), [Place("mlp", 0)]):
        assert found[Place("mlp", 0)].shape == (1, 3, 32)
    net.config.emscope_sites = {"mlp": "nothing"}
    with pytest.raises(InputError, match="has no module 'nothing'"), captured(net, [Place("mlp", 0)]):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ablation_leaves_no_component(dtype):
    net = make("llama", dtype)
    vector = torch.randn(32, dtype=torch.float64)
    with ablated(net, {1: 3 * vector}), captured(net, [Place("block", 1), Place("before", 2)]) as found:
        net(input_ids=torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    state = found[Place("before", 2)].double()
    part = (state @ (vector / vector.norm())).abs()
    assert float((part / state.norm(dim=-1)).max()) < 1e-6
    assert hooks(net) == 0


@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
def test_interventions_act_on_the_tokens_meant(tokens):
    net = make("llama", torch.float64)
    ids, answer = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[False, False, True, True]])
    vector = torch.randn(32, dtype=torch.float64)
    meant = {"all": answer | True, "prompt": ~answer, "answer": answer}[tokens]
    with captured(net, [Place("before", 1)]) as found:
        net(input_ids=ids)
        plain = found[Place("before", 1)]
        for change, expected in (
            (added(net, {0: vector}, 2.0, tokens=tokens), plain + 2 * vector),
            (replaced(net, {0: vector}, tokens=tokens), vector.expand_as(plain)),
        ):
            with answers_at(answer), change:
                net(input_ids=ids)
            torch.testing.assert_close(found[Place("before", 1)], torch.where(meant[..., None], expected, plain))
        with added(net, {0: vector}, tokens=tokens):  # what nobody calls an answer is a prompt
            net(input_ids=ids)
        torch.testing.assert_close(found[Place("before", 1)], plain if tokens == "answer" else plain + vector)
    assert hooks(net) == 0


def test_an_array_file_has_its_place_on_disk_from_the_start(tmp_path, monkeypatch):
    """Else a page that is written to a full disk ends the process by a bus error."""
    path = tmp_path / "a.safetensors"
    with array_file(path, (1000, 4, 8), {}):
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= 1000 * 4 * 8 * 4

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(WorldError, match="no space left"), array_file(tmp_path / "b.safetensors", (5, 2), {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_array_file_fills_up_row_by_row_and_is_safetensors(tmp_path):
    path, about = tmp_path / "a.safetensors", {"of": "something"}
    with array_file(path, (5, 2, 3), about) as file:
        file.write([3, 1], np.full((2, 2, 3), 7.0))
        assert file.missing() == [0, 2, 4]
    with array_file(path, (5, 2, 3), about) as file:
        assert file.missing() == [0, 2, 4]
        file.write([0, 2, 4], np.zeros((3, 2, 3)))
    found = load_file(str(path))
    assert found["values"].shape == (5, 2, 3) and found["done"].tolist() == [1] * 5
    assert found["values"][3].tolist() == [[7.0] * 3] * 2
    with pytest.raises(InputError, match="holds something else"), array_file(path, (5, 2, 4), about):
        pass
    path.write_bytes(b"\x05\0\0\0\0\0\0\0{{{{{")
    with pytest.raises(InputError, match="is damaged"), array_file(path, (5, 2, 3), about):
        pass


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(tiny):
    """The peak of 3,000 prompts at all places beside that of 300, each in a process of its own."""
    program = (
        "import resource, sys, torch\n"
        "from emscope.models.loading.load import load\n"
        "from emscope.models.hooks.sites import Place\n"
        "from emscope.models.loading.source import locate\n"
        "from emscope.represent.activations import Text, read_pooled\n"
        "net, count = load(locate(sys.argv[1]), device='cpu').net, int(sys.argv[2])\n"
        "draw = torch.Generator().manual_seed(0)\n"
        "texts = [Text(str(n), tuple(torch.randint(1, 90, (120,), generator=draw).tolist())) for n in range(count)]\n"
        "places = [Place(site, n) for site in ('block', 'attention', 'mlp') for n in (0, 1)]\n"
        "seen = []\n"
        "read_pooled(net, texts, places, ['last', 'prompt'], lambda which, values: seen.append(len(which)))\n"
        "assert sum(seen) == count\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", program, str(tiny), str(n)], capture_output=True, text=True, check=True
            ).stdout
        )
        for n in (300, 3000)
    ]
    held = 2700 * 120 * 16 / 1024  # the texts themselves, a pointer and a share of an object a token [KiB]
    assert peaks[1] - peaks[0] < held + 20_000, peaks
