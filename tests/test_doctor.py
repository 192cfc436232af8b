"""`emscope doctor --model`: sound models pass, and faults put into a model, its template or an adapter are found."""

from __future__ import annotations

import json
import shutil
from datetime import datetime

import peft
import pytest
import torch
import transformers as t

from adapters import configs, write_adapter
from conftest import CHATML, make_tokenizer
from emscope.cli.app import run_arguments
from emscope.core.errors import InputError
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.checkpoints import read_checkpoint
from emscope.models.loading.load import load_net
from emscope.models.sizing import memory, needs
from emscope.models.sizing.tiny import tiny_config, tiny_model
from emscope.study import doctor, examining, examining_adapter
from emscope.study.examining import Passed
from test_architectures import KINDS

LARGE = {
    "qwen3_moe": lambda: t.Qwen3MoeConfig(),
    "gemma3_text": lambda: t.Gemma3TextConfig(),
    "deepseek_v3": lambda: t.DeepseekV3Config(),
    "qwen3_next": lambda: t.Qwen3NextConfig(),
    "qwen2_5_vl": lambda: t.Qwen2_5_VLConfig(
        text_config={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    ),
}


def few_words(config):
    """Return a configuration with a small vocabulary: what a copy has most weights for, and no structure hangs on."""
    config.get_text_config().vocab_size = 1000
    return config


@pytest.fixture
def net(tiny):
    return load_net(tiny).eval().requires_grad_(False)


@pytest.fixture
def quick(monkeypatch):
    """Memory of one kind of work alone, and no speed: both are tested elsewhere."""
    monkeypatch.setattr(doctor, "DTYPES", ("float32",))
    monkeypatch.setattr(needs, "usual_sampling", lambda config, device="cpu": needs.Sampling(2, 3, 1, 4))
    monkeypatch.setattr(doctor, "matmul_gflops", lambda: 100.0)


def by_check(findings):
    return {f.check: f for f in findings}


def asked(template, **tokens):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    return by_check(examining.examine_chat(ChatFormat.of(tokenizer), now=datetime(2031, 3, 9)))


def test_a_sound_model_passes_and_the_command_says_so(tiny, tmp_path, capsys, quick):
    adapter = write_adapter(tiny, tmp_path / "adapter", configs()["lora"])
    assert run_arguments(["doctor", "--model", str(tiny), "--adapter", str(adapter), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["examined"], found["architecture"]) == (True, "weights", "llama")
    outcomes = {f["check"]: f["outcome"] for f in found["findings"]}
    passed = {"reading", "writing", "chat template", "special tokens", "vocabulary", "adapter", "base afterwards", "what else"}
    assert {check for check, outcome in outcomes.items() if outcome == "pass"} == passed | {
        f"site {s}" for s in examining.SITES
    }
    assert outcomes["date"] == "not applicable"
    assert found["counted"]["parameters"] == sum(p.numel() for p in load_net(tiny).parameters())
    assert {(r["work"], r["fits"]) for r in found["memory"]} == {
        ("reading", True),
        ("sampling", True),
        ("training", True),
        ("training, checkpointing", True),
    }
    assert found["speed"]["reading"] == pytest.approx(100e9 / (2 * found["counted"]["blocks"]))


def test_without_weights_a_tiny_copy_is_examined(tmp_path, capsys, monkeypatch, quick):
    folder = tmp_path / "large"
    monkeypatch.setattr(doctor, "_rooms", lambda *given: ())
    few_words(LARGE["qwen3_moe"]()).save_pretrained(folder)
    assert run_arguments(["doctor", "--model", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "tiny random copy" in said and "the folder holds no weights" in said and "The folder holds no tokenizer." in said
    assert "Reading fixed answers works" in said


def test_weights_that_do_not_fit_are_not_loaded(tiny, monkeypatch, quick):
    monkeypatch.setattr(memory, "free_memory", lambda device="cpu": 1000)
    monkeypatch.setattr(doctor, "load_net", None)
    monkeypatch.setattr(needs, "training", None)  # what cannot be counted is said, not guessed
    found = doctor.diagnose(str(tiny), device="cpu")
    assert found.examined == doctor.COPY and "are free" in found.why and not found.failed
    assert {(r.work[:8], r.fits, r.why is None) for r in found.memory} == {
        ("reading", False, True),
        ("sampling", False, True),
        ("training", None, False),
    }


@pytest.mark.parametrize("name", LARGE)
def test_a_tiny_copy_keeps_the_structure(name):
    config = LARGE[name]()
    small, large = tiny_config(config).get_text_config(), config.get_text_config()
    assert memory.counted(tiny_config(config)).parameters < 40e6 and small.vocab_size == large.vocab_size
    kinds = getattr(large, "layer_types", None)
    assert set(getattr(small, "layer_types", None) or ()) == set(kinds or ())
    for kept in ("kv_lora_rank", "sliding_window", "hidden_act", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(small, kept, None) == getattr(large, kept, None)
    grouped = getattr(large, "num_key_value_heads", large.num_attention_heads) < large.num_attention_heads
    assert (getattr(small, "num_key_value_heads", small.num_attention_heads) < small.num_attention_heads) == grouped
    found = by_check(examining.examine(tiny_model(few_words(config))))
    assert not [f.sentence for f in found.values() if f.outcome == Passed.FAIL]
    assert found["reading"].figures["packed"] == (name not in ("qwen3_next",))


def test_an_attention_that_ignores_the_mask_is_found(net):
    def blind(module, query, key, value, attention_mask, **given):
        key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    t.AttentionInterface.register("blind_to_masks", blind)
    net.set_attn_implementation("blind_to_masks")
    found = by_check(examining.examine(net))
    assert found["site before"].outcome == Passed.FAIL and "looks ahead" in found["site before"].sentence
    assert found["writing"].outcome == Passed.FAIL or found["writing"].figures["way"] == "Recomputed"


def test_a_block_whose_output_nothing_reads_is_found(net, monkeypatch):
    monkeypatch.setattr(net.model.layers[1], "forward", lambda hidden, *a, **k: 0 * hidden + 1.0)
    found = examining.causal_edit(net, "before")
    assert found.outcome == Passed.FAIL and "changes no logit" in found.sentence


def test_packs_that_read_something_else_are_found(net, monkeypatch):
    real = examining.score
    monkeypatch.setattr(
        examining, "score", lambda *a: [type(s)(s.item, s.option, s.logprob + 1e-3 * s.tokens, s.tokens) for s in real(*a)]
    )
    assert examining.packed_reading(net).outcome == Passed.FAIL


def test_rows_that_write_something_else_are_found(net, monkeypatch):
    real = examining.Decoding

    class Off(real):
        def write(self, tokens):
            super().write(tokens.roll(1))

    Off.__name__ = "Decoding"
    monkeypatch.setattr(examining, "Decoding", Off)
    found = examining.cached_writing(net)
    assert found.outcome == Passed.FAIL and "NOT the same" in found.sentence


def test_a_template_that_drops_the_question_is_found(tiny, tmp_path, capsys, monkeypatch, quick):
    folder = tmp_path / "model"
    monkeypatch.setattr(doctor, "_rooms", lambda *given: ())
    shutil.copytree(tiny, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML.replace("message['content']", "''")
    tokenizer.save_pretrained(folder)
    assert run_arguments(["doctor", "--model", str(folder), "--tiny", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    wrong = {f["check"]: f["sentence"] for f in found["findings"] if f["outcome"] == "fail"}
    assert set(wrong) == {"chat template"} and "leaves out the question" in wrong["chat template"]


def test_dates_and_special_tokens_of_a_template():
    found = asked(CHATML)
    assert {f.outcome for f in found.values()} == {Passed.PASS, Passed.NOT_APPLICABLE}
    dated = asked(CHATML.replace("message['role'] +", "message['role'] + strftime_now('%d %b %Y') +"))
    assert dated["date"].outcome == Passed.PASS and "26 July 2024" in dated["date"].sentence
    assert asked(CHATML.replace("message['role'] +", "message['role'] + '09 Mar 2031' +"))["date"].outcome == Passed.FAIL
    bare = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    twice = asked("{{ bos_token + bos_token }}" + bare, bos_token="<|endoftext|>")
    assert asked("{{ bos_token }}" + bare, bos_token="<|endoftext|>")["special tokens"].outcome == Passed.PASS
    assert twice["special tokens"].outcome == Passed.FAIL and "twice" in twice["special tokens"].sentence
    endless = asked("{% for message in messages %}{{ message['content'] + '\n' }}{% endfor %}")
    assert "nothing that a model could generate" in endless["special tokens"].sentence
    plain = make_tokenizer()
    plain.chat_template = None
    assert [f.outcome for f in examining.examine_chat(ChatFormat.of(plain))] == [Passed.NOT_APPLICABLE]


def test_tokens_beyond_the_embedding_are_found():
    tokenizer = make_tokenizer()
    assert examining.examine_vocabulary(tokenizer, len(tokenizer)).outcome == Passed.PASS
    assert examining.examine_vocabulary(tokenizer, len(tokenizer) - 1).outcome == Passed.FAIL


@pytest.mark.parametrize(("name", "works"), [("lora", 2), ("dora", 1), ("ia3", 1), ("norms", 1)])
def test_adapters_are_held_against_peft(tiny, net, tmp_path, name, works):
    checkpoint = read_checkpoint(write_adapter(tiny, tmp_path / "a", configs()[name]), 1)
    found = by_check(examining_adapter.examine_adapter(net, checkpoint))
    assert found["adapter"].outcome == found["base afterwards"].outcome == Passed.PASS
    assert found["adapter"].figures["effect"] > 1e-3 and len(found["what else"].figures["works"]) == works


def test_a_wrong_adapter_and_a_changed_base_are_found(tiny, net, tmp_path, monkeypatch):
    from contextlib import contextmanager

    checkpoint = read_checkpoint(write_adapter(tiny, tmp_path / "a", configs()["lora"]), 1)

    @contextmanager
    def leaving(net, checkpoint):
        with real(net, checkpoint) as one:
            yield one
        net.model.norm.weight[0] += 1e-3

    @contextmanager
    def nothing(net, checkpoint):
        yield net

    real = examining_adapter.with_checkpoint
    monkeypatch.setattr(examining_adapter, "with_checkpoint", nothing)
    assert by_check(examining_adapter.examine_adapter(net, checkpoint))["adapter"].outcome == Passed.FAIL
    monkeypatch.setattr(examining_adapter, "with_checkpoint", leaving)
    assert by_check(examining_adapter.examine_adapter(net, checkpoint))["base afterwards"].outcome == Passed.FAIL


def test_an_adapter_of_a_large_model_is_made_again_for_its_copy(tmp_path):
    config = t.LlamaConfig(vocab_size=600, hidden_size=64, num_hidden_layers=6, num_attention_heads=8)
    base = tmp_path / "base"
    t.AutoModelForCausalLM.from_config(config).save_pretrained(base)
    settings = peft.LoraConfig(r=8, use_dora=True, target_modules=["q_proj"], layers_to_transform=[4, 5], task_type="CAUSAL_LM")
    checkpoint = read_checkpoint(write_adapter(base, tmp_path / "adapter", settings), 1)
    copy = tiny_model(config)
    with examining_adapter.adapter_like(copy, checkpoint) as made:
        assert made.folder != checkpoint.folder
        assert by_check(examining_adapter.examine_adapter(copy, made))["adapter"].outcome == Passed.PASS
    assert not made.folder.exists()


def test_the_shipped_list_is_of_the_tests_own_cases():
    listed = doctor.matrix()
    assert {a["name"] for a in listed["architectures"]} == {*KINDS, "llama", "qwen2", "gemma3_text"}
    assert {a["name"]: a["peft_type"] for a in listed["adapters"]} == {n: c.peft_type.value for n, c in configs().items()}
    packed = {a["name"]: a["packed"] for a in listed["architectures"] if a["name"] in KINDS}
    assert packed == {name: kind.packs for name, kind in KINDS.items()}
    assert {tuple(a["sites"]) for a in listed["architectures"]} == {examining.SITES}


def test_what_no_test_runs_on_is_said(tiny, tmp_path, monkeypatch):
    config = memory.read_config(tiny)
    monkeypatch.setattr(doctor, "VERSIONS", ())
    assert list(doctor._untested(config, None)) == []
    listed = doctor.matrix()
    monkeypatch.setattr(doctor, "VERSIONS", ("torch",))
    monkeypatch.setattr(doctor, "matrix", lambda: listed | {"architectures": [], "adapters": [], "versions": {"torch": "1.0"}})
    checkpoint = read_checkpoint(write_adapter(tiny, tmp_path / "a", configs()["lora"]), 1)
    found = list(doctor._untested(config, checkpoint))
    assert found[:2] == ["the architecture llama", "adapters of the kind LORA"] and found[2].endswith("(tested: 1.0)")


def test_wrong_input_is_one_sentence(tiny, tmp_path, capsys):
    assert run_arguments(["doctor", "--tiny"]) == 2 and "without --model" in capsys.readouterr().err
    assert run_arguments(["doctor", "--model", str(tmp_path / "none")]) == 2
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text(json.dumps({"model_type": "no_such_architecture"}))
    assert run_arguments(["doctor", "--model", str(bad)]) == 2 and "transformers knows" in capsys.readouterr().err
    (bad / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a configuration"):
        memory.read_config(bad)
