"""What a block's mixer, attention and MLP add to the stream, in models that mix kinds of layers: against hooks written by hand."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from emscope.core.errors import InputError
from emscope.models.hooks.branches import branches
from emscope.models.hooks.capture import branches_at, captured
from emscope.models.hooks.sites import SITES, Place, blocks
from emscope.models.sizing.simulated import whole_model
from emscope.study.examining import Passed, _edited, causal_edit
from test_architectures import BASE, HEADS, KINDS, MAMBA, SIZE

IDS = torch.tensor([[5, 9, 12, 7, 30, 3], [8, 2, 4, 80, 41, 6]])
FACTORS = {"attention_out_multiplier": 0.7, "ssm_out_multiplier": 1.3, "attention_in_multiplier": 0.9, "key_multiplier": 1.1}
CONFIGS = {name: KINDS[name].config for name in ("qwen3_next", "qwen3_5 with images", "lfm2", "granite 4 h", "llama4")} | {
    "falcon_h1": lambda: t.FalconH1Config(**BASE, **MAMBA, mamba_d_ssm=64, **FACTORS),
    "granite 4 h, dense": lambda: t.GraniteMoeHybridConfig(
        **SIZE | HEADS,
        **MAMBA,
        layer_types=["linear_attention", "full_attention"],
        num_local_experts=0,
        shared_intermediate_size=32,
        residual_multiplier=0.22,
    ),
}
# Module names in the source of transformers, with the factor there: what the first and the second block add, attention and mixer.
LINEAR = ({"linear_attn": 1.0}, {"self_attn": 1.0})
WRITTEN = {
    "qwen3_next": (LINEAR, {"mlp": 1.0}),
    "qwen3_5 with images": (LINEAR, {"mlp": 1.0}),
    "lfm2": (({"conv": 1.0}, {"self_attn": 1.0}), {"feed_forward": 1.0}),
    "granite 4 h": (({"mamba": 0.5}, {"self_attn": 0.5}), {"block_sparse_moe": 0.5, "shared_mlp": 0.5}),
    "granite 4 h, dense": (({"mamba": 0.22}, {"self_attn": 0.22}), {"shared_mlp": 0.22}),
    "llama4": (({"self_attn": 1.0}, {"self_attn": 1.0}), {"feed_forward": 1.0}),
    "falcon_h1": (({"mamba": 1.3, "self_attn": 0.7},) * 2, {"feed_forward": 1.0}),
}


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    net = whole_model(CONFIGS[name]()).to(dtype).eval().requires_grad_(False)
    with torch.no_grad():  # at the usual scale parts change the stream too little to be told apart
        for p in net.parameters():
            p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
    return net


def by_hand(net, named):
    """Return for each block the sum of factor x output over the named modules, by plain forward hooks."""
    found = [torch.zeros(*IDS.shape, 32) for _ in named]

    def adding(n, factor):
        def hook(module, given, output):
            output = output[0] if isinstance(output, tuple) else output
            found[n] += factor * output.reshape(*IDS.shape, 32)

        return hook

    layers = blocks(net)
    handles = [
        getattr(layers[n], module).register_forward_hook(adding(n, factor))
        for n, parts in enumerate(named)
        for module, factor in parts.items()
    ]
    net(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_sites_are_what_hooks_written_by_hand_see(name):
    net = make(name)
    mixers, mlp = WRITTEN[name]
    attention = [{m: f for m, f in parts.items() if m == "self_attn"} for parts in mixers]
    wanted = {"mixer": by_hand(net, mixers), "attention": by_hand(net, attention), "mlp": by_hand(net, (mlp, mlp))}
    places = [Place(site, n) for n in (0, 1) for site in SITES if site != "attention" or attention[n]]
    with captured(net, places) as found:
        net(input_ids=IDS, use_cache=False)
    for place in places:
        if place.site in wanted:
            torch.testing.assert_close(found[place], wanted[place.site][place.layer], rtol=1e-5, atol=1e-6)
            assert float(found[place].abs().max()) > 1e-3
    for n in (0, 1):
        before, mixer, mlp_adds, after = (found[Place(site, n)] for site in ("before", "mixer", "mlp", "block"))
        torch.testing.assert_close(before + mixer + mlp_adds, after, rtol=1e-4, atol=1e-4 * float(after.abs().max()))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_edit_at_each_site_moves_what_follows_alone(name):
    net = make(name)
    found = {site: causal_edit(net, site) for site in SITES}
    assert [f.sentence for f in found.values() if f.outcome != Passed.PASS] == []
    with_attention = [n for n, parts in enumerate(WRITTEN[name][0]) if "self_attn" in parts]
    assert found["attention"].figures["layers"] == with_attention


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("site", ["mixer", "mlp"])
@torch.inference_mode()
def test_an_edit_moves_the_stream_by_the_vector_added(name, site):
    """Whatever factor stands before the branch; in front of the MLP stands a norm, whose input is the stream behind the mixer."""
    net = make(name)
    block, place = blocks(net)[1], Place(site, 1)
    part = branches_at(net, [place])[place][0]
    norms = ("post_attention_layernorm", "pre_ff_layernorm", "ffn_norm")
    seen = []
    if site == "mixer":
        norm = next(getattr(block, n) for n in norms if hasattr(block, n))
        watch = norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    else:
        watch = block.register_forward_hook(lambda m, given, out: seen.append(out[0] if isinstance(out, tuple) else out))
    where = torch.arange(IDS.shape[1])[None] == 3
    shift = torch.randn(32)
    net(input_ids=IDS[:1], use_cache=False)
    with _edited(net, place, part, shift, where):
        net(input_ids=IDS[:1], use_cache=False)
    watch.remove()
    wanted = torch.zeros(1, IDS.shape[1], 32)
    wanted[0, 3] = shift
    torch.testing.assert_close(seen[1] - seen[0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_parts_are_found_in_16_bits(name, dtype):
    net = make(name, dtype)
    mixers, mlp = WRITTEN[name]
    for site, wanted in (("mixer", mixers), ("mlp", (mlp, mlp))):
        assert [{b.name: b.scale for b in parts} for parts in branches(net, site)] == list(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parts_that_do_not_sum_to_what_a_block_adds_are_refused_in_every_dtype(dtype):
    """RWKV's first block puts a norm over its input, and adds to that."""
    torch.manual_seed(0)
    net = whole_model(t.RwkvConfig(vocab_size=600, hidden_size=32, num_hidden_layers=2, context_length=256)).to(dtype).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
    with pytest.raises(InputError, match="cannot tell what attention and MLP add"):
        branches(net, "mixer")


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 100.0), (torch.float32, 1e5)])
def test_a_massive_activation_hides_no_wrong_part(dtype, size):
    """Real models have some ten thousand times larger than the rest; beside it, the norm in front of the MLP would pass for attention."""
    torch.manual_seed(0)
    net = whole_model(t.LlamaConfig(**BASE)).eval().requires_grad_(False)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
        weight = net.model.layers[1].mlp.down_proj.weight
        weight[3] *= 10 * size / float(weight[3].abs().max())
    found = {site: branches(net.to(dtype), site) for site in ("mixer", "attention", "mlp")}
    assert [[b.name for b in parts] for parts in found["attention"]] == [["self_attn"]] * 2
    assert [[b.name for b in parts] for parts in found["mixer"]] == [["self_attn"]] * 2
    assert [[b.name for b in parts] for parts in found["mlp"]] == [["mlp"]] * 2


