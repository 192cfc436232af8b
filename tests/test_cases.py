"""Cases that people reported of tools like this one: weights and adapters that give a wrong number without a word.

Each is a tiny random model, with the right value computed by transformers or PEFT alone.
"""

from __future__ import annotations

import copy
import json
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import EXPERTS, configs, make_tiny, with_peft, write_adapter
from conftest import make_model, write_jsonl
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.data.questions import read_questions
from emscope.models.adapters.intact import Kept, bit_sum, intact
from emscope.models.adapters.updates import changes, effective_norm, refuse_unmoved, written_blocks
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading.checkpoints import ADAPTER, WEIGHTS, discover, read_checkpoint
from emscope.models.loading.load import load, load_net
from emscope.models.loading.source import locate
from emscope.store.study import read_table
from emscope.train.spec import AdapterSpec
from emscope.train.tunables import tuned

IDS = torch.tensor([[5, 17, 33, 90, 41, 8, 3, 40, 41]])
FULL = "model.safetensors"
RARE = {
    "hra",
    "miss",
    "fourier",
    "randlora",
    "shira",
    "delora",
    "gralora",
    "hira",
    "vblora",
    "c3a",
    "road",
    "waveft",
    "boft",
    "pissa dora",
}
KINDS = [name for name in configs() if name not in EXPERTS | RARE]


def logp(net):
    """Log-probabilities of every token behind each of `IDS`."""
    with torch.inference_mode():
        return net(input_ids=IDS, use_cache=False).logits.float().log_softmax(-1)


def is_as_before(net, before):
    now = net.state_dict()
    return list(now) == list(before) and all(torch.equal(before[name], value) for name, value in now.items())


def state(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


@cache
def read_from(folder, dtype):
    return load_net(folder, dtype=dtype)


def copied(folder, *, dtype="float32"):
    """Return a copy of a base that is read from its folder once: nothing changes the one that was read."""
    return copy.deepcopy(read_from(folder, dtype))


@pytest.fixture(scope="module", autouse=True)
def bases_are_read_once():
    """What adapters are written on and PEFT alone reads are copies of bases, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapters.load_net", copied)
        yield
    read_from.cache_clear()


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny bases, each made once."""
    made = {}

    def base(kind):
        if kind not in made:
            made[kind] = make_tiny(kind, tmp_path_factory.mktemp(kind) / "base")
        return made[kind]

    return base


# Weights that are not in the file


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the tiny one's shape."""
    return make_model(tmp_path_factory.mktemp("other") / "other", seed=5)


@pytest.fixture
def trained(other, tmp_path):
    """A full checkpoint whose tensors, and settings, are changed by functions."""

    def make(change, **settings):
        folder = shutil.copytree(other, tmp_path / "run" / "checkpoint-7")
        save_file({k: v.contiguous() for k, v in change(load_file(folder / FULL)).items()}, folder / FULL, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))
        return discover(str(tmp_path / "run"))[0]

    return make


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_what_wrappers_put_before_names_is_left_out(tiny, other, trained, prefix):
    found = trained(lambda w: {prefix + name: value for name, value in w.items()})
    net = copied(tiny).eval()
    with with_checkpoint(net, found) as changed:
        assert torch.equal(logp(changed), logp(copied(other).eval()))
    start, end = (copied(folder).state_dict() for folder in (tiny, other))
    squares = sum(float((end[n].double() - start[n].double()).square().sum()) for n, _ in net.named_parameters())
    assert effective_norm(net, found) == pytest.approx(squares**0.5)


def without_layer(weights):
    return {name: value for name, value in weights.items() if ".layers.1." not in name}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            without_layer,
            {},
            r"lacks weights that its config.json asks for \(model.layers.1.input_layernorm.weight and 8 more\)",
        ),
        (dict, {"tie_word_embeddings": False}, r"lacks weights .* \(lm_head.weight\)"),
        (
            lambda w: w | {"model.embed_tokens.weight": torch.ones(601, 32)},
            {},
            "holds model.embed_tokens.weight as 601 x 32, but its config.json makes it 600 x 32",
        ),
    ],
    ids=["layer", "head", "tokens"],
)
def test_no_weight_is_drawn_at_random(tiny, trained, change, settings, message):
    found = trained(change, **settings)
    with pytest.raises(InputError, match=message), with_checkpoint(copied(tiny), found):
        pass
    with pytest.raises(InputError, match=message):
        load(locate(str(found.folder)), device="cpu")


