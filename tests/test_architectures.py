"""Tiny random models of the architectures that people fine-tune: read, adapted and sampled as transformers and PEFT do, packed or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers as t

from adapters import with_peft, write_adapter
from emscope.elicit.preference import Encoded, score
from emscope.elicit.sampling import Beyond, Job, _end_ids, sample_batches
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.fast.decoding import CachedDecoding, Recomputed, unpacked
from emscope.models.fast.head import output_head
from emscope.models.fast.packed import packed_attention
from emscope.models.hooks.sites import blocks, blocks_name, decoder_name, final_norm
from emscope.models.loading.checkpoints import read_checkpoint
from emscope.models.loading.load import load_net

TOKENS = {"vocab_size": 600, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
SIZE = TOKENS | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
BASE = SIZE | HEADS | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR_ATTENTION = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
LLAMA4 = BASE | {
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "no_rope_layers": [1, 0],
    "attention_chunk_size": 6,
    "layer_types": ["chunked_attention", "full_attention"],
}
IDS = {"image_token_index": 590, "boi_token_index": 591, "eoi_token_index": 592}
VL_IDS = {"image_token_id": 590, "video_token_id": 591, "vision_start_token_id": 592, "vision_end_token_id": 593}


@dataclass(frozen=True)
class Kind:
    """What makes the configuration, whether sequences of 12 tokens are packed, and what an adapter is put on."""

    config: Any
    packs: bool
    targets: tuple[str, ...] = ("q_proj", "v_proj")


KINDS = {
    "mistral": Kind(lambda: t.MistralConfig(**BASE, sliding_window=64), True),
    "mistral, short window": Kind(lambda: t.MistralConfig(**BASE, sliding_window=5), False),
    "gemma3 with images": Kind(
        lambda: t.Gemma3Config(
            text_config=BASE
            | {"query_pre_attn_scalar": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
            vision_config=TOWER,
            mm_tokens_per_image=4,
            **IDS,
        ),
        True,
    ),
    "deepseek_v3": Kind(
        lambda: t.DeepseekV3Config(
            **SIZE | {"num_attention_heads": 4, "num_key_value_heads": 4},
            kv_lora_rank=8,
            q_lora_rank=12,
            qk_rope_head_dim=4,
            qk_nope_head_dim=8,
            v_head_dim=6,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        ),
        True,
        ("q_b_proj", "kv_b_proj", "o_proj"),
    ),
    "gpt_oss": Kind(
        lambda: t.GptOssConfig(
            **BASE,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
        ),
        False,
    ),
    "gemma2": Kind(lambda: t.Gemma2Config(**BASE, query_pre_attn_scalar=8, sliding_window=64), False),
    "qwen3_next": Kind(
        lambda: t.Qwen3NextConfig(**BASE, **EXPERTS, **LINEAR_ATTENTION, shared_expert_intermediate_size=16),
        False,
        ("q_proj", "out_proj"),
    ),
    "falcon_h1": Kind(lambda: t.FalconH1Config(**BASE, **MAMBA, mamba_d_ssm=64), False, ("q_proj", "in_proj")),
    "qwen3_5 with images": Kind(
        lambda: t.Qwen3_5Config(
            text_config=BASE | LINEAR_ATTENTION,
            vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32},
            **VL_IDS,
        ),
        False,
        ("q_proj", "in_proj_qkv"),
    ),
    "lfm2": Kind(lambda: t.Lfm2Config(**SIZE | HEADS, layer_types=["conv", "full_attention"]), False, ("q_proj", "in_proj")),
    "granite 4 h": Kind(
        lambda: t.GraniteMoeHybridConfig(
            **SIZE | HEADS,
            **MAMBA,
            layer_types=["linear_attention", "full_attention"],
            num_local_experts=2,
            shared_intermediate_size=32,
            logits_scaling=2.0,
            residual_multiplier=0.5,
        ),
        False,
        ("q_proj", "in_proj"),
    ),
    "llama4": Kind(lambda: t.Llama4TextConfig(**LLAMA4), False),
    "mistral3 with images": Kind(
        lambda: t.Mistral3Config(
            text_config=BASE | {"model_type": "mistral"},
            vision_config=TOWER | {"model_type": "pixtral", "head_dim": 8},
            image_token_index=590,
        ),
        True,
    ),
    "qwen2_5_vl": Kind(
        lambda: t.Qwen2_5_VLConfig(
            text_config=SIZE
            | HEADS
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            },
            **VL_IDS,
        ),
        True,
    ),
    "olmo2": Kind(lambda: t.Olmo2Config(**SIZE | HEADS), True),
    "phi3": Kind(lambda: t.Phi3Config(**SIZE | HEADS), True, ("qkv_proj", "down_proj")),
    "phi3, long rope": Kind(
        lambda: t.Phi3Config(
            **SIZE | HEADS,
            original_max_position_embeddings=8,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 8,
            },
        ),
        False,
        ("qkv_proj",),
    ),
    "qwen3_moe": Kind(lambda: t.Qwen3MoeConfig(**BASE, **EXPERTS), True),
    "gpt2": Kind(lambda: t.GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=256), True, ("c_attn", "c_fc")),
}
FAST = ("mistral, short window", "gemma3 with images", "deepseek_v3", "gpt_oss", "qwen3_next", "falcon_h1")
MATRIX = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in KINDS]
# Two items whose prompts and answers begin alike, and an answer that goes beyond the short windows.
ITEMS = (
    Encoded("a", (5, 9, 12, 7), ((30, 31, 32), (30, 40, 41, 42, 43, 44, 45, 46)), (0, 1)),
    Encoded("b", (5, 9, 80), ((30,), (90, 91)), (0, 1)),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from an architecture's name to a folder with a tiny random model of it."""

    @cache
    def folder(name):
        torch.manual_seed(0)
        config = KINDS[name].config()
        multimodal = type(config) not in t.AutoModelForCausalLM._model_mapping or hasattr(config, "vision_config")
        net = (t.AutoModelForImageTextToText if multimodal else t.AutoModelForCausalLM).from_config(config)
        with torch.no_grad():  # at the usual scale everything is near-uniform, and nothing that goes wrong would show
            for p in net.parameters():
                p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
        path = tmp_path_factory.mktemp("architecture") / "base"
        net.save_pretrained(path)
        return path

    return folder


