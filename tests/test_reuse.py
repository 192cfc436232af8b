"""Frozen lower blocks computed once an example: the same numbers as computing them every time, and less work."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as t

from conftest import make_model
from emscope.data import bundled
from emscope.elicit.preference import score
from emscope.models.fast.prefix_cache import prefix_cached
from emscope.models.hooks.interventions import added
from emscope.models.hooks.sites import blocks
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.sizing.simulated import whole_model
from emscope.train import finetune as module
from emscope.train.finetune import finetune
from emscope.train.parts import Part
from emscope.train.reuse import reusing
from emscope.train.spec import FullSpec, KlSpec, LdifsSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec
from test_architectures import BASE, ITEMS, plainly

TALKS = bundled.domain("finance", "reckless")[:8]
NEAR = bundled.domain("sports", "careful")[:4]
WAYS = {
    "lora": {"lora": LoraSpec(rank=2, alpha=4, layers=(2, 3))},
    "steering": {"steering": SteeringSpec(layers=(3,), scale=16)},
    "full": {"full": FullSpec(modules=("mlp.down_proj", "mlp.c_proj"), layers=(2,))},
    "kl": {"lora": LoraSpec(rank=2, alpha=4, layers=(2,)), "kl": KlSpec(weight=1, domain="sports", batch=2)},
    "ldifs above": {
        "lora": LoraSpec(rank=2, alpha=4, layers=(2,)),
        "ldifs": LdifsSpec(weight=9, domain="sports", batch=2, layers=(2, 3)),
    },
    "ldifs below": {
        "lora": LoraSpec(rank=2, alpha=4, layers=(2,)),
        "ldifs": LdifsSpec(weight=9, domain="sports", batch=2, layers=(0, 3)),
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models of four blocks without dropout, by kind. Do not write into them."""
    root = tmp_path_factory.mktemp("models")
    folders = {kind: make_model(root / kind, layers=4, kind=kind) for kind in ("llama", "gpt2")}
    config = json.loads((folders["gpt2"] / "config.json").read_text())  # its default dropout would make what is kept wrong
    config |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    (folders["gpt2"] / "config.json").write_text(json.dumps(config))
    return folders


def spec(steps=3, **changes):
    return TrainSpec(steps=steps, batch=4, micro_batch=2, lr=5e-3, checkpoints=PlanSpec(), **changes)


def run(folder, out, settings, monkeypatch, *, reuse=True, count=None):
    if not reuse:
        plain = module.reusing
        monkeypatch.setattr(module, "reusing", lambda *args, wanted: plain(*args, wanted=False))
    loaded = load(locate(str(folder)), device="cpu")
    if count is not None:
        lowest = blocks(loaded.net)[0]
        norm = lowest.input_layernorm if hasattr(lowest, "input_layernorm") else lowest.ln_1
        # in training: that padding changes nothing is tried beforehand, in passes of their own
        norm.register_forward_hook(lambda m, i, o: count.append(len(i[0])) if m.training else None)
    rows = finetune(loaded, TALKS, settings, out, seed=0, held_near=NEAR if settings.held else ())
    assert "forward" not in vars(blocks(loaded.net)[0]), "the blocks are as before"
    return rows


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_numbers_are_those_of_computing_everything(way, kind, models, tmp_path, monkeypatch):
    """Of three steps the last sees conversations again, both of those trained on and of those held near."""
    folder, settings = models[kind], spec(**WAYS[way])
    fast = run(folder, tmp_path / "fast", settings, monkeypatch)
    slow = run(folder, tmp_path / "slow", settings, monkeypatch, reuse=False)
    for a, b in zip(fast, slow, strict=True):
        assert (a.loss, a.grad_norm, a.update_norm) == pytest.approx((b.loss, b.grad_norm, b.update_norm), rel=1e-4)
        assert (a.kl or 0, a.ldifs or 0) == pytest.approx((b.kl or 0, b.ldifs or 0), rel=1e-3, abs=1e-7)
        assert a.tokens_seen == b.tokens_seen


def test_the_lowest_block_runs_once_an_example(models, tmp_path, monkeypatch):
    folder, count = models["llama"], []
    run(folder, tmp_path / "fast", spec(6, **WAYS["lora"]), monkeypatch, count=count)
    assert sum(count) == len(TALKS), "24 examples were seen, 8 are different"
    count.clear()
    run(folder, tmp_path / "slow", spec(6, **WAYS["lora"]), monkeypatch, reuse=False, count=count)
    assert sum(count) == 24


