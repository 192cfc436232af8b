"""Random adapters of every kind that PEFT has, written by PEFT itself, and tiny models to put them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import make_model, make_tokenizer
from emscope.models.loading.load import load_net

LINEAR = ["q_proj", "v_proj", "o_proj"]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def configs() -> dict[str, Any]:
    """Return a configuration of each kind, by name; those of `EXPERTS` are for a mixture of experts."""
    import peft

    common = {"task_type": "CAUSAL_LM"}

    def lora(**settings):
        return peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": LINEAR} | common | settings))

    return {
        "lora": lora(),
        "rslora": lora(use_rslora=True),
        "patterns": lora(rank_pattern={"v_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3, "o_proj": 32}),
        "dora": lora(use_dora=True),
        "lora_bias": lora(lora_bias=True),
        "bias all": lora(bias="all"),
        "bias lora_only": lora(bias="lora_only"),
        "saved head": lora(modules_to_save=["lm_head"]),
        "saved embeddings": lora(modules_to_save=["embed_tokens"]),
        "saved block part": lora(modules_to_save=["input_layernorm", "self_attn.k_proj"]),
        "embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
        "head": lora(target_modules=["lm_head", "q_proj"]),
        "tokens of lora": lora(trainable_token_indices=[3, 40, 41]),
        "pissa": lora(init_lora_weights="pissa"),
        "olora": lora(init_lora_weights="olora"),
        "pissa dora": lora(init_lora_weights="pissa", use_dora=True),
        "norms": peft.LNTuningConfig(target_modules=["input_layernorm", "model.norm"], **common),
        "tokens": peft.TrainableTokensConfig(token_indices=[3, 40, 41], target_modules=["embed_tokens"], **common),
        "vera": peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"], **common),
        "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "o_proj"], feedforward_modules=["o_proj"], **common),
        "oft": peft.OFTConfig(oft_block_size=8, target_modules=LINEAR, **common),
        "boft": peft.BOFTConfig(boft_block_size=4, target_modules=["q_proj", "o_proj"], **common),
        "loha": peft.LoHaConfig(r=4, alpha=8, target_modules=LINEAR, **common),
        "lokr": peft.LoKrConfig(r=4, alpha=8, target_modules=LINEAR, **common),
        "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, target_modules=LINEAR, **common),
        "hra": peft.HRAConfig(r=4, target_modules=LINEAR, **common),
        "miss": peft.MissConfig(r=4, target_modules=LINEAR, **common),
        "fourier": peft.FourierFTConfig(n_frequency=50, target_modules=LINEAR, **common),
        "randlora": peft.RandLoraConfig(r=4, target_modules=LINEAR, **common),
        "shira": peft.ShiraConfig(r=4, target_modules=LINEAR, **common),
        "delora": peft.DeloraConfig(r=4, target_modules=LINEAR, **common),
        "gralora": peft.GraloraConfig(r=4, target_modules=LINEAR, **common),
        "hira": peft.HiraConfig(r=4, target_modules=LINEAR, **common),
        "vblora": peft.VBLoRAConfig(r=4, vector_length=16, num_vectors=8, topk=2, target_modules=LINEAR, **common),
        "c3a": peft.C3AConfig(block_size=8, target_modules=LINEAR, **common),
        "road": peft.RoadConfig(group_size=8, target_modules=LINEAR, **common),
        "waveft": peft.WaveFTConfig(n_frequency=50, target_modules=LINEAR, **common),
        "experts": lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    }


EXPERTS = {"experts"}


def make_tiny(kind: str, folder: Path, *, bias: bool = False) -> Path:
    """Write a tiny random causal LM: `llama` (tied), `qwen3_moe`, `gemma3_text` (tied), or `qwen2` (biased)."""
    import torch
    import transformers as t

    if kind == "llama":
        return make_model(folder)
    tokenizer = make_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = {
        "qwen2": lambda: t.Qwen2Config(**shape),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**shape, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        "gemma3_text": lambda: t.Gemma3TextConfig(**shape, query_pre_attn_scalar=8, sliding_window=256),
    }[kind]()
    torch.manual_seed(0)
    net = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(4.0) if p.ndim >= 2 else p.add_(0.3 * torch.randn_like(p))
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_adapter(base: Path, folder: Path, config: Any, *, seed: int = 0, size: float = 0.1) -> Path:
    """Wrap the base with PEFT, move everything that it would train at random, and save it as PEFT does."""
    import copy
    import warnings

    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(load_net(base), copy.deepcopy(config))
        generator = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for p in wrapped.parameters():
                if p.requires_grad:
                    p.add_(size * torch.randn(p.shape, generator=generator))
        wrapped.peft_config["default"].base_model_name_or_path = str(base)
        wrapped.save_pretrained(folder)
    return folder


def with_peft(base: Path, folder: Path, dtype: str = "float32") -> Any:
    """Return the model as PEFT alone reads it, on a base loaded anew."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_net(base, dtype=dtype), str(folder)).eval()
