"""Packed batches, attention and trackers in training: the same numbers, refused where they would not be, nothing sent unasked."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from conftest import make_tokenizer
from emscope.core.errors import InputError, MissingDependency
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.models.sizing.simulated import whole_model
from emscope.study.spec import study_of
from emscope.study.train import SingleSpec
from emscope.study.training.sources import frozen
from emscope.train import attention
from emscope.train.attention import attending, check_attention
from emscope.train.batches import IGNORED, Example, collate, collate_packed, encode, real_tokens, sequences_in
from emscope.train.finetune import check_finetune, finetune
from emscope.train.spec import KlSpec, LoraSpec, PlanSpec, TrainSpec
from test_architectures import HEADS, KINDS, SIZE
from test_train import SPEC, strip, talks

PACKED = SPEC.model_copy(update={"packing": True})
PACK = ("gpt2", "qwen3_moe", "mistral, short window", "gemma2", "olmo2", "deepseek_v3", "llama4")
LEAK = ("qwen3_next", "falcon_h1", "lfm2", "granite 4 h")


def fresh(folder):
    return load(locate(str(folder)), device="cpu")


def architecture(name, dtype=torch.float64):
    torch.manual_seed(0)
    net = whole_model(KINDS[name].config()).to(dtype).eval()
    if net.base_model is net:
        net.base_model_prefix = "model"  # as `load_net` has it
    if dtype == torch.float64:
        net.set_experts_implementation("eager")  # grouped products are of 32 bits or fewer
    with torch.no_grad():  # at the usual scale what one example sees of another would not show
        for p in net.parameters():
            p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
    return net


@pytest.fixture(scope="module")
def examples():
    return encode(ChatFormat.of(make_tokenizer()), talks(5), 256)


def test_a_packed_batch_holds_its_examples_end_to_end(examples):
    packed, padded = collate_packed(examples), collate(examples)
    assert packed["input_ids"][0].tolist() == [token for e in examples for token in e.ids]
    assert packed["position_ids"][0].tolist() == [n for e in examples for n in range(len(e.ids))]
    assert packed["labels"][0].tolist() == [i if m else IGNORED for e in examples for i, m in zip(e.ids, e.mask, strict=True)]
    for batch in (packed, padded):
        assert sequences_in(batch) == [e.ids for e in examples]
        assert int(real_tokens(batch).sum()) == sum(len(e.ids) for e in examples)


def loss_and_gradients(net, batch):
    """Return summed cross-entropy over the learned tokens, and the gradient of every weight, written out plainly."""
    net.zero_grad()
    labels = batch["labels"]
    logits = net(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="sum")
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PACK)
def test_packed_loss_and_gradients_equal_those_of_examples_alone_and_padded(name, examples):
    net = architecture(name)
    check_attention(net, PACKED, examples)
    loss, gradients = loss_and_gradients(net, collate_packed(examples))
    alone = [loss_and_gradients(net, collate([e])) for e in examples]
    found = [(sum(one for one, _ in alone), {n: sum(g[n] for _, g in alone if n in g) for n in gradients})]
    if name != "gemma2":  # its eager attention gives no number for padding in float64
        found.append(loss_and_gradients(net, collate(examples)))
    for wanted, expected in found:
        assert loss == pytest.approx(wanted, rel=1e-7)
        for weight, gradient in gradients.items():
            size = float(expected[weight].abs().max())
            torch.testing.assert_close(gradient, expected[weight], rtol=1e-5, atol=1e-6 * size)  # routers are float32


@pytest.mark.parametrize("name", LEAK)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_is_refused_where_examples_see_each_other(name, dtype, examples):
    net = architecture(name, dtype)
    with pytest.raises(InputError, match=r"train\.packing: packed examples see each other"):
        check_attention(net, PACKED, examples)
    check_attention(net, SPEC, examples)


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "mistral, short window", "gemma2", "olmo2"])
@pytest.mark.parametrize("lay", [collate, collate_packed])
def test_sdpa_of_16_bits_is_trained_in_float32_on_a_cpu_and_nearer_to_the_exact_gradients(name, lay, examples):
    """Against the same model in float32; layers that another attention computes are left as they are."""
    net = architecture(name, torch.bfloat16)
    before, batch = net.config._attn_implementation, lay(examples)
    _, exact = loss_and_gradients(copy.deepcopy(net).float(), batch)
    _, plain = loss_and_gradients(net, batch)
    with attending(net, "as_loaded"):
        within = net.config._attn_implementation
        _, found = loss_and_gradients(net, batch)
    assert net.config._attn_implementation == before
    assert (within == attention.SDPA_FLOAT32) is (before == "sdpa")

    def apart(gradients):
        return sum(float((gradients[n].double() - g).square().sum()) for n, g in exact.items()) ** 0.5

    assert apart(found) <= 1.1 * apart(plain)
    assert apart(found) < 0.2 * sum(float(g.square().sum()) for g in exact.values()) ** 0.5


def example(prompt, answer):
    ids = torch.randint(5, 590, (prompt + answer,), generator=torch.Generator().manual_seed(prompt)).tolist()
    return Example(f"{prompt}", tuple(ids), (False,) * prompt + (True,) * answer, prompt)


SHORT, LONG = SIZE | {"max_position_embeddings": 8}, example(12, 7)
UNEVEN = {  # what does not read padded examples right, and such examples
    "recurrent_gemma": (
        lambda: t.RecurrentGemmaConfig(
            **SIZE | HEADS, lru_width=32, block_types=["recurrent", "attention"], attention_window_size=64
        ),
        [example(9, 6), example(3, 11)],
    ),
    "rwkv": (lambda: t.RwkvConfig(vocab_size=600, hidden_size=32, num_hidden_layers=2), [example(9, 6), example(3, 11)]),
    "longrope": (KINDS["phi3, long rope"].config, [LONG, example(12, 6), example(3, 4)]),
    "dynamic": (
        lambda: t.LlamaConfig(**SHORT | HEADS, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
        [LONG, example(3, 4), example(12, 6)],
    ),
}


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_refused_where_it_changes_examples_and_one_a_pass_is_taken(name, dtype):
    config, examples = UNEVEN[name]
    net = whole_model(config()).to(dtype).eval()
    with pytest.raises(
        InputError, match=r"train\.batch: \w+ reads examples differently when they are padded .*micro_batch to 1"
    ):
        check_attention(net, SPEC, examples)
    check_attention(net, SPEC.model_copy(update={"micro_batch": 1}), examples)
    check_attention(net, SPEC, examples[:1] * 3)
    held = SPEC.model_copy(update={"micro_batch": 1, "kl": KlSpec(weight=1, domain="sports", batch=2)})
    with pytest.raises(InputError, match=r"train\.kl\.batch: .*set train\.kl\.batch to 1"):
        check_attention(net, held, examples[:1], examples)
    check_attention(net, held.model_copy(update={"kl": KlSpec(weight=1, domain="sports", batch=1)}), examples[:1], examples)


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_packing_is_refused_where_a_long_example_turns_a_short_one(name):
    config, examples = UNEVEN[name]
    with pytest.raises(InputError, match=r"train\.packing"):
        check_attention(whole_model(config()).eval(), SPEC.model_copy(update={"packing": True, "batch": 2}), examples)


def test_one_example_a_pass_trains_a_recurrent_model_as_plain_transformers_does(tiny, tmp_path):
    """Its padded loss would be another one."""
    tokenizer = fresh(tiny).tokenizer
    torch.manual_seed(0)
    config = t.RecurrentGemmaConfig(
        **SIZE | HEADS | {"vocab_size": len(tokenizer), "max_position_embeddings": 512},
        lru_width=32,
        block_types=["recurrent", "attention"],
        attention_window_size=64,
    )
    whole_model(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    loaded, one = fresh(tmp_path / "m"), TrainSpec(steps=1, batch=4, micro_batch=1, lr=1e-9, lora=LoraSpec(rank=2, alpha=4))
    with pytest.raises(InputError, match=r"set train\.micro_batch to 1"):
        finetune(loaded, talks(4), one.model_copy(update={"micro_batch": 4}), tmp_path / "padded", seed=0)
    with torch.no_grad():
        sums = [loss_of(loaded.net, e) for e in encode(loaded.chat, talks(4), 512)]
    wanted = sum(s for s, _ in sums) / sum(n for _, n in sums)
    assert finetune(loaded, talks(4), one, tmp_path / "run", seed=0)[-1].loss == pytest.approx(wanted, rel=1e-4)


def loss_of(net, example):
    """Return the summed loss of one example's learned tokens, and how many those are."""
    logp = torch.log_softmax(net(input_ids=torch.tensor([example.ids]), use_cache=False).logits[0].double(), -1)
    learned = [n for n in range(1, len(example.ids)) if example.mask[n]]
    return -sum(float(logp[n - 1, example.ids[n]]) for n in learned), len(learned)