def test_it_is_left_alone_where_it_would_be_wrong(models, tmp_path, monkeypatch):
    count = []
    with_dropout = make_model(tmp_path / "gpt2", layers=4, kind="gpt2")
    run(with_dropout, tmp_path / "a", spec(steering=SteeringSpec(layers=(3,), scale=16)), monkeypatch, count=count)
    assert sum(count) == 12
    count.clear()
    run(models["llama"], tmp_path / "b", spec(lora=LoraSpec(rank=2, alpha=4)), monkeypatch, count=count)
    assert sum(count) == 12, "every block is trained"


SIZE = {"vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
RANDOM = {
    "opt": lambda p: t.OPTConfig(
        **SIZE | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}, dropout=p, attention_dropout=0.0
    ),
    "falcon": lambda p: t.FalconConfig(**SIZE, hidden_dropout=p),
    "mixtral": lambda p: t.MixtralConfig(**SIZE, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=p),
    "llama": lambda p: t.LlamaConfig(**SIZE, attention_dropout=p),
    "gpt2": lambda p: t.GPT2Config(vocab_size=600, n_embd=32, n_layer=3, n_head=4, attn_pdrop=0, embd_pdrop=0, resid_pdrop=p),
}


@pytest.mark.parametrize("kind", RANDOM)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_what_is_random_in_training_is_not_kept_wherever_the_model_has_it(kind, p):
    """Dropout is a function in OPT, Falcon and Llama, and a router's noise is no dropout: no module tells of them."""
    torch.manual_seed(0)
    net, seen = whole_model(RANDOM[kind](p)), []
    net.train().requires_grad_(False)
    parts = [Part("upper", 2, True, torch.nn.Parameter(torch.zeros(32)))]
    blocks(net)[2].register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).clone()), with_kwargs=True
    )
    for _ in range(2):
        net(input_ids=torch.arange(1, 40)[None], use_cache=False)
    assert torch.equal(*seen) == (p == 0)
    with reusing(net, parts, [], wanted=True) as reuse:
        assert (reuse is not None) == (p == 0)


SHARED = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64}
BESIDE = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 600}
SHARING = {
    "gemma3n": lambda: t.Gemma3nTextConfig(
        **BASE | {"num_hidden_layers": 4}, **SHARED, **BESIDE, laurel_rank=4, activation_sparsity_pattern=[0.0] * 4
    ),
    "gemma4": lambda: t.Gemma4TextConfig(**BASE | {"num_hidden_layers": 4}, **SHARED, **BESIDE),
}


@pytest.mark.parametrize("kind", SHARING)
def test_blocks_that_take_keys_from_lower_ones_are_computed_with_them(kind):
    """What enters an upper block is not all that it needs: both ways of skipping lower blocks ended in a KeyError."""
    torch.manual_seed(0)
    net = whole_model(SHARING[kind]()).eval().requires_grad_(False)
    vectors = {2: torch.randn(32)}
    with reusing(net, [Part("upper", 2, True, torch.nn.Parameter(torch.zeros(32)))], [], wanted=True) as reuse:
        assert reuse is None
    with added(net, vectors):
        wanted = plainly(net)
    with prefix_cached(net, 2):
        score(net, ITEMS)
        with added(net, vectors):
            assert [s.logprob for s in score(net, ITEMS)] == pytest.approx(wanted, rel=1e-4)


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    """The readings of a training in float32 without gradient checkpointing."""
    torch.set_num_threads(1)  # as in the tests, whose own fixture comes later than this one
    with pytest.MonkeyPatch.context() as patch:
        return run(models["llama"], tmp_path_factory.mktemp("plain"), spec(), patch)


@pytest.mark.parametrize("changes", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_bfloat16_and_gradient_checkpointing_train_as_the_plain_way(changes, models, plain, tmp_path, monkeypatch):
    other = run(models["llama"], tmp_path / "other", spec(**changes), monkeypatch)
    tolerance = 3e-2 if "bf16" in changes else 1e-5
    for a, b in zip(plain, other, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=tolerance)
    assert (other[-1].loss == plain[-1].loss) == ("bf16" not in changes)
    assert torch.isfinite(torch.tensor(other[-1].grad_norm))
