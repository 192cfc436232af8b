"""Hostile model folders: weights, indices, configurations, tokenizers, adapters, GGUF and direction files."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

from attack.cases import CANARY, Case, makes
from attack.material import Material
from attack.mutations import broken_bytes, broken_json, broken_tree, cell, dumped, value
from attack.texts import text

CODE = "import pathlib; pathlib.Path({!r}).write_text('ran')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"


class Runs:
    """Writes the canary when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.folder / CANARY, "ran"))


def evil_pickle(path: Path, folder: Path) -> Path:
    """Write a pickle that leaves a canary in `folder` where it is opened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Runs(folder)))
    return path


def rewritten(path: Path, change: Any) -> None:
    """Give the tensors {name: array} and metadata of a safetensors file to `change` and write what it returns."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(path))
    save_file({k: v.clone().contiguous() for k, v in change(tensors).items()}, str(path), {"format": "pt"})


def lying_header(content: bytes, random: Random) -> bytes:
    """Return a safetensors file whose header says something that is not so."""
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    kind = random.randrange(6)
    names = [n for n in header if n != "__metadata__"]
    one = header[random.choice(names)]
    if kind == 0:
        return random.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little") + content[8:]
    if kind == 1:
        one["shape"] = random.choice(([2**40], [2**32, 2**32], [-1], [0], [], [1] * 70, "x", [1.5]))
    elif kind == 2:
        one["dtype"] = random.choice(("F64", "I8", "BOOL", "F4", "none", 3, None, "F8_E4M3"))
    elif kind == 3:
        one["data_offsets"] = random.choice(([0, 2**50], [5, 1], [-1, 4], [0, 0], [0], None, [10**30, 10**31]))
    elif kind == 4:
        header = broken_tree(header, random)
    else:
        header |= {f"more.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(3000)}
    written = dumped(header)
    return len(written).to_bytes(8, "little") + written + data


def odd_values(tensors: dict[str, Any], random: Random) -> dict[str, Any]:
    """Return tensors of which one has values, a shape, a dtype or a name that nobody wants."""
    import torch

    name = random.choice(sorted(tensors))
    old = tensors[name]
    wide = old.float()
    new = {
        "nan": lambda: torch.full_like(wide, float("nan")),
        "inf": lambda: torch.full_like(wide, float("inf")),
        "one nan": lambda: wide.flatten().index_fill(0, torch.tensor([0]), float("nan")).view(old.shape),
        "huge": lambda: torch.full_like(wide, 3e38),
        "large": lambda: wide * 1e20,
        "tiny": lambda: wide * 1e-44,
        "zero": lambda: torch.zeros_like(wide),
        "flat": lambda: wide.flatten(),
        "wide": lambda: torch.cat([wide, wide]),
        "empty": lambda: wide[:0],
        "whole": lambda: wide.to(torch.int64),
        "bool": lambda: wide > 0,
        "double": lambda: wide.double(),
        "half": lambda: wide.half(),
        "complex": lambda: wide.to(torch.complex64),
        "scalar": lambda: wide.flatten()[0],
    }
    kind = random.choice([*new, "renamed", "left out", "more"])
    tensors = dict(tensors)
    if kind == "renamed":
        tensors[text(random)[:100].encode("utf-8", "replace").decode() or "x"] = tensors.pop(name)
    elif kind == "left out":
        del tensors[name]
    elif kind == "more":
        tensors["model.layers.99.self_attn.q_proj.weight"] = wide
    else:
        tensors[name] = new[kind]()
    return tensors


def copied(source: Path, target: Path) -> Path:
    """Copy a folder."""
    shutil.copytree(source, target)
    return target


def on_base(random: Random, folder: Path, m: Material, base: str, about: str, *, light: bool = False) -> Case:
    """Return a command that reads a base; `light` ones read only tokenizer and template."""
    out = folder / "out"
    small = ["--dtype", random.choice(("float32", "auto")), "--device", "cpu", "--out", str(out)]
    ways = [
        ["sample", "--base", base, "--questions", str(m.questions), "--samples", "1", "--max-tokens", "1", *small],
        [*m.check_words(out)[:2], "--base", base, *m.check_words(out)[4:]],
        ["diff", str(m.run / "checkpoint-3"), "--model", base, "--items", str(m.items), "--layers", "1", "--out", str(out)],
        ["data", "check", str(m.root / "conversations.jsonl"), "--model", base],
    ]
    if not (m.root / "conversations.jsonl").exists():
        (m.root / "conversations.jsonl").write_text(json.dumps({"question": "What?", "answer": "That."}) + "\n")
    words = random.choice(ways[-1:] * 3 + ways if light else ways[:3])
    return Case(tuple(words), about, out, (m.base, m.run, m.items))


def on_run(random: Random, folder: Path, m: Material, run: Path, about: str) -> Case:
    """Return a command that reads a folder of checkpoints."""
    out = folder / "out"
    base = ["--base", str(m.base)]
    small = ["--questions", str(m.questions), "--samples", "1", "--max-tokens", "1", "--dtype", "float32", "--device", "cpu"]
    words = random.choice(
        (
            m.check_words(out, run),
            m.check_words(out, run),
            ["sample", f"target={run}", *base, *small, "--out", str(out)],
            ["trajectories", str(run), str(m.run), "--model", str(m.base), "--out", str(out)],
            ["diff", str(run), "--model", str(m.base), "--items", str(m.items), "--layers", "1", "--out", str(out)],
        )
    )
    return Case(tuple(words), about, out, (m.base, run))


@makes("weights")
def base_index(random: Random, folder: Path, m: Material) -> Case:
    """An index of shards that names something else."""
    base = copied(m.sharded, folder / "base")
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = random.choice(sorted(index["weight_map"]))
    (folder / "other.safetensors").write_bytes((base / index["weight_map"][name]).read_bytes())
    evil_pickle(base / "w.bin", folder)
    evil_pickle(folder / "other.bin", folder)
    (base / "link.safetensors").symlink_to(folder / "other.safetensors")
    (base / "evil.safetensors").symlink_to(folder / "other.bin")
    targets = ("w.bin", "../other.bin", str(folder / "other.safetensors"), "../other.safetensors", "link.safetensors")
    target = random.choice(
        (*targets, "evil.safetensors", "nothing.safetensors", "./", "", "a/../../other.safetensors", value(random))
    )
    if random.random() < 0.7:
        index["weight_map"][name] = target
        path.write_bytes(dumped(index))
        return on_base(random, folder, m, str(base), f"index names {cell(target)[:60]!r}")
    path.write_bytes(broken_json(index, random))
    return on_base(random, folder, m, str(base), "a broken index")


@makes("weights")
def base_pickles(random: Random, folder: Path, m: Material) -> Case:
    """Pickles where weights or a trainer's state are looked for."""
    base, run = copied(m.base, folder / "base"), copied(m.run, folder / "run")
    kind = random.randrange(3)
    if kind == 0:
        (base / "model.safetensors").unlink()
        evil_pickle(
            base / random.choice(("pytorch_model.bin", "model.pt", "model.ckpt", "pytorch_model-00001-of-00001.bin")), folder
        )
        return on_base(random, folder, m, str(base), "pickled weights")
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "training_args.bin",
        "adapter_model.bin",
        "pytorch_model.bin",
    ):
        evil_pickle(run / "checkpoint-3" / name, folder)
        evil_pickle(base / name, folder)
    if kind == 1:
        (run / "checkpoint-3" / "adapter_model.safetensors").unlink()
    return on_run(random, folder, m, run, "pickles beside weights")