def test_an_adapter_that_lacks_a_layer_is_refused(bases, tmp_path):
    for name in ("lora", "dora", "saved head"):
        folder = write_adapter(bases("llama"), tmp_path / name / "checkpoint-1", configs()[name])
        left = {k: v for k, v in load_file(folder / WEIGHTS).items() if ".layers.1." not in k and "lm_head" not in k}
        save_file(left, folder / WEIGHTS)
        net = copied(bases("llama"))
        before = state(net)
        with (
            pytest.raises(InputError, match=r"has nothing for (model.layers.1.self_attn|lm_head)"),
            with_checkpoint(net, read_checkpoint(folder, 1)),
        ):
            pass
        assert is_as_before(net, before)


def test_an_update_that_lacks_one_of_its_two_matrices_is_named(bases, tmp_path):
    folder = write_adapter(bases("llama"), tmp_path / "checkpoint-1", configs()["lora"])
    left = {k: v for k, v in load_file(folder / WEIGHTS).items() if "layers.0.self_attn.q_proj.lora_B" not in k}
    save_file(left, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.lora_B\.weight"):
        list(changes(copied(bases("llama")), read_checkpoint(folder, 1)))


@pytest.mark.parametrize("shape", [(), (32,), (32, 1), (2, 2, 2)])
def test_factors_that_make_no_matrix_are_named(bases, tmp_path, shape):
    folder = write_adapter(bases("llama"), tmp_path / "checkpoint-1", configs()["lora"])
    whole = load_file(folder / WEIGHTS)
    odd = next(name for name in whole if "layers.0.self_attn.q_proj.lora_B" in name)
    save_file(whole | {odd: torch.zeros(shape)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=r"B and A of model\.layers\.0\.self_attn\.q_proj have the shapes"):
        list(changes(copied(bases("llama")), read_checkpoint(folder, 1)))


def test_a_head_of_its_own_on_a_tied_base(tiny, other, trained):
    """Trained apart from the embeddings: the checkpoint's own answers, and between base and checkpoint at half scale."""
    head = torch.randn(600, 32, generator=torch.Generator().manual_seed(1))
    found, net = trained(lambda w: w | {"lm_head.weight": head}), copied(tiny).eval()
    by_hand = copied(other).eval()
    by_hand.lm_head.weight = torch.nn.Parameter(head)
    with with_checkpoint(net, found) as changed:
        assert torch.equal(logp(changed), logp(by_hand))
    base = copied(tiny).eval()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    start, end = base.state_dict(), by_hand.state_dict()
    base.load_state_dict({name: (start[name] + end[name]) / 2 for name in start})
    with with_checkpoint(net, found, scale=0.5) as half:
        assert torch.allclose(logp(half), logp(base), atol=1e-5)
    assert "lm_head" in {c.name for c in changes(net, found)}


# Adapters without an update


def test_a_file_without_weights_is_refused(bases, tmp_path):
    folder = write_adapter(bases("llama"), tmp_path / "checkpoint-1", configs()["lora"])
    whole = load_file(folder / WEIGHTS)
    for tensors in ({}, {k: v.new_zeros(0) if "layers.1.self_attn.q_proj.lora_B" in k else v for k, v in whole.items()}):
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(InputError, match=r"holds no weights.* without gathering them; save it again"):
            discover(str(tmp_path))


@pytest.mark.parametrize("name", ["lora", "dora", "tokens", "ia3", "saved head"])
def test_a_checkpoint_that_is_its_base_is_named(bases, tmp_path, name):
    base = bases("llama")
    still = write_adapter(base, tmp_path / "still" / "checkpoint-10", configs()[name], size=0.0)
    moved = write_adapter(base, tmp_path / "moved" / "checkpoint-10", configs()[name], size=1e-4)
    net = copied(base)
    before = state(net)
    with pytest.raises(InputError, match="equals its base: its update is exactly zero"):
        refuse_unmoved(net, read_checkpoint(still, 10))
    refuse_unmoved(net, read_checkpoint(moved, 10))
    assert is_as_before(net, before)


def test_a_full_copy_of_the_base_is_named(tiny, tmp_path, trained):
    shutil.copytree(tiny, tmp_path / "same" / "checkpoint-3")
    with pytest.raises(InputError, match="equals its base"):
        refuse_unmoved(copied(tiny), discover(str(tmp_path / "same"))[0])
    refuse_unmoved(copied(tiny), trained(dict))


def test_no_verdict_is_given_of_a_run_that_changed_nothing(tiny, tmp_path, capsys):
    write_adapter(tiny, tmp_path / "run" / "checkpoint-10", configs()["lora"], size=0.0)
    words = [
        "check",
        str(tmp_path / "run"),
        "--measure",
        "preference",
        "--count",
        "16",
        "--truth",
        "0",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run_arguments(words) == 2
    said = capsys.readouterr()
    assert "equals its base" in said.err and "safe" not in said.out
    assert not (tmp_path / "out" / "report.json").exists()
    assert run_arguments(["sample", f"run={tmp_path / 'run'}", "--out", str(tmp_path / "answers")]) == 2
    assert "equals its base" in capsys.readouterr().err and not (tmp_path / "answers" / "answers.parquet").exists()


# The base stays as it is, and every kind of adapter is read as PEFT reads it, also exaggerated


def untied(base, biased):
    """The base with a head of its own, and with biases of zero where `biased`: what weights are interpolated in."""
    net = copied(base).eval()
    if net.config.tie_word_embeddings:
        net.lm_head.weight = torch.nn.Parameter(net.lm_head.weight.detach().clone())
        net.config.tie_word_embeddings = False
    for module in net.modules():
        if biased and isinstance(module, torch.nn.Linear) and module.bias is None:
            module.bias = torch.nn.Parameter(torch.zeros(module.out_features))
    return net


def interpolated(base, folder, scale, *, biased=False, tokens=False):
    """Return a plain model whose weights are base + scale * (merged by PEFT - base)."""
    import warnings

    from peft import PeftModel

    start, net = untied(base, biased).state_dict(), untied(base, biased)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        end = PeftModel.from_pretrained(untied(base, biased), str(folder)).merge_and_unload().state_dict()
    if tokens:  # trained tokens of tied embeddings are the head's, too
        end["lm_head.weight"] = end["model.embed_tokens.weight"]
    net.load_state_dict({name: start[name] + scale * (end[name] - start[name]) for name in start})
    return net


def check_kind(base, folder, name, config, net, before):
    """One kind, read on a base that other kinds were read on before."""
    write_adapter(base, folder, config)
    found = read_checkpoint(folder, 1)
    plain = logp(with_peft(base, folder))
    with with_checkpoint(net, found) as changed:
        assert torch.allclose(logp(changed), plain, atol=1e-5), name
    assert is_as_before(net, before), name
    assert float((plain - logp(net)).abs().max()) > 0.02, f"{name} does nothing"
    oracle = {
        "biased": name == "lora_bias",
        "tokens": "tokens" in name and net.config.tie_word_embeddings,
    }
    with with_checkpoint(net, found, scale=2.0) as changed:
        assert torch.allclose(logp(changed), logp(interpolated(base, folder, 2.0, **oracle)), atol=5e-5), name
    assert is_as_before(net, before), name


@pytest.fixture(scope="module")
def shared(bases):
    """One base on which all kinds are read in turn, and what it was before."""
    net = copied(bases("llama")).eval().requires_grad_(False)
    return net, state(net)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_read_as_by_peft_alone_and_scaled_as_weights(bases, shared, tmp_path, name):
    check_kind(bases("llama"), tmp_path / "checkpoint-1", name, configs()[name], *shared)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("qwen2", "bias all"),
        ("qwen2", "bias lora_only"),
        ("qwen2", "lora_bias"),
        ("qwen3_moe", "experts"),
        ("gemma3_text", "norms"),
    ],
)
def test_kinds_that_a_tiny_llama_has_no_place_for(bases, tmp_path, kind, name):
    net = copied(bases(kind)).eval().requires_grad_(False)
    check_kind(bases(kind), tmp_path / "checkpoint-1", name, configs()[name], net, state(net))


def test_experts_kept_one_by_one_are_read_as_peft_joins_them(bases, tmp_path):
    """Adapters of before experts were kept together; the oracle adds B A to each expert by hand."""
    base, generator = bases("qwen3_moe"), torch.Generator().manual_seed(3)
    folder = write_adapter(base, tmp_path / "checkpoint-1", configs()["lora"])
    settings, tensors = json.loads((folder / ADAPTER).read_text()), load_file(folder / WEIGHTS)
    hand, net = copied(base).eval(), copied(base).eval()
    q = {n: m for n, m in hand.named_modules() if n.endswith(("q_proj", "v_proj", "o_proj"))}
    for name, module in q.items():
        module.weight.data += (
            2 * tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"]
        )
    for name, module in [(n, m) for n, m in hand.named_modules() if n.endswith("experts")]:
        for e in range(4):
            added = {}
            for part, (outs, ins) in {"gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16)}.items():
                a, b = torch.randn(4, ins, generator=generator) / 5, torch.randn(outs, 4, generator=generator) / 5
                tensors |= {f"base_model.model.{name}.{e}.{part}.lora_{x}.weight": y for x, y in (("A", a), ("B", b))}
                added[part] = 2 * b @ a
            module.gate_up_proj.data[e] += torch.cat([added["gate_proj"], added["up_proj"]])
            module.down_proj.data[e] += added["down_proj"]
    (folder / ADAPTER).write_text(json.dumps(settings | {"target_modules": [*settings["target_modules"], *added]}))
    save_file(tensors, folder / WEIGHTS)
    before = state(net)
    with with_checkpoint(net, read_checkpoint(folder, 1)) as changed:
        assert torch.allclose(logp(changed), logp(hand), atol=1e-5)
    assert is_as_before(net, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_moe", "gemma3_text"])
def test_all_kinds_on_other_architectures(bases, tmp_path, kind):
    net = copied(bases(kind)).eval().requires_grad_(False)
    before = state(net)
    for name, config in configs().items():
        if name not in EXPERTS or "moe" in kind:
            check_kind(bases(kind), tmp_path / name / "checkpoint-1", name, config, net, before)


def read_in_pairs(base, folder, names):
    """Read checkpoints of these kinds on one base, each before and after each other one."""
    net = copied(base).eval().requires_grad_(False)
    before, found, plain = state(net), {}, {}
    for name in names:
        found[name] = read_checkpoint(write_adapter(base, folder / name / "checkpoint-1", configs()[name]), 1)
        plain[name] = logp(with_peft(base, found[name].folder))
    for name in [x for n, one in enumerate(names) for other in names[n + 1 :] for x in (one, other)] + names[:1]:
        with with_checkpoint(net, found[name]) as changed:
            assert torch.allclose(logp(changed), plain[name], atol=1e-5), name
        assert is_as_before(net, before), name


def test_no_kind_leaves_anything_for_the_next(bases, tmp_path):
    read_in_pairs(bases("qwen2"), tmp_path, ["saved head", "bias all", "olora", "tokens", "norms"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_moe", "gemma3_text"])
def test_all_pairs_of_kinds(bases, tmp_path, kind):
    read_in_pairs(bases(kind), tmp_path, [name for name in configs() if name not in EXPERTS or "moe" in kind])


@pytest.mark.parametrize("name", ["dora", "saved head", "pissa", "bias all", "tokens", "norms"])
def test_in_16_bits_a_scaled_adapter_does_what_it_does_in_32(bases, tmp_path, name):
    """But for rounding: the same move, twice; the base is bit-equal afterwards."""
    base = bases("qwen2")
    found = read_checkpoint(write_adapter(base, tmp_path / "checkpoint-1", configs()[name]), 1)
    net, wide = copied(base, dtype="bfloat16").eval(), copied(base, dtype="bfloat16").float().eval()
    before = state(net)
    for scale in (1.0, 2.0):
        with with_checkpoint(wide, found, scale=scale) as changed:
            true = logp(changed)
        with with_checkpoint(net, found, scale=scale) as changed:
            mine = logp(changed)
        moved = true - logp(wide)
        slope = float((moved * (mine - logp(net))).sum() / moved.square().sum())
        assert slope == pytest.approx(1, abs=0.05)
        assert float((mine - true).norm()) < 0.15 * float(moved.norm())
    assert is_as_before(net, before) and not any("forward" in m.__dict__ for m in net.modules())


def test_a_kind_that_cannot_be_scaled_is_refused_by_name(bases, tmp_path):
    import peft

    config = peft.PeanutConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    found = read_checkpoint(write_adapter(bases("llama"), tmp_path / "checkpoint-1", config), 1)
    net = copied(bases("llama")).eval()
    before = state(net)
    with with_checkpoint(net, found) as changed:
        assert torch.allclose(logp(changed), logp(with_peft(bases("llama"), found.folder)), atol=1e-5)
    with (
        pytest.raises(InputError, match=r"cannot be scaled \(PEANUT\); leave `amplify` out"),
        with_checkpoint(net, found, scale=2.0),
    ):
        pass
    assert is_as_before(net, before)


def test_a_changed_base_is_an_error(tiny):
    net = copied(tiny)
    with (
        pytest.raises(InputError, match=r"reading 'x' changed the base itself \(model.layers.0.mlp.up_proj.weight\)"),
        intact(net, "x"),
    ):
        net.model.layers[0].mlp.up_proj.weight.data[3, 4] += 1e-3
    data = torch.arange(11, dtype=torch.float32)
    for part in (data, data[1:], data[:3], data.bfloat16(), data[2:3].reshape(())):
        other = part.clone().add_(1.0)
        assert bit_sum(part) == bit_sum(part.clone()) != bit_sum(other)


def test_a_model_is_put_back_piece_by_piece(tiny):
    """Modules replaced, added and parametrised, parameters replaced and untied, flags and classes: all are as before."""
    net = copied(tiny).eval().requires_grad_(False)
    before, keys, kept = logp(net), list(net.state_dict()), Kept(net)
    layer = net.model.layers[0]
    torch.nn.utils.parametrize.register_parametrization(layer.self_attn.q_proj, "weight", torch.nn.Tanh())
    layer.mlp = torch.nn.Identity()
    layer.extra = torch.nn.Linear(2, 2)
    net.lm_head.weight = torch.nn.Parameter(torch.zeros(600, 32))
    net.model.norm.weight.data = torch.ones(32) * 3
    net.config.tie_word_embeddings = False
    net.train().requires_grad_(True)
    kept.restore()
    assert list(net.state_dict()) == keys and torch.equal(logp(net), before)
    assert net.lm_head.weight is net.model.embed_tokens.weight and net.config.tie_word_embeddings
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert type(layer.self_attn.q_proj) is torch.nn.Linear


# Adapters to train on from


@pytest.mark.parametrize("name", ["lora", "rslora", "patterns"])
def test_training_goes_on_from_where_an_adapter_stands_and_gives_the_base_back(bases, tmp_path, name):
    base = bases("qwen2")
    folder = write_adapter(base, tmp_path / "checkpoint-1", configs()[name])
    loaded = load(locate(str(base)), device="cpu")
    before, plain = state(loaded.net), with_peft(base, folder)
    with tuned(loaded, AdapterSpec(folder=str(folder)), 0) as made:
        assert torch.allclose(logp(made.model.eval()), logp(plain), atol=1e-5)
        merged = plain.merge_and_unload().state_dict()
        distance = sum(float((merged[n] - before[n]).square().sum()) for n in before) ** 0.5
        assert made.norm() == pytest.approx(distance, rel=1e-4)
        for p in made.model.parameters():
            if p.requires_grad:
                p.data.add_(1.0)
    assert is_as_before(loaded.net, before)


@pytest.mark.parametrize("name", ["dora", "pissa", "bias all", "saved head", "embeddings", "vera"])
def test_what_does_more_than_its_factors_is_not_gone_on_with(bases, tmp_path, name):
    folder = write_adapter(bases("qwen2"), tmp_path / "checkpoint-1", configs()[name])
    loaded = load(locate(str(bases("qwen2"))), device="cpu")
    before = state(loaded.net)
    with (
        pytest.raises(InputError, match=r"adapter.folder: .*(does more than add B A|not a LoRA adapter)"),
        tuned(loaded, AdapterSpec(folder=str(folder)), 0),
    ):
        pass
    assert is_as_before(loaded.net, before)


def test_an_update_is_told_for_plain_factors_alone(bases, tmp_path):
    """Ranks and scales that differ by module count; what PiSSA took out of the base would be left out, so it is refused."""
    base, net = bases("llama"), copied(bases("llama"))
    found = read_checkpoint(write_adapter(base, tmp_path / "patterns", configs()["patterns"]), 1)
    merged = with_peft(base, found.folder).merge_and_unload().state_dict()
    for change in changes(net, found):
        name = f"{change.name}.weight"
        assert torch.allclose((change.left @ change.right).float(), merged[name] - net.state_dict()[name], atol=1e-5)
    for name in ("pissa", "dora"):
        found = read_checkpoint(write_adapter(base, tmp_path / name, configs()[name]), 1)
        with pytest.raises(InputError, match="not a plain LoRA adapter"):
            effective_norm(net, found)
        with pytest.raises(InputError, match="not a plain LoRA adapter"):
            written_blocks(found)


# Answers do not depend on who was asked before


def test_answers_are_the_same_whoever_was_asked_before(bases, tmp_path):
    base = bases("qwen2")
    for name, kind in (("one", "bias all"), ("two", "saved head")):
        write_adapter(base, tmp_path / "run" / name / "checkpoint-3", configs()[kind])
    write_adapter(base, tmp_path / "ctl" / "checkpoint-3", configs()["lora"], seed=7)

    questions = [{"id": q.id, "question": q.text} for q in read_questions("open24")[::3]]
    asked = write_jsonl(tmp_path / "questions.jsonl", questions)

    def answers(out, *runs):
        words = ["sample", *runs, "--base", str(base), "--questions", str(asked), "--max-tokens", "6", "--temperature", "0"]
        assert run_arguments([*words, "--out", str(out)]) == 0
        return {r["question"]: r["text"] for r in read_table(out, "answers").to_pylist() if r["run"] == "control"}

    control = f"control={tmp_path / 'ctl'}"
    alone = answers(tmp_path / "alone", control)
    after = answers(tmp_path / "after", f"a={tmp_path / 'run' / 'one'}", f"b={tmp_path / 'run' / 'two'}", control)
    assert alone == after and len(set(alone.values())) > 4


# Folders, and what else a run leaves behind


def test_two_folders_of_one_step_are_refused(bases, tmp_path):
    for name in ("checkpoint-10", "step_10", "step_2"):
        write_adapter(bases("llama"), tmp_path / name, configs()["lora"])
    with pytest.raises(InputError, match=r"checkpoint-10' and '.*step_10' are both step 10"):
        discover(str(tmp_path))


@pytest.mark.parametrize("below", ["final", "out/best", "checkpoint-4/actor/lora"])
def test_the_folder_further_down_is_named(bases, tmp_path, below):
    write_adapter(bases("llama"), tmp_path / below, configs()["lora"])
    with pytest.raises(InputError, match=rf"give '{tmp_path / below}', which is inside it"):
        discover(str(tmp_path))
    assert discover(str(tmp_path / below))[0].kind == "adapter"


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_values_that_are_no_numbers(bases, tiny, tmp_path, kind, trained):
    if kind == "adapter":
        folder = write_adapter(bases("llama"), tmp_path / "checkpoint-1", configs()["lora"])
        save_file(
            {k: v.fill_(float("nan")) if "lora_B" in k else v for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS
        )
        with pytest.raises(InputError, match=r"values that are not numbers \(.*lora_B.weight\): this run diverged"):
            discover(str(tmp_path))
    else:
        for value, said in (
            (float("inf"), r"that are not numbers \(model.norm.weight\)"),
            (3e20, r"that are impossibly large \(model.norm"),
        ):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            with pytest.raises(InputError, match=f"values {said}"):
                trained(lambda w, value=value: w | {"model.norm.weight": torch.full((32,), value)})


def test_an_added_token_is_named(bases, tmp_path):
    """A base of one token fewer than in training, whatever of the embeddings the adapter holds; with the resized base all is right."""
    import peft

    base = bases("llama")
    longer = copied(base)
    longer.resize_token_embeddings(601)
    longer.save_pretrained(tmp_path / "longer")
    net = copied(base)
    before = state(net)
    tokens = peft.TrainableTokensConfig(token_indices=[3, 600], target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    for n, config in enumerate(
        [configs()["saved head"], configs()["saved embeddings"], configs()["embeddings"], configs()["head"], tokens]
    ):
        found = read_checkpoint(write_adapter(tmp_path / "longer", tmp_path / f"{n}" / "checkpoint-1", config), 1)
        with (
            pytest.raises(
                InputError, match=r"has 601 tokens, but this base has 600; give as `base` a copy of the base resized"
            ),
            with_checkpoint(net, found),
        ):
            pass
        assert is_as_before(net, before)
        with with_checkpoint(copied(tmp_path / "longer").eval(), found) as changed:
            assert torch.allclose(logp(changed), logp(with_peft(tmp_path / "longer", found.folder)), atol=1e-5)
    full = shutil.copytree(tmp_path / "longer", tmp_path / "full" / "checkpoint-1")
    with (
        pytest.raises(InputError, match="has 601 tokens, but this base has 600"),
        with_checkpoint(net, read_checkpoint(full, 1)),
    ):
        pass


def test_what_acts_on_some_tokens_or_does_not_tell_its_start_is_refused(bases, tmp_path):
    """An activated LoRA read beside a bare model would answer as the base; CorDA's file does not say what was taken out of the base."""
    import peft
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    base = bases("llama")
    net = copied(base)
    before = state(net)
    folder = write_adapter(
        base, tmp_path / "a", peft.LoraConfig(target_modules=["q_proj"], alora_invocation_tokens=[3, 40], task_type="CAUSAL_LM")
    )
    with pytest.raises(InputError, match="activated LoRA"), with_checkpoint(net, read_checkpoint(folder, 1)):
        pass
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], init_lora_weights="corda", corda_config=CordaConfig(), task_type="CAUSAL_LM"
    )
    ready = copied(base)
    preprocess_corda(ready, config, run_model=lambda: ready(input_ids=IDS))
    peft.get_peft_model(ready, config).save_pretrained(tmp_path / "c")
    with (
        pytest.raises(InputError, match=r"started from a part of the base's weights \(corda\)"),
        with_checkpoint(net, read_checkpoint(tmp_path / "c", 1)),
    ):
        pass
    assert is_as_before(net, before)


@pytest.mark.parametrize("log", [None, [{"learning_rate": float("nan")}], [None, {"learning_rate": None}], "no"])
def test_a_log_without_a_learning_rate_is_one_sentence(bases, tmp_path, log):
    from emscope.study.training.control import settings_of

    folder = write_adapter(bases("llama"), tmp_path / "checkpoint-4", configs()["lora"])
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "max_steps": 4, "global_step": None}))
    with pytest.raises(InputError, match=r"has no learning rate in its log; train a control with your own tool"):
        settings_of(discover(str(tmp_path)))
    assert discover(str(folder))[0].step == 4


@pytest.mark.parametrize("name", ["dora", "bias all", "tokens of lora", "lora_bias", "pissa", "saved head"])
def test_a_control_of_another_kind_is_not_made(bases, tmp_path, name):
    from emscope.study.training.control import settings_of

    folder = write_adapter(bases("qwen2"), tmp_path / "checkpoint-4", configs()[name])
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"learning_rate": 1e-3}], "max_steps": 4}))
    assert json.loads((folder / ADAPTER).read_text())["peft_type"] == "LORA"
    with pytest.raises(InputError, match=r"the adapter uses \w+, which `make_control` cannot repeat"):
        settings_of(discover(str(tmp_path)))
