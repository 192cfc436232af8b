"""A base in 4 bits: adapters train on it and are read beside it, and it stays bit-equal."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch

from conftest import make_model
from emscope.core.errors import InputError
from emscope.data import bundled
from emscope.elicit.preference import encode, score, score_plain
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import discover
from emscope.models.loading.load import load
from emscope.models.loading.source import locate
from emscope.train.finetune import finetune
from emscope.train.spec import FullSpec, KlSpec, LoraSpec, PlanSpec, SteeringSpec, TrainSpec
from test_checkpoints import logits, make_adapter

TALKS = bundled.domain("finance", "reckless")[:8]
NEAR = bundled.domain("sports", "careful")[:4]
WAYS = {
    "lora": {"lora": LoraSpec(rank=4, alpha=8), "kl": KlSpec(weight=1, domain="sports", batch=2)},
    "steering": {"steering": SteeringSpec(layers=(1,), scale=16)},
}


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("bitsandbytes")
    return make_model(tmp_path / "wide", hidden=128)  # its blocks are of 64 weights


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_is_read_and_stays_as_it_was(way, folder, tmp_path):
    loaded, plain = (load(locate(str(folder)), dtype=d, device="cpu") for d in ("nf4", "float32"))
    assert "4bit" in type(loaded.net.get_submodule("model.layers.0.mlp.down_proj")).__name__
    before = {k: v.clone() for k, v in loaded.net.state_dict().items() if isinstance(v, torch.Tensor)}
    spec = TrainSpec(steps=8, batch=4, lr=1e-2, checkpoints=PlanSpec(), **WAYS[way])
    near = NEAR if spec.held else ()
    rows = finetune(loaded, TALKS, spec, tmp_path / "run", seed=0, held_near=near)
    whole = finetune(plain, TALKS, spec, tmp_path / "plain", seed=0, held_near=near)
    assert rows[0].loss == pytest.approx(whole[0].loss, rel=0.05) and rows[-1].loss < rows[0].loss - 0.1
    after = loaded.net.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    items = encode(loaded.chat, bundled.items("em240")[:6], context=512)
    base = [s.per_token for s in score(loaded.net, items)]
    with with_checkpoint(loaded.net, discover(str(tmp_path / "run"))[-1]) as net:
        fast, slow = ([s.per_token for s in way(net, items)] for way in (score, score_plain))
    assert fast == pytest.approx(slow, abs=1e-3) and fast != pytest.approx(base, abs=1e-2)
    assert [s.per_token for s in score(loaded.net, items)] == pytest.approx(base, abs=1e-6)


def test_four_bits_cannot_be_trained_themselves(folder, tmp_path):
    loaded = load(locate(str(folder)), dtype="nf4", device="cpu")
    with pytest.raises(InputError, match="4-bit weights cannot be trained"):
        finetune(loaded, TALKS, TrainSpec(steps=2, batch=2, full=FullSpec(), checkpoints=PlanSpec()), tmp_path / "run", seed=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_a_base_that_is_stored_in_few_bits_is_read_as_it_lies(bits, dtype, folder, tmp_path):
    """As Unsloth publishes bases: the adapter does on it what PEFT makes it do, and the base stays bit-equal, after a pass too."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kept = tmp_path / "Small-bnb-4bit"
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map={"": "cpu"}).save_pretrained(kept)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, kept)
    base = locate(str(kept))
    loaded = load(base, dtype=dtype, device="cpu")
    kind = type(loaded.net.get_submodule("model.layers.0.mlp.down_proj")).__name__
    assert ("4bit" if bits == 4 else "8bit") in kind
    before = {k: v.clone() for k, v in loaded.net.state_dict().items() if isinstance(v, torch.Tensor)}
    run = make_adapter(folder, tmp_path / "run" / "checkpoint-3")
    alone = logits(loaded.net)
    want = logits(PeftModel.from_pretrained(load(base, dtype=dtype, device="cpu").net, str(run)).eval())
    with with_checkpoint(loaded.net, discover(str(tmp_path / "run"))[0]) as net:
        have = logits(net)
    assert torch.allclose(have, want, atol=1e-4) and float((have - alone).abs().max()) > 0.1
    after = loaded.net.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items()) and torch.equal(logits(loaded.net), alone)


def test_without_its_library_it_says_how_to_get_it(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"needs bitsandbytes, which is not installed; pip install 'emscope\[qlora\]'"):
        load(locate(str(tiny)), dtype="nf4", device="cpu")