def test_linear_attention_that_is_called_self_attn_is_no_softmax_attention():
    """Kimi Linear calls both so; its configuration says which is which."""
    torch.manual_seed(0)
    net = whole_model(
        t.KimiLinearConfig(**SIZE | HEADS | {"num_key_value_heads": 4}, layer_types=["linear_attention", "full_attention"])
    ).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
    linear, softmax = (type(block.self_attn).__name__ for block in blocks(net))
    assert linear != softmax
    assert [[type(b.module).__name__ for b in parts] for parts in branches(net, "attention")] == [[], [softmax]]


def test_a_block_without_attention_is_named_with_its_mixer():
    net = make("lfm2")
    with pytest.raises(InputError) as error:
        branches_at(net, [Place("attention", 0)])
    assert str(error.value) == "block 0 of Lfm2ForCausalLM has no attention: its mixer is conv; read the site mixer there"
    assert branches_at(net, [Place("attention", 1)])


def test_parts_that_do_not_add_up_are_not_taken():
    net = make("llama4")
    block = blocks(net)[1]
    block.register_forward_hook(lambda module, given, output: output + 0.1)
    with pytest.raises(InputError, match="cannot tell what attention and MLP add"):
        branches(net, "mlp")
    net.config.emscope_sites = {"mlp": "feed_forward"}
    assert [part.name for parts in branches(net, "mlp") for part in parts] == ["feed_forward", "feed_forward"]