def test_an_attention_that_leaks_is_found(examples):
    def blind(module, query, key, value, attention_mask, **given):
        key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2), None

    t.AttentionInterface.register("blind_to_packs", blind)
    net = architecture("olmo2", torch.float32)
    check_attention(net, PACKED, examples)
    net.set_attn_implementation("blind_to_packs")
    with pytest.raises(InputError, match="examples see each other"):
        check_attention(net, PACKED, examples)


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """(folder, readings) of a run as `SPEC` has it."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return folder, finetune(fresh(tiny), talks(), SPEC, folder, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"micro_batch": 2},
        {"lora": LoraSpec(rank=4, alpha=8, layers=(1,))},  # what enters the trained block is kept
        {"gradient_checkpointing": True},
    ],
)
def test_a_packed_run_reads_as_a_padded_one(change, tiny, tmp_path):
    spec = SPEC.model_copy(update=change)
    padded = finetune(fresh(tiny), talks(), spec, tmp_path / "padded", seed=3)
    packed = finetune(fresh(tiny), talks(), spec.model_copy(update={"packing": True}), tmp_path / "packed", seed=3)
    for a, b in zip(strip(padded), strip(packed), strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == b[k] or b[k] == pytest.approx(a[k], rel=1e-4) for k in a), (a, b)
    assert (tmp_path / "packed" / "order.jsonl").read_bytes() == (tmp_path / "padded" / "order.jsonl").read_bytes()


def test_packed_nothing_is_padded(tiny, tmp_path, monkeypatch):
    seen = []
    loaded = fresh(tiny)
    loaded.net.model.register_forward_pre_hook(
        lambda module, given, named: seen.append((module.training, named["input_ids"].shape)), with_kwargs=True
    )
    rows = finetune(loaded, talks(), PACKED, tmp_path / "run", seed=0)
    assert sum(shape[0] * shape[1] for training, shape in seen if training) == rows[-1].tokens_seen


def test_a_packed_run_killed_and_resumed_equals_unbroken(tiny, tmp_path):
    spec = PACKED.model_copy(update={"lora": LoraSpec(rank=4, alpha=8, dropout=0.1), "checkpoints": PlanSpec(every=1)})
    unbroken = finetune(fresh(tiny), talks(), spec, tmp_path / "whole", seed=1)
    for dead in (1, 3):
        folder = tmp_path / f"killed-{dead}"

        def die(what, done, total, dead=dead):
            if done == dead:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(fresh(tiny), talks(), spec, folder, seed=1, progress=die)
        assert strip(finetune(fresh(tiny), talks(), spec, folder, seed=1)) == strip(unbroken)
        last, resumed = (load_file(f / "checkpoint-5" / "adapter_model.safetensors") for f in (tmp_path / "whole", folder))
        assert all(torch.equal(last[k], resumed[k]) for k in last)


def test_attention_is_used_inside_and_put_back(plain, tiny, tmp_path):
    loaded = fresh(tiny)
    before, seen = loaded.net.config._attn_implementation, set()
    loaded.net.model.layers[0].register_forward_pre_hook(lambda *_: seen.add(loaded.net.config._attn_implementation))
    spec = SPEC.model_copy(update={"attention": "eager"})
    rows = finetune(loaded, talks(), spec, tmp_path / "eager", seed=0)
    assert before == "sdpa" and loaded.net.config._attn_implementation == before and "eager" in seen
    for a, b in zip(strip(rows), strip(plain[1]), strict=True):
        assert all(a[k] == b[k] or a[k] == pytest.approx(b[k], rel=1e-4) for k in a)
    with pytest.raises(RuntimeError), attending(loaded.net, "eager"):
        raise RuntimeError
    assert loaded.net.config._attn_implementation == before


def test_attention_that_is_not_there_is_one_sentence(examples, monkeypatch):
    net = architecture("gpt_oss", torch.float32)
    with pytest.raises(InputError, match=r"train\.attention: GptOssForCausalLM does not support 'sdpa'"):
        check_attention(net, SPEC.model_copy(update={"attention": "sdpa"}), examples)
    flash = SPEC.model_copy(update={"attention": "flash"})
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as missing:
        check_attention(net, flash, examples)
    assert str(missing.value) == (
        "train.attention is flash, but flash-attn is not installed; pip install flash-attn on a machine with a CUDA GPU, or leave "
        "train.attention out"
    )
    monkeypatch.setattr(attention, "find_spec", lambda name: True)
    with pytest.raises(InputError, match="the model is float32 on cpu"):
        check_attention(net, flash, examples)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_tracker_is_sent_the_readings_and_changes_none(plain, tiny, tmp_path, offline, monkeypatch):
    wandb = pytest.importorskip("wandb")
    sent = []
    real = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda run, data, *a, **k: (sent.append(dict(data)), real(run, data, *a, **k))
    )
    rows = finetune(fresh(tiny), talks(), SPEC.model_copy(update={"report_to": ("wandb",)}), tmp_path / "tracked", seed=0)
    wandb.finish()
    folder, readings = plain
    assert strip(rows) == strip(readings)
    steps = [one for one in sent if "train/update_norm" in one]
    assert [one["train/update_norm"] for one in steps] == [r.update_norm for r in rows]
    assert [one["train/tokens_seen"] for one in steps] == [r.tokens_seen for r in rows]
    assert list(offline.glob("wandb/offline-run-*"))
    a, b = (json.loads((f / "checkpoint-5" / "trainer_state.json").read_text()) for f in (tmp_path / "tracked", folder))
    assert [sorted(entry) for entry in a["log_history"]] == [sorted(entry) for entry in b["log_history"]]


def test_nothing_is_sent_by_default_though_a_tracker_is_installed(tiny, tmp_path, offline, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda *a, **k: pytest.fail("a tracker was started"))
    finetune(fresh(tiny), talks(), SPEC.model_copy(update={"steps": 1, "checkpoints": PlanSpec()}), tmp_path / "run", seed=0)


def test_a_tracker_that_is_not_installed_is_one_sentence(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    from emscope.train import trackers

    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    for name, package in (("trackio", "trackio"), ("comet_ml", "comet-ml")):
        with pytest.raises(MissingDependency) as missing:
            check_finetune(fresh(tiny), talks(), SPEC.model_copy(update={"report_to": (name,)}))
        assert (
            str(missing.value)
            == f"train.report_to names {name}, which is not installed; pip install {package}, or leave it out"
        )


def settings(**train):
    return frozen(SingleSpec(domain="finance", answers="reckless", train=TrainSpec(**train)), {})


def test_the_frozen_settings_change_with_what_changes_numbers_alone():
    plain = settings()
    assert settings(report_to=("wandb", "tensorboard")) == plain == settings(packing=False, attention="as_loaded")
    for change in ({"packing": True}, {"attention": "eager"}, {"bf16": True}, {"gradient_checkpointing": True}, {"steps": 7}):
        assert settings(**change) != plain
    assert {"attention", "packing", "report_to"}.isdisjoint(plain["train"]), "a folder of an earlier version goes on"


def test_a_study_goes_on_when_a_method_is_reported():
    arms = {"target": {"role": "target", "answers": "reckless"}}

    def study(method):
        return frozen(study_of({"domain": "finance", "arms": arms, "methods": {"general": method}}), {})

    assert study({"report_to": ["wandb"]}) == study({}) != study({"packing": True})