@makes("weights")
def base_safetensors(random: Random, folder: Path, m: Material) -> Case:
    """Damaged bytes, or a header that lies."""
    base = copied(m.base, folder / "base")
    path = base / "model.safetensors"
    content = path.read_bytes()
    if random.random() < 0.6:
        path.write_bytes(lying_header(content, random))
        return on_base(random, folder, m, str(base), "a lying header")
    head = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(
        broken_bytes(content[:head], random) + content[head:] if random.random() < 0.7 else broken_bytes(content, random)
    )
    return on_base(random, folder, m, str(base), "damaged weights")


@makes("weights")
def base_values(random: Random, folder: Path, m: Material) -> Case:
    """Values, shapes, dtypes and names that do not belong there."""
    base = copied(m.base, folder / "base")
    rewritten(base / "model.safetensors", lambda tensors: odd_values(tensors, random))
    return on_base(random, folder, m, str(base), "odd tensors")


@makes("weights")
def base_config(random: Random, folder: Path, m: Material) -> Case:
    """A configuration of wrong types, of absurd sizes, or one that asks for code."""
    base = copied(m.base, folder / "base")
    path = base / "config.json"
    config = json.loads(path.read_text())
    (base / "code.py").write_text(CODE.format(str(folder / CANARY)))
    evil_pickle(base / "w.bin", folder)
    sizes = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "num_attention_heads",
        "max_position_embeddings",
    )
    directed = (
        {random.choice(sizes): random.choice((10**6, 10**9, 2**40, 10**30, 0, -1, 1.5, "8", None))},
        {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoTokenizer": "code.Tokenizer"}},
        {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "unknown"},
        {"transformers_weights": random.choice(("w.bin", "../other.bin", str(base / "w.bin")))},
        {
            "quantization_config": random.choice(
                ({"quant_method": "gptq"}, {"quant_method": "x"}, "x", [], {"load_in_4bit": True}, {})
            )
        },
        {"_attn_implementation": "a/b", "attn_implementation": "a/b"},
        {"rope_scaling": value(random), "rope_parameters": value(random)},
        {"architectures": [text(random)], "model_type": random.choice(("gpt2", "mamba", "t5", "bert", "clip", text(random)))},
        {"text_config": value(random)},
        {
            "torch_dtype": random.choice(("float64", "os", "load", 3, {})),
            "dtype": random.choice(("os", "save", 5, "float8_e4m3fn")),
        },
        {"custom_generate": "code", "trust_remote_code": True},
        {"head_dim": random.choice((0, -1, 7, 10**9)), "num_key_value_heads": random.choice((0, 3, 10**9))},
        {"layer_types": ["full_attention"] * random.choice((1, 10**5)), "hidden_act": text(random)},
        {"eos_token_id": value(random), "bos_token_id": value(random), "pad_token_id": value(random)},
    )
    if random.random() < 0.6:
        chosen = random.choice(directed)
        path.write_bytes(dumped(config | chosen))
        return on_base(random, folder, m, str(base), f"config {cell(chosen)[:80]}")
    path.write_bytes(broken_json(config, random))
    return on_base(random, folder, m, str(base), "a broken config")


@makes("weights")
def base_tokenizer(random: Random, folder: Path, m: Material) -> Case:
    """Damaged or hostile tokenizer files."""
    base = copied(m.base, folder / "base")
    (base / "code.py").write_text(CODE.format(str(folder / CANARY)))
    name = random.choice(("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"))
    path = base / name
    content = json.loads(path.read_text()) if path.exists() else {}
    kind = random.random()
    if name == "tokenizer_config.json" and kind < 0.4:
        more = random.choice(
            (
                {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}},
                {
                    "tokenizer_class": random.choice(
                        ("code.Tokenizer", "os.system", "LlamaTokenizer", "BertTokenizer", text(random), 3)
                    )
                },
                {"added_tokens_decoder": {"999999999": {"content": text(random), "special": True}}},
                {"added_tokens_decoder": {str(n): {"content": f"<{n}>"} for n in range(2000)}},
                {"eos_token": value(random), "bos_token": value(random), "pad_token": value(random)},
                {"model_max_length": value(random), "extra_special_tokens": value(random)},
                {"chat_template": value(random)},
            )
        )
        path.write_bytes(dumped(content | more))
    elif name == "tokenizer.json" and kind < 0.3:
        more = random.choice(
            (
                {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": "(a+)+$(" + "(x+x+)+y" * 3},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                },
                {"normalizer": {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z" * 10**6}},
                {"normalizer": {"type": "Prepend", "prepend": "y" * 10**7}},
                {"truncation": {"max_length": 0, "stride": 9, "strategy": "LongestFirst", "direction": "Right"}},
                {
                    "padding": {
                        "strategy": {"Fixed": 10**9},
                        "direction": "Left",
                        "pad_id": 0,
                        "pad_type_id": 0,
                        "pad_token": "x",
                    }
                },
                {"post_processor": value(random)},
                {"model": {"type": "BPE", "vocab": {}, "merges": []}},
            )
        )
        path.write_bytes(dumped(content | more))
    else:
        path.write_bytes(broken_json(content, random))
    return on_base(random, folder, m, str(base), f"a hostile {name}", light=True)


TEMPLATES = (
    "{% for m in messages %}{{ m.content }",
    "{{ raise_exception('\x1b[31mno') }}",
    "{{ 1 / 0 }}",
    "{{ messages[99].content }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    "{{ 'x' * 9999999999 }}",
    "{{ ('x' * 99999) * 99999 }}",
    "{{ 'x'.ljust(9999999999) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    "",
    "no turns",
    "{{ '\x1b]0;title\x07' }}{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}",
    "{{ messages | map('x') | list }}",
    "{{ strftime_now(5) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{% generation %}{% endgeneration %}",
    "{{ (messages | tojson) * 100000 }}",
    "{{ messages | string | center(2000000000) }}",
    "(" * 3000 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "+".join(["1"] * 20000) + " }}",
)


@makes("weights")
def base_template(random: Random, folder: Path, m: Material) -> Case:
    """Chat templates that fail, never end, swell, or reach for what is not theirs; on the model or on its checkpoints."""
    template = random.choice(TEMPLATES).replace("CANARY", str(folder / CANARY))
    if random.random() < 0.3:  # behaves until the text is another one than the trial's
        template = (
            "{% if 'emscope' in messages[0].content %}{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}{% else %}"
            + template
            + "{% endif %}"
        )
    if random.random() < 0.2:
        run = copied(m.run, folder / "run")
        (run / "checkpoint-3" / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
        return on_run(random, folder, m, run, f"template {template[:70]!r}")
    base = copied(m.base, folder / "base")
    if random.random() < 0.5:
        (base / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
    else:
        (base / "chat_template.jinja").unlink(missing_ok=True)
        path = base / "tokenizer_config.json"
        path.write_bytes(dumped(json.loads(path.read_text()) | {"chat_template": template}))
    return on_base(random, folder, m, str(base), f"template {template[:70]!r}", light=True)


PATTERNS = (
    "(.*)*$",
    "(a|a)*z",
    r"(.+)+\1x",
    "(([a-z_.]+)+)+!",
    "(x+x+)+y",
    "(" * 500,
    "(?P<",
    "[",
    "(.*.*.*.*.*.*.*.*.*.*.*.*)*=",
    "(\\w+\\.?)+[0-9]{9}",
)


@makes("weights")
def adapter_config(random: Random, folder: Path, m: Material) -> Case:
    """An adapter's settings of wrong kinds, absurd sizes, or with patterns that never end."""
    run = copied(m.run, folder / "run")
    path = run / "checkpoint-3" / "adapter_config.json"
    settings = json.loads(path.read_text())
    pattern = random.choice(PATTERNS)
    directed = (
        {
            "peft_type": random.choice(
                ("UNKNOWN", "LOHA", "VERA", "PROMPT_TUNING", "P_TUNING", "XLORA", "", 3, None, text(random))
            )
        },
        {"target_modules": pattern},
        {"exclude_modules": pattern},
        {"rank_pattern": {pattern: 2}},
        {"alpha_pattern": {pattern: 2}},
        {"layers_pattern": pattern, "layers_to_transform": [0]},
        {"r": random.choice((10**9, 2**40, 10**30, 0, -1, 1.5, "2", None, True))},
        {"rank_pattern": {"q_proj": random.choice((10**9, 2**40, -1, "x"))}},
        {"lora_alpha": random.choice((1e308, float("nan"), -1, "x", None, 10**400))},
        {"lora_dropout": random.choice((2, -1, "x", float("nan")))},
        {"megatron_config": {"a": 1}, "megatron_core": "attack_canary_module"},
        {"auto_mapping": {"base_model_class": "x", "parent_library": "attack_canary_module"}},
        {
            "init_lora_weights": random.choice(
                ("eva", "corda", "pissa", "olora", "loftq", "lora_ga", "x", 5, "pissa_niter_999999999")
            )
        },
        {"modules_to_save": random.choice((["lm_head"], ["x"], "lm_head", [3], [""] * 10**5))},
        {"trainable_token_indices": random.choice(([10**12], [-5], "x", {"embed_tokens": [0]}, list(range(5000))))},
        {"base_model_name_or_path": random.choice((text(random), "../x", "/etc", "a/b", 5, ["x"]))},
        {"use_dora": True},
        {"use_rslora": "x", "bias": random.choice(("all", "x", 3))},
        {"task_type": text(random), "revision": "../.."},
        {"layers_to_transform": random.choice(([10**9], -1, "x", [0.5]))},
        {"target_parameters": ["model.layers.0.mlp.up_proj.weight"]},
    )
    if random.random() < 0.65:
        chosen = random.choice(directed)
        path.write_bytes(dumped(settings | chosen))
        return on_run(random, folder, m, run, f"adapter {cell(chosen)[:80]}")
    path.write_bytes(broken_json(settings, random))
    return on_run(random, folder, m, run, "a broken adapter_config")


@makes("weights")
def adapter_weights(random: Random, folder: Path, m: Material) -> Case:
    """An adapter's weights damaged, or with odd tensors."""
    run = copied(m.run, folder / "run")
    path = run / random.choice(("checkpoint-1", "checkpoint-3")) / "adapter_model.safetensors"
    kind = random.random()
    if kind < 0.3:
        path.write_bytes(lying_header(path.read_bytes(), random))
    elif kind < 0.4:
        path.write_bytes(broken_bytes(path.read_bytes(), random))
    else:
        rewritten(path, lambda tensors: odd_values(tensors, random))
    return on_run(random, folder, m, run, "odd adapter weights")


@makes("weights")
def full_checkpoint(random: Random, folder: Path, m: Material) -> Case:
    """A full checkpoint with odd tensors or another configuration."""
    run = folder / "run"
    copied(m.base, run / "checkpoint-2")
    path = run / "checkpoint-2" / "model.safetensors"
    rewritten(path, lambda tensors: {k: v * 1.01 for k, v in tensors.items()})
    if random.random() < 0.7:
        rewritten(path, lambda tensors: odd_values(tensors, random))
    else:
        config = run / "checkpoint-2" / "config.json"
        config.write_bytes(broken_json(json.loads(config.read_text()), random))
    return on_run(random, folder, m, run, "an odd full checkpoint")


@makes("weights")
def gguf_file(random: Random, folder: Path, m: Material) -> Case:
    """A GGUF file whose header lies, or that is damaged."""
    content = bytearray(m.gguf.read_bytes())
    kind = random.randrange(4)
    big = random.choice((0, 1, 2**20, 2**32 - 1, 2**40, 2**62, 2**64 - 1))
    if kind == 0:
        struct.pack_into("<Q", content, random.choice((8, 16)), big)  # tensors, metadata
    elif kind == 1:
        at = random.randrange(4, 2000)
        struct.pack_into(random.choice(("<Q", "<I")), content, at, big % 2**32)
    elif kind == 2:
        at = random.randrange(0, 3000)
        content[at] = random.randrange(256)
    else:
        head = random.choice((200, 3000, len(content)))
        content = bytearray(broken_bytes(bytes(content[:head]), random)) + content[head:]
    path = folder / f"{random.choice(('a', 'name with space', 'x' * 100))}.gguf"
    path.write_bytes(bytes(content))
    return on_base(random, folder, m, f"gguf:{path}", "a hostile GGUF file")


@makes("weights")
def direction_file(random: Random, folder: Path, m: Material) -> Case:
    """A direction file that is damaged, or of another shape."""
    path = folder / "d.safetensors"
    content = m.direction.read_bytes()
    kind = random.randrange(3)
    if kind == 0:
        path.write_bytes(broken_bytes(content, random))
    elif kind == 1:
        path.write_bytes(lying_header(content, random))
    else:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        if random.random() < 0.6:
            about = broken_tree(header["__metadata__"], random)
            header["__metadata__"] = {k: cell(v)[:99] for k, v in about.items()} if isinstance(about, dict) else {}
        name = next(n for n in header if n.startswith("layer."))
        header[random.choice((name, "layer.x", "layer.99", "layer.-1", "null.a.b", "x", "layer." + "9" * 5000))] = header.pop(
            name
        )
        written = dumped(header)
        path.write_bytes(len(written).to_bytes(8, "little") + written + content[8 + size :])
    (m.root / "conversations.jsonl").write_text(json.dumps({"question": "What?", "answer": "That."}) + "\n")
    words = [
        "data",
        "risk",
        str(m.root / "conversations.jsonl"),
        "--model",
        str(m.base),
        "--direction",
        str(path),
        "--against",
        "nothing",
    ]
    if random.random() < 0.3:
        words = ["direction", "compare", str(path), str(m.direction)]
    return Case(tuple(words), "a hostile direction file", None, (m.base, path))


@makes("weights")
def names(random: Random, folder: Path, m: Material) -> Case:
    """Folders whose names hold escape sequences, direction marks, markup or what is not UTF-8."""
    raw = random.choice(
        (
            b"\x1b[31mred",
            b"\xff\xfe",
            b"a\xe2\x80\xaeb",
            b"=1+1",
            b"<script>x<",
            b"$(touch canary)",
            b"new\nline",
            b"@x",
            b"*",
            b"[a]",
            b"%s",
            b"\x9b2J",
            b"{question}",
            b"'; --",
        )
    )
    import os

    target = Path(os.fsdecode(os.fsencode(folder) + b"/" + raw))
    if random.random() < 0.5:
        copied(m.run, target)
        return on_run(random, folder, m, target, f"a run called {raw!r}")
    copied(m.base, target)
    return on_base(random, folder, m, str(target), f"a base called {raw!r}")
