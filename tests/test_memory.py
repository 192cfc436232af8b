"""Memory counted from a configuration: against the tensors of real models, real caches, real passes and real adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as t

from adapters import write_adapter
from emscope.core.errors import WorldError
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import hidden_states, pack, packed_attention
from emscope.models.loading.checkpoints import read_checkpoint
from emscope.models.loading.load import Loaded, load_net
from emscope.models.loading.source import Model, locate
from emscope.models.sizing import depth, memory, needs
from emscope.models.sizing.needs import Reading, Sampling, Training
from emscope.models.sizing.simulated import Ledger, simulated, whole_model
from emscope.train.spec import FullSpec, LoraSpec
from emscope.train.tunables import tuned
from test_architectures import KINDS

DEEP = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def tune(spec):
    return lambda net: tuned(Loaded(net, None, None, Model("", Path(), "")), spec, 0)


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_those_of_the_real_model(name):
    config = KINDS[name].config()
    net = whole_model(config)
    found = memory.counted(config)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.embedding == net.get_input_embeddings().weight.numel()
    tied = net.get_output_embeddings().weight is net.get_input_embeddings().weight
    assert found.head == (0 if tied else net.get_output_embeddings().weight.numel())
    assert found.blocks == sum(p.numel() for n, p in net.named_parameters() if ".layers." in n or ".h." in n) - sum(
        p.numel() for n, p in net.named_parameters() if "vision" in n and (".layers." in n or ".h." in n)
    )
    assert found.bytes_in("bfloat16") == 2 * found.parameters


@pytest.mark.parametrize("name", ["mistral", "gpt2"])
def test_keys_and_values_of_packed_rows_are_a_cache_s(name):
    """What a token keeps is what transformers' own cache keeps of it: once a prompt, once a written token."""
    config = KINDS[name].config()
    work = Sampling(rows=40, most=30, prompts=4, prompt=20, shrinks=False)
    need = needs.sampling(config, work)
    wanted = cache_bytes(config, 1) * (work.prompts * work.prompt + work.rows * work.most)
    assert need.parts["keys and values"] == pytest.approx(wanted, rel=0.01)


def test_keys_and_values_of_padded_rows_are_a_cache_s():
    config = KINDS["gemma2"].config()
    need = needs.sampling(config, Sampling(rows=40, most=20, prompts=4, prompt=10, shrinks=False))
    assert need.parts["keys and values"] == pytest.approx(cache_bytes(config, 1) * 40 * 30, rel=0.02)