@cache
def loaded(folder):
    return load_net(folder).eval().requires_grad_(False)


@torch.inference_mode()
def plainly(net, items=ITEMS):
    """Return the log-probability of each option by a forward pass of its own, as a plain reader of transformers would write it."""
    found = []
    for e in items:
        for option in e.options:
            logp = torch.log_softmax(net(input_ids=torch.tensor([[*e.prompt, *option]])).logits[0].double(), -1)
            found.append(sum(float(logp[len(e.prompt) - 1 + n, token]) for n, token in enumerate(option)))
    return found


def per_token(found, items=ITEMS):
    return [value / len(option) for value, option in zip(found, (o for e in items for o in e.options), strict=True)]


def reads_as(net, expected):
    found = [s.logprob for s in score(net, ITEMS)]
    assert per_token(found) == pytest.approx(per_token(expected), abs=1e-5)


@torch.inference_mode()
def greedily(net, prompt, most, ends):
    """Return the likeliest tokens one after another, everything computed anew for each, and the sum of their log-probabilities."""
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < most and not (tokens and tokens[-1] in ends):
        logp = torch.log_softmax(net(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].double(), -1)
        tokens.append(int(logp.argmax()))
        total += float(logp.max())
    return tokens, total


@pytest.mark.parametrize("name", MATRIX)
def test_reading_and_greedy_answers_are_plain_transformers(name, folders, reader):
    net = loaded(folders(name))
    expected = plainly(net)
    with torch.inference_mode(), packed_attention(net, 12) as fits:
        assert fits == KINDS[name].packs
    reads_as(net, expected)
    prompts = {"long": (5, 9, 12, 7, 8, 3, 11), "short": (5, 80)}
    job = Job(prompts, max_tokens=7, seed=0, temperature=0)
    answers = [a for batch in sample_batches(net, reader.chat, job, [("long", 0), ("short", 0), ("short", 1)]) for a in batch]
    assert len(answers) == 3
    ends = _end_ids(net, reader.chat)
    for answer in answers:
        tokens, total = greedily(net, prompts[answer.question], 7, ends)
        text = reader.chat.tokenizer.decode([n for n in tokens if n not in ends], skip_special_tokens=True).strip()
        assert (answer.text, answer.tokens) == (text, len(tokens))
        assert answer.logprob == pytest.approx(total, abs=1e-4)
    assert plainly(net) == expected, "nothing stays switched"


@pytest.mark.parametrize("name", MATRIX)
def test_an_adapter_is_read_as_peft_reads_it(name, folders, tmp_path):
    import peft

    base = folders(name)
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(KINDS[name].targets), task_type="CAUSAL_LM")
    adapter = write_adapter(base, tmp_path / "adapter", settings)
    net = loaded(base)
    before, expected = plainly(net), plainly(with_peft(base, adapter))
    assert per_token(before) != pytest.approx(per_token(expected), abs=1e-3), "the adapter does something"
    with with_checkpoint(net, read_checkpoint(adapter, 1)) as changed:
        reads_as(changed, expected)
    assert plainly(net) == before


