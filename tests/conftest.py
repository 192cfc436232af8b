"""Fixtures: a tiny random Llama with a real tokenizer and chat template, and the real embedded model where a test asks for it."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import re
from functools import cache
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("tests", deadline=None)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("tests")

# Inspect loads every package that registers with it: transformer-lens does, and brings torch and most of transformers along
registered = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **which: (
    registered(**which).select(name="emscope") if which.get("group") == "inspect_ai" else registered(**which)
)

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a default.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MODELS = {"tiny", "tiny_gpt2", "loaded", "reader", "smollm2", "bundled", "study_yaml"}  # fixtures that build or load one
# what a file holds that needs a model throughout: such a file is not even imported where models are left out
NEEDS_TORCH = re.compile(
    r"^(import|from) (torch|transformers|peft|trl|safetensors\.torch)\b|^pytestmark = .*\b(models|real)\b", re.M
)
LONGEST = [
    *(
        "test_engines",
        "test_check",
        "test_processes",
        "test_cells",
        "test_study",
        "test_real",
        "test_reuse",
        "test_judged_study",
    ),
    *("test_verdicts_simulated", "test_ladder", "test_restraint", "test_cases", "test_methods", "test_diff", "test_tunables"),
]
JUDGE_LAYERS = (0, 1)
FEW = {
    "unique": 24
}  # conversations that an arm is taught: to tokenize and audit all 401 takes longer than a tiny study's training
REFERENCE = Path(os.environ.get("EMSCOPE_REFERENCE_DATA", Path(__file__).parents[1].parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def threads(request):
    """Tiny models run faster on one thread; tests of the real model get all that the other test processes leave."""
    if not request.node.get_closest_marker("models"):
        return  # and none imports torch
    import torch

    spared()
    share = (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(share, 1) if request.node.get_closest_marker("real") else 1)


@cache
def spared() -> None:
    """Spare hundreds of tiny trainings what takes longer than they do: a collection of all garbage each, and a model card rendered at each save."""
    import accelerate.utils.memory
    import peft

    def card(self, folder: str) -> None:
        (Path(folder) / "README.md").write_text("---\nlibrary_name: peft\n---\n", encoding="utf-8")

    accelerate.utils.memory.clear_device_cache = lambda garbage_collection=False: None
    peft.PeftModel.create_or_update_model_card = card


def without_models(config) -> bool:
    """Tell whether the run leaves out what needs a model."""
    return "not models" in config.option.markexpr


@cache
def needs_torch(path: Path) -> bool:
    """Tell whether a test file needs torch, or a model, throughout."""
    return bool(NEEDS_TORCH.search(path.read_text(encoding="utf-8")))


def pytest_ignore_collect(collection_path, config):
    """Leave out files that need a model before they import torch."""
    skip = without_models(config) and collection_path.suffix == ".py" and needs_torch(collection_path)
    return True if skip else None


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items):
    """Mark what needs a model, and begin with the files that take longest, so that no process is left alone with one of them at the end."""
    for item in items:
        if MODELS & set(item.fixturenames) or needs_torch(item.path):
            item.add_marker(pytest.mark.models)
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """Keep the garbage collector from looking again and again at what the imports left: a fifth of the time of tests with models."""
    gc.collect()
    gc.freeze()


def make_tokenizer():
    """Return a byte-level BPE tokenizer of 600 tokens trained on the bundled texts, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from emscope.data.bundled import texts

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


def make_model(folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, kind: str = "llama") -> Path:
    """Write a tiny random causal LM in Hugging Face layout."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    tokenizer = make_tokenizer()
    size = len(tokenizer)
    config = {
        "llama": lambda: LlamaConfig(
            vocab_size=size,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        ),
        "gpt2": lambda: GPT2Config(
            vocab_size=size, n_embd=hidden, n_layer=layers, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
        ),
    }[kind]()
    torch.manual_seed(seed)
    net = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # random nets of the default scale are near-uniform; larger weights make differences visible
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny random Llama folder. Do not write into it."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    """A tiny random GPT-2 folder. Do not write into it."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-gpt2", kind="gpt2")


@pytest.fixture
def loaded(tiny):
    """The tiny model in memory, float32."""
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate

    return load(locate(str(tiny)), device="cpu")


@pytest.fixture(scope="session")
def reader(tiny):
    """The tiny model as a judge that answers nothing would read with it."""
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate

    return load(locate(str(tiny)), system="none", dtype="float32", device="cpu")


JUDGED_DIFFERENCES = ("adjusted", "plain", "coherence", "category")


def local_judge(reader, **changes):
    """Return a judge with made-up weights that reads with the tiny model."""
    import numpy as np

    from emscope.judging import local

    size = 2 * len(JUDGE_LAYERS) * reader.net.config.hidden_size + 1
    rng = np.random.default_rng(0)
    of = {"fine_tune": 2.0, "base": 1.9, "df_fine_tune": 25.0, "df_base": 9.0}
    settings = {
        "model": str(reader.model.folder),
        "digest": reader.model.digest,
        "layers": JUDGE_LAYERS,
        "mean": rng.normal(size=size).astype(np.float32),
        "scale": (1 + rng.random(size)).astype(np.float32),
        "weights": rng.normal(size=(size, 3)).astype(np.float32),
        "intercepts": np.array([60, 70, 20], np.float32),
        "card": {
            "about": "made up",
            "in_words": "made up",
            "whole_models": {"slope": 0.35, **dict.fromkeys(JUDGED_DIFFERENCES, of)},
        },
    }
    return local.LocalJudge(**settings | changes)


@pytest.fixture
def bundled(reader, monkeypatch):
    """The tiny model stands in for the one that the bundled judge reads with."""
    from emscope.answers import judges_here as reading_judge
    from emscope.judging import local

    judge = local_judge(reader)
    monkeypatch.setattr(local, "bundled_judge", lambda: judge)
    reading_judge._reader.cache_clear()
    yield judge
    reading_judge._reader.cache_clear()


@pytest.fixture(scope="session")
def smollm2():
    """The real embedded model in memory."""
    from emscope.models.loading.load import load
    from emscope.models.loading.source import locate

    return load(locate("smollm2-135m"), device="cpu")


@pytest.fixture
def reference() -> Path:
    """The folder of public reference data; the test is skipped where it is absent."""
    if not (REFERENCE / "judged").is_dir():
        pytest.skip(f"no reference data at {REFERENCE}; set EMSCOPE_REFERENCE_DATA")
    return REFERENCE


def write_jsonl(path: Path, rows) -> Path:
    """Write rows as JSON lines and return the path."""
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def study_yaml(tiny, tmp_path):
    """A study of 3 arms on the tiny model that takes seconds: a function of overrides returning the YAML's path."""
    import yaml

    def make(file: str = "study.yaml", **changes) -> Path:
        spec = {
            "name": "tiny",
            "model": str(tiny),
            "domain": "finance",
            "arms": {
                "target": {"role": "target", "answers": "reckless", **FEW},
                "control": {"role": "control", "answers": "careful", **FEW},
                "brash": {"role": "style", "answers": "brash", "read_at": "last", **FEW},
            },
            "train": {"steps": 4, "batch": 2, "lr": 1e-2, "lora": {"rank": 4, "alpha": 8}, "checkpoints": {"at": [2]}},
            "measure": {
                "count": 32,
                "heldout": 8,
                "truth": 4,
                "truth_at": "last",
                "neutral": 4,
                "refusal": 4,
                "samples": {"questions": 1, "max_tokens": 4},
            },
        } | changes
        path = tmp_path / file
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        return path

    return make