def cache_bytes(config, tokens):
    net = whole_model(config).eval()
    with torch.no_grad():
        cache = net(input_ids=torch.ones(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_windows_bound_what_is_kept_in_the_blocks_that_have_one():
    config = t.Gemma2Config(**DEEP | {"head_dim": 8}, num_hidden_layers=2, sliding_window=5)
    need = needs.sampling(config, Sampling(20, 60, 2, 10, shrinks=False))
    a_token, mask = 2 * 2 * 8 * 4, 8
    assert need.parts["keys and values"] == pytest.approx(20 * (a_token * (70 + 4) + mask * 70), rel=0.01)


@pytest.mark.parametrize("name", ["mistral", "qwen3_moe"])
def test_a_simulated_pass_takes_what_the_real_one_does(name):
    config = KINDS[name].config()
    laid = [[n, *range(5, 25), n + 3] for n in range(12)]

    def peak(net):
        with torch.inference_mode(), Ledger(net) as ledger:
            output_head(net)
            with packed_attention(net, 22) as fits:
                assert fits
                before = ledger.mark()
                hidden_states(net, pack(laid))
                return ledger.peak - before

    net = whole_model(config).eval().requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    real = peak(net)
    with simulated(config) as net:
        found = peak(net)
    assert found == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("spec", "checkpointing"),
    [(LoraSpec(rank=4), False), (LoraSpec(rank=4), True), (LoraSpec(rank=4, layers=(1,)), False), (FullSpec(), False)],
)
def test_a_simulated_step_takes_what_the_real_one_does(spec, checkpointing):
    config = t.Qwen2Config(**DEEP, num_hidden_layers=2)
    work = Training(3, 40, 20, tune(spec), checkpointing=checkpointing, layers=getattr(spec, "layers", None))
    need = needs.training(config, work)
    net = t.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with Ledger(net) as ledger, work.tune(net) as made:
        trained = [p for p in made.model.parameters() if p.requires_grad]
        before = ledger.mark()
        made.model.train()
        if checkpointing:
            made.model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(300, (3, 40))
        mask = torch.ones_like(ids)
        mask[0, :3] = 0  # as examples of several lengths have it
        states = net.model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        loss = torch.nn.functional.cross_entropy(
            net.lm_head(states[:, -20:].flatten(0, 1)), ids[:, -20:].flatten(), reduction="sum"
        )
        del states
        loss.backward()
        real = ledger.peak - before
        assert need.parts["optimiser"] == 2 * sum(p.nbytes for p in trained)
    assert need.parts["activations and gradients"] == pytest.approx(real, rel=0.1)


def test_deep_models_are_counted_from_shallow_ones(monkeypatch):
    config = t.Qwen2Config(**DEEP, num_hidden_layers=4)
    work = Training(2, 30, 15, tune(LoraSpec()))
    direct = needs.training(config, work).total
    monkeypatch.setattr(depth, "SHALLOW", (1, 2))
    assert needs.training(config, work).total == pytest.approx(direct, rel=1e-3)
    assert depth.shallow(config, 1).num_hidden_layers == 1 and config.num_hidden_layers == 4


def test_an_adapter_takes_what_putting_it_on_takes(tiny, tmp_path):
    import peft

    config = memory.read_config(tiny)
    work = Reading(60, 4, 20, 30)
    for name, settings in {
        "lora": peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "dora": peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM"),
    }.items():
        checkpoint = read_checkpoint(write_adapter(tiny, tmp_path / name, settings), 1)
        need = needs.reading(config, work, checkpoint=checkpoint)
        net = load_net(tiny).eval().requires_grad_(False)
        with Ledger(net) as ledger, with_checkpoint(net, checkpoint):
            real = ledger.now
        file = (checkpoint.folder / "adapter_model.safetensors").stat().st_size
        assert real <= need.parts["fine-tune"] + 1000 and need.parts["fine-tune"] <= real + 1.1 * file, name


def test_four_bit_weights_are_as_many_bytes_as_bitsandbytes_has(tiny):
    pytest.importorskip("bitsandbytes")
    from emscope.models.loading.load import load_quantised

    net = load_quantised(tiny, "cpu")
    held = {id(p): p.nbytes for p in net.parameters()}
    scales = sum(p.quant_state.absmax.nbytes for p in net.parameters() if getattr(p, "quant_state", None) is not None)
    assert memory.needed(tiny, "nf4") == pytest.approx(sum(held.values()) + scales, rel=0.02)


def test_what_does_not_fit_is_refused_with_both_numbers(tiny, monkeypatch):
    model = locate(str(tiny))
    wanted = memory.needed(tiny, "float32")
    assert wanted == 4 * sum(p.numel() for p in load_net(tiny).parameters())
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": wanted * 2)
    memory.refuse_beyond(model, "float32", "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": int(wanted * 0.8))
    with pytest.raises(WorldError, match=r"needs .* GB in float32, but this machine has .* GB free; try `dtype=bfloat16`"):
        memory.refuse_beyond(model, "float32", "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 1000)
    with pytest.raises(WorldError, match="a machine with more memory"):
        memory.refuse_beyond(model, "auto", "cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": None)
    memory.refuse_beyond(model, "float32", "cpu")


def test_seventy_billion_weights_are_counted_in_seconds():
    config = t.LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    assert memory.counted(config).parameters == 70_553_706_496
    assert memory.in_gb(memory.counted(config).bytes_in("bfloat16")) == "141 GB"


def test_free_memory_is_what_the_system_says():
    free = memory.free_memory("cpu")
    assert free is not None and 1e6 < free < 1e15


def test_a_ledger_counts_what_is_alive():
    with Ledger(torch.nn.Linear(2, 2)) as ledger:
        a = torch.zeros(100, 100)
        b = a + 1
        del a
        c = b.view(-1)[:10]
        assert (ledger.now, ledger.peak) == (40_000, 80_000)
        del b
        assert ledger.now == 40_000, "a view keeps its storage"
        del c
    assert ledger.now == 0


def test_needs_are_plain_json():
    config = KINDS["mistral"].config()
    need = needs.reading(config, Reading(60, 4, 20, 30))
    told = json.loads(json.dumps(need.to_json()))
    assert told["bytes"] == sum(told["parts"].values()) and told["work"] == "reading"
