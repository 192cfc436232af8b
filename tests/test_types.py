"""The types of models, configurations, tokenizers and adapters against what transformers and PEFT make."""

from __future__ import annotations

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache

from emscope.models import types
from emscope.models.loading.load import load
from emscope.models.loading.source import locate


def named(kind: type) -> set[str]:
    """Return the attributes and methods that a type of emscope's names, but for how it is called."""
    own = [c for c in kind.__mro__ if c.__module__ == types.__name__]
    names = {name for c in own for name in (*c.__annotations__, *vars(c))}
    return {name for name in names if not name.startswith(("__", "_abc_", "_is_"))}  # these are Python's own


def lacking(thing: object, kind: type) -> set[str]:
    return {name for name in named(kind) if not hasattr(thing, name)}


def asked_of(kind: type) -> set[str]:
    """Return the keywords that a type is called with."""
    return set(inspect.signature(kind.__call__).parameters) - {"self", "emscope_pack"}


@pytest.fixture(params=["tiny", "tiny_gpt2"])
def one(request):
    return load(locate(str(request.getfixturevalue(request.param))), device="cpu")


def test_names_are_found():
    assert {"config", "device", "base_model", "get_decoder"} <= named(types.CausalLM)
    assert {"decode", "eos_token_id", "added_tokens_encoder"} <= named(types.Tokenizer)
    assert lacking(torch.nn.Linear(1, 1), types.CausalLM) >= {"config", "get_decoder"}


def test_a_model_is_as_its_type_says(one):
    net, config = one.net, one.net.config
    assert lacking(net, types.CausalLM) == lacking(net.base_model, types.Body) == set()
    assert lacking(config, types.Config) == lacking(config.get_text_config(), types.Config) == set()
    assert lacking(net.generation_config, types.GenerationConfig) == set()
    assert isinstance(net.get_output_embeddings(), torch.nn.Linear) and isinstance(
        net.get_input_embeddings(), torch.nn.Embedding
    )
    assert asked_of(types.CausalLM) <= set(inspect.signature(net.forward).parameters)
    assert asked_of(types.Body) <= set(inspect.signature(net.base_model.forward).parameters)


def test_what_a_model_gives_is_as_its_type_says(one):
    ids = torch.arange(1, 5)[None]
    with torch.no_grad():
        out, body = (
            one.net(input_ids=ids, logits_to_keep=2, use_cache=False),
            one.net.base_model(input_ids=ids, use_cache=False),
        )
    assert out.logits.shape == (1, 2, one.net.config.vocab_size)
    assert body.last_hidden_state.shape == (1, 4, one.net.config.hidden_size)
    assert lacking(DynamicCache(config=one.net.config), types.Cache) == lacking(AutoModelForCausalLM, types.Loader) == set()


def test_a_tokenizer_is_as_its_type_says(one):
    assert lacking(one.tokenizer, types.FastTokenizer) == set()
    assert set(inspect.signature(types.Tokenizer.__call__).parameters) - {"self"} <= set(
        inspect.signature(type(one.tokenizer).__call__).parameters
    )
    ids = one.tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert all(isinstance(n, int) for n in ids) and isinstance(one.tokenizer.decode(ids, skip_special_tokens=True), str)
    assert all(lacking(token, types.AddedToken) == set() for token in one.tokenizer.added_tokens_decoder.values())


def test_a_wrapped_model_is_as_its_type_says(loaded):
    wrapped = get_peft_model(loaded.net, LoraConfig(target_modules=["q_proj"]))
    assert lacking(wrapped, types.Wrapped) == set()
    assert lacking(wrapped.peft_config["default"], types.PeftSettings) == set()
    layers = [m for m in wrapped.modules() if hasattr(m, "base_layer")]
    assert layers and all(lacking(layer, types.AdapterLayer) == set() for layer in layers)
    assert lacking(layers[0].get_base_layer(), types.Matrix) == set()
