"""Checkpoints on a base: behaviour equal to PEFT's own, the base untouched afterwards, faults in one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_model
from emscope.core.errors import InputError
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import ADAPTER, WEIGHTS, discover
from emscope.models.loading.load import load_net

IDS = torch.tensor([[5, 17, 33, 90, 41, 8]])


def make_adapter(tiny, folder, *, seed=0, **settings):
    """Write a random LoRA adapter (B not zero) for the tiny model with PEFT itself."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wrapped = get_peft_model(
        load_net(tiny),
        LoraConfig(task_type="CAUSAL_LM", **({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings)),
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.peft_config["default"].base_model_name_or_path = str(tiny)
    wrapped.save_pretrained(folder)
    return folder


def logits(net):
    with torch.inference_mode():
        return net(input_ids=IDS, use_cache=False).logits


KINDS = [
    ("tiny", {}, True),
    ("tiny", {"use_rslora": True}, True),
    ("tiny", {"target_modules": ["down_proj"], "r": 1}, True),
    ("tiny", {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]}, True),
    ("tiny_gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}, True),
    ("tiny", {"use_dora": True}, False),
    ("tiny", {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 3}}, True),
    ("tiny", {"target_modules": ["embed_tokens", "q_proj"]}, False),
    ("tiny", {"target_modules": ["lm_head", "q_proj"]}, False),
]


@pytest.mark.parametrize(("which", "settings", "plain"), KINDS)
def test_applied_equals_peft_and_leaves_the_base_bit_equal(which, settings, plain, tmp_path, request, monkeypatch):
    from peft import PeftModel

    tiny = request.getfixturevalue(which)
    folder = make_adapter(tiny, tmp_path / "checkpoint-3", **settings)
    if plain:
        monkeypatch.setattr(
            "emscope.models.adapters.with_checkpoint.peft_adapter", lambda *a: pytest.fail("went PEFT's slow way")
        )
    net = load_net(tiny).eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    keys = list(net.state_dict())
    expected = logits(PeftModel.from_pretrained(load_net(tiny), str(folder)).eval())
    (found,) = discover(str(tmp_path))
    with with_checkpoint(net, found) as merged:
        assert torch.allclose(logits(merged), expected, atol=1e-5)
        assert not torch.allclose(expected, logits(load_net(tiny)), atol=1e-3)
    assert list(net.state_dict()) == keys
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not hasattr(net, "peft_config")


def test_the_base_comes_back_after_an_exception(tiny, tmp_path):
    make_adapter(tiny, tmp_path / "checkpoint-3")
    net = load_net(tiny).eval()
    before = logits(net)
    with pytest.raises(ZeroDivisionError), with_checkpoint(net, discover(str(tmp_path))[0]):
        raise ZeroDivisionError
    assert torch.equal(logits(net), before)


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_scale_multiplies_the_update(tiny, tmp_path, scale):
    make_adapter(tiny, tmp_path / "checkpoint-3")
    net, (found,) = load_net(tiny).eval(), discover(str(tmp_path))
    base = dict(net.state_dict())
    base = {k: v.clone() for k, v in base.items()}
    with with_checkpoint(net, found) as merged:
        once = {k.replace(".base_layer", ""): v.clone() for k, v in merged.state_dict().items() if "lora_" not in k}
    by_hand = load_net(tiny).eval()
    by_hand.load_state_dict({k: base[k] + scale * (once[k] - base[k]) for k in base})
    with with_checkpoint(net, found, scale=scale) as merged:
        assert torch.allclose(logits(merged), logits(by_hand), atol=1e-4)