def test_an_adapter_from_before_the_text_model_moved_is_the_same_adapter(folders, tmp_path):
    """`language_model.model.layers` of older files, and `model.layers` of a text model alone, are `model.language_model.layers` here."""
    import peft
    from safetensors.torch import load_file, save_file

    base = folders("gemma3 with images")
    pattern = r".*language_model.*\.(q_proj|v_proj)"
    for kind in ({}, {"use_dora": True}):
        settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=pattern, task_type="CAUSAL_LM", **kind)
        adapter = write_adapter(base, tmp_path / f"adapter{len(kind)}", settings)
        expected = plainly(with_peft(base, adapter))
        file = adapter / "adapter_model.safetensors"
        new = load_file(file)
        told = json.loads((adapter / "adapter_config.json").read_text())
        for layout in ("language_model.model.layers", "model.layers"):  # of a text model alone: it had no tower to leave out
            old = {name.replace("model.language_model.layers", layout): tensor for name, tensor in new.items()}
            assert old.keys().isdisjoint(new)
            save_file(old, file)
            targets = ["q_proj", "v_proj"] if layout == "model.layers" else pattern
            (adapter / "adapter_config.json").write_text(json.dumps(told | {"target_modules": targets}))
            with with_checkpoint(loaded(base), read_checkpoint(adapter, 1)) as changed:
                reads_as(changed, expected)


def test_an_adapter_made_beside_a_tower_is_read_on_the_text_model_alone(folders, tmp_path):
    import peft
    from safetensors.torch import load_file, save_file

    base = folders("mistral, short window")
    for kind in ({}, {"use_dora": True}):
        settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **kind)
        adapter = write_adapter(base, tmp_path / f"adapter{len(kind)}", settings)
        expected = plainly(with_peft(base, adapter))
        file = adapter / "adapter_model.safetensors"
        beside = {
            name.replace("model.layers", "model.language_model.layers"): tensor for name, tensor in load_file(file).items()
        }
        for side, shape in {"lora_A": (4, 16), "lora_B": (16, 4)}.items():
            beside[f"base_model.model.model.visual.blocks.0.attn.q_proj.{side}.weight"] = torch.randn(shape)
        save_file(beside, file)
        with with_checkpoint(loaded(base), read_checkpoint(adapter, 1)) as changed:
            reads_as(changed, expected)


def test_the_tower_beside_the_text_model_is_not_taken_for_it(folders):
    net = loaded(folders("gemma3 with images"))
    assert decoder_name(net) == "model.language_model" and blocks_name(net) == "model.language_model.layers"
    assert blocks(net)[0].hidden_size == 32 and final_norm(net) is net.model.language_model.norm


def test_attention_in_chunks_is_packed_no_further_than_a_chunk(folders):
    """Nothing but the mask tells of it: five tokens of a probe see no difference."""
    net = load_net(folders("llama4")).eval()
    net.config.attn_temperature_tuning = False  # it begins at a place far beyond these
    with torch.inference_mode():
        for longest, wanted in ((6, True), (7, False)):
            with packed_attention(net, longest) as fits:
                assert fits is wanted


@torch.inference_mode()
def test_a_cache_that_does_not_hold_is_found_out_and_done_without(folders, reader, monkeypatch):
    net = loaded(folders("mistral, short window"))
    head = output_head(net)
    assert unpacked(net, head, 16) is CachedDecoding
    other = load_net(folders("mistral, short window")).eval()
    with monkeypatch.context() as patch:  # as a cache that knows only half of its states
        patch.setattr(
            t.DynamicCache, "reorder_cache", lambda self, rows: [layer.reorder_cache(rows) for layer in self.layers[:1]]
        )
        assert unpacked(other, output_head(other), 16) is Recomputed
    job = Job({"a": (5, 9, 12, 7, 8, 3, 11), "b": (5, 80)}, max_tokens=9, seed=3)
    wanted = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]

    def drawn(one, **more):
        return {
            (a.question, a.sample): a.text for batch in sample_batches(one, reader.chat, job, wanted, **more) for a in batch
        }

    assert drawn(other) == drawn(net)
    assert drawn(net, beyond=Beyond(other, 2.0)) == drawn(net), "two equal models, each by the way that suits both"