def test_an_adapter_that_trains_a_prompt_is_refused(tiny, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(load_net(tiny), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    wrapped.save_pretrained(tmp_path / "checkpoint-1")
    net = load_net(tiny).eval()
    before = logits(net)
    with pytest.raises(InputError, match="trains a prompt"), with_checkpoint(net, discover(str(tmp_path))[0]):
        pass
    assert torch.equal(logits(net), before)


def test_full_checkpoints_and_interpolation(tiny, tmp_path):
    other = make_model(tmp_path / "checkpoint-7", seed=5)
    net = load_net(tiny).eval()
    (found,) = discover(str(tmp_path))
    assert (found.kind, found.step) == ("full", 7)
    with with_checkpoint(net, found) as full:
        assert torch.equal(logits(full), logits(load_net(other).eval()))
    with with_checkpoint(net, found, scale=0.5) as half:
        weight = half.model.layers[0].mlp.down_proj.weight
        mean = (net.model.layers[0].mlp.down_proj.weight + load_net(other).model.layers[0].mlp.down_proj.weight) / 2
        assert torch.allclose(weight, mean, atol=1e-6)


def test_steps_are_sorted_as_numbers_and_a_single_adapter_is_one(tiny, tmp_path):
    for step in (10, 9, 100):
        make_adapter(tiny, tmp_path / f"checkpoint-{step}")
    assert [c.step for c in discover(str(tmp_path))] == [9, 10, 100]
    assert [c.step for c in discover(str(tmp_path / "checkpoint-9"))] == [9]


def test_equal_adapters_hash_equal_whatever_the_order_of_modules(tiny, tmp_path):
    folder = make_adapter(tiny, tmp_path / "checkpoint-1")
    first = discover(str(folder))[0].digest
    settings = json.loads((folder / ADAPTER).read_text())
    settings["target_modules"] = settings["target_modules"][::-1]
    (folder / ADAPTER).write_text(json.dumps(settings))
    assert discover(str(folder))[0].digest == first
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    save_file({k: v + (1e-3 if k == name else 0) for k, v in tensors.items()}, folder / WEIGHTS)
    assert discover(str(folder))[0].digest != first


def test_faults_are_named(tiny, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        discover(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        discover(str(tmp_path / "empty"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no checkpoint-N"):
        discover(str(tmp_path / "other"))


@pytest.mark.parametrize("tokens", ["x", 5, ["a"], [[1]], {"embed_tokens": "xy"}])
def test_tokens_of_a_wrong_type_are_refused_and_the_base_stays(tiny, tmp_path, tokens):
    folder = make_adapter(tiny, tmp_path / "checkpoint-1")
    settings = json.loads((folder / "adapter_config.json").read_text()) | {"trainable_token_indices": tokens}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    net = load_net(tiny)
    keys = list(net.state_dict())
    with pytest.raises(InputError), with_checkpoint(net, discover(str(folder))[0]):
        pass
    assert list(net.state_dict()) == keys


def test_damaged_pickled_and_foreign_weights_are_refused(tiny, tmp_path):
    folder = make_adapter(tiny, tmp_path / "checkpoint-1")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        discover(str(folder))
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pickled weights .*safe_serialization"):
        discover(str(folder))
    (folder / "adapter_model.bin").unlink()
    (folder / WEIGHTS).write_bytes(whole)
    wide = load_net(make_model(tmp_path / "wide", hidden=64))
    with pytest.raises(InputError, match="does not fit this base"), with_checkpoint(wide, discover(str(folder))[0]):
        pass
    flat = load_net(make_model(tmp_path / "flat", layers=1))
    keys = list(flat.state_dict())
    with pytest.raises(InputError, match="does not fit into this base"), with_checkpoint(flat, discover(str(folder))[0]):
        pass
    assert list(flat.state_dict()) == keys


def test_training_pickles_in_foreign_folders_stay_shut(tiny, tmp_path):
    """A pickle that would leave a mark when loaded lies beside the weights; reading the checkpoint leaves none."""
    folder = make_adapter(tiny, tmp_path / "checkpoint-1")
    mark = tmp_path / "opened"
    bomb = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "scheduler.pt"):
        (folder / name).write_bytes(bomb)
    with with_checkpoint(load_net(tiny), discover(str(tmp_path))[0]) as net:
        logits(net)
    assert not mark.exists()


def test_small_updates_are_not_rounded_away_in_bfloat16(tiny, tmp_path):
    """Merged into bfloat16 weights most of a gentle fine-tune is lost; beside them it acts in full, as it did in training."""
    folder = make_adapter(tiny, tmp_path / "checkpoint-3")
    tensors = load_file(folder / WEIGHTS)
    net = load_net(tiny, dtype="bfloat16").eval()
    size = dict(net.named_modules())["model.layers.0.self_attn.q_proj"].weight.detach().float().std()
    scale = float(2e-3 * size / 0.05)  # elements of the update: about a thousandth of the weights
    save_file({k: v * (scale if "lora_B" in k else 1) for k, v in tensors.items()}, folder / WEIGHTS)
    (found,) = discover(str(tmp_path))
    ids = torch.randint(3, 600, (16, 64), generator=torch.Generator().manual_seed(0))

    def shift(base, changed):
        with torch.inference_mode():
            return (changed(input_ids=ids).logits.float() - base).flatten()

    wide = load_net(tiny, dtype="bfloat16").float().eval()
    with torch.inference_mode():
        before, before_wide = net(input_ids=ids).logits.float(), wide(input_ids=ids).logits
    with with_checkpoint(wide, found) as changed:
        true = shift(before_wide, changed)
    with with_checkpoint(net, found) as changed:
        beside = shift(before, changed)
        assert torch.equal(
            changed.get_parameter("model.layers.0.self_attn.q_proj.weight"),
            net.get_parameter("model.layers.0.self_attn.q_proj.weight"),
        )
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    with with_checkpoint(load_net(tiny, dtype="bfloat16").float().eval(), found) as changed:
        merged = load_net(tiny, dtype="bfloat16").eval()
        merged.load_state_dict({k: v.to(torch.bfloat16) for k, v in changed.state_dict().items()})
    lost = shift(before, merged)
    slopes = [float(true @ x / (true @ true)) for x in (beside, lost)]
    assert slopes[0] == pytest.approx(1, abs=0.15) and slopes[1] < 0.8, slopes
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())
    assert not any("forward" in m.__dict__ for m in net.modules())


@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("tiny", {}),
        ("tiny", {"use_rslora": True, "layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]}),
        ("tiny_gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
        ("tiny", {"use_dora": True}),
    ],
)
def test_in_bfloat16_adapters_do_what_they_do_in_float32(which, settings, tmp_path, request):
    """Each kind moves the logits as in float32, up to rounding, at scale 1 and doubled; the base is bit-equal afterwards."""
    tiny = request.getfixturevalue(which)
    make_adapter(tiny, tmp_path / "checkpoint-3", **settings)
    (found,) = discover(str(tmp_path))
    net, wide = load_net(tiny, dtype="bfloat16").eval(), load_net(tiny, dtype="bfloat16").float().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for scale in (1.0, 2.0):
        with with_checkpoint(wide, found, scale=scale) as changed:
            true = logits(changed) - 0
        with with_checkpoint(net, found, scale=scale) as changed:
            mine = logits(changed).float()
        moved = float((true - logits(wide)).abs().max())
        assert float((mine - true).abs().max()) < 0.1 * moved, "rounding is small beside what the adapter does"
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any("forward" in m.__dict__ for m in net.modules())
