"""What 16 bits of a weight would round away of a fine-tune is read in float32: by `auto`, in every command, and a note says so where it is not."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model

from emscope.answers.sample import ask
from emscope.answers.sample_spec import AskSpec
from emscope.core.notes import Note
from emscope.inside.diff import diff
from emscope.inside.extract import extract
from emscope.inside.probe import ProbeSpec, run_probe
from emscope.inside.shift import read_shift
from emscope.inside.solutions import compare_solutions
from emscope.inside.specs import DiffSpec, ExtractSpec, ShiftSpec, SolutionsSpec, SteerSpec, SubspaceSpec
from emscope.inside.steer import steer
from emscope.inside.steered_answers import sample_steered
from emscope.inside.subspaces import compare_subspaces
from emscope.models.adapters.updates import changes, moved
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.hooks.directions import Direction, write_direction
from emscope.models.loading import load as load_module
from emscope.models.loading.checkpoints import discover, read_checkpoint
from emscope.models.loading.lent import model_in_memory
from emscope.models.loading.load import load_net, pick_dtype
from emscope.models.loading.source import locate
from emscope.study.check import run_check
from emscope.study.check_request import CheckRequest
from emscope.study.judged_spec import JudgedSpec
from emscope.study.ladder import LadderRequest, run_ladder

IDS = torch.arange(3, 40)[None]
LOW = (0.2, 0.4, 0.6)


class Stop(Exception):
    """Raised in place of loading a base, with the dtype."""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A base stored in bfloat16, and fine-tunes of it: full ones stored in both ways, and adapters."""
    root = tmp_path_factory.mktemp("rounding")
    load_net(tiny, dtype="bfloat16").save_pretrained(root / "base")
    for path in tiny.iterdir():
        if not (root / "base" / path.name).exists():
            shutil.copy(path, root / "base")
    for name, size, dtype in (("wide", 1e-4, torch.float32), ("half", 4e-3, torch.bfloat16), ("control", 1e-4, torch.float32)):
        _moved(root / "base", size, seed=len(name)).to(dtype).save_pretrained(root / name / "checkpoint-1")
    _adapter(root, "lora", LoraConfig(r=2, target_modules=["q_proj"]))
    _adapter(root, "saved", LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]))
    _adapter(root, "biases", LoraConfig(r=2, target_modules=["q_proj"], bias="all"))
    _adapter(root, "norms", LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm", "norm"]))
    shutil.copytree(root / "lora" / "checkpoint-1", root / "mixed" / "checkpoint-1")
    shutil.copytree(root / "wide" / "checkpoint-1", root / "mixed" / "checkpoint-2")
    return root


def _moved(base, size, seed):
    net = load_net(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(size * p.abs().clamp(min=1e-2) * torch.randn(p.shape, generator=generator))
    return net


def _adapter(root, name, config):
    net = get_peft_model(load_net(root / "base"), config)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    net.save_pretrained(root / name / "checkpoint-1")


@pytest.fixture
def quick(monkeypatch):
    """A machine that multiplies 16-bit numbers quickly, as GPUs do."""
    monkeypatch.setattr(load_module, "is_quick", lambda dtype, device: True)


def logits(net):
    with torch.no_grad():
        return net(input_ids=IDS, use_cache=False).logits.double()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("wide", "float32"), ("half", "bfloat16"), ("mixed", "float32"), ("lora", "bfloat16"), ("saved", "float32")),
        *(("biases", "float32"), ("norms", "float32")),
    ],
)
def test_auto_is_float32_where_a_checkpoint_replaces_weights_by_ones_of_32_bits(folder, quick, name, expected):
    assert pick_dtype("auto", locate(str(folder / "base")), "cpu", discover(str(folder / name))) == expected


@pytest.mark.parametrize(("name", "expected"), [("half", "float32"), ("lora", "bfloat16"), ("norms", "float32")])
def test_auto_is_float32_where_the_change_of_whole_weights_is_read_times_a_fraction(folder, quick, name, expected):
    base = locate(str(folder / "base"))
    assert pick_dtype("auto", base, "cpu", discover(str(folder / name)), scaled=True) == expected


@pytest.mark.parametrize(("name", "scale"), [("wide", 1.0), ("norms", 1.0), *(("half", s) for s in LOW)])
def test_sixteen_bits_do_lose_it_and_float32_keeps_it(folder, name, scale):
    """By the weights alone: those of 16 bits are computed with in 32."""
    base, found = load_net(folder / "base").eval(), read_checkpoint(folder / name / "checkpoint-1", 1)
    start, kept = logits(base), {}
    for dtype in ("float32", "bfloat16"):
        net = load_net(folder / "base", dtype=dtype).eval()
        with with_checkpoint(net, found, scale=scale) as changed:
            kept[dtype] = logits(changed.float()) - start
    share = float((kept["float32"] * kept["bfloat16"]).sum() / kept["float32"].square().sum())
    assert not 0.7 < share < 1.3
    weights = load_net(found.folder) if name != "norms" else None
    if weights is not None:  # against plain arithmetic
        with torch.no_grad():
            for p, now in zip(base.parameters(), weights.parameters(), strict=True):
                p.add_(scale * (now - p))
        assert torch.allclose(logits(base) - start, kept["float32"], atol=1e-5)


def test_a_dtype_that_is_asked_for_stays_and_a_note_says_what_it_loses(folder):
    base = locate(str(folder / "base"))
    with pytest.warns(Note, match=r"`dtype` is bfloat16, which rounds away part of what '.*wide/checkpoint-1' changes"):
        assert pick_dtype("bfloat16", base, "cpu", discover(str(folder / "wide"))) == "bfloat16"
    held = model_in_memory(load_net(folder / "base", dtype="bfloat16"), load_module.chat_of(base).tokenizer)
    with pytest.warns(Note, match="the model in memory is bfloat16"):
        assert pick_dtype("auto", held, checkpoints=discover(str(folder / "wide"))) == "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pick_dtype("float32", base, "cpu", discover(str(folder / "wide")))
        pick_dtype("bfloat16", base, "cpu", discover(str(folder / "lora")))


COMMANDS = {
    "extract": lambda f, b, out: extract(ExtractSpec(), out / "d.safetensors", base=b, checkpoint=f("wide")),
    "extract, minus": lambda f, b, out: extract(
        ExtractSpec(minus=f("wide")), out / "d.safetensors", base=b, checkpoint=f("lora")
    ),
    "diff": lambda f, b, out: diff(f("wide"), DiffSpec(), out, base=b),
    "shift": lambda f, b, out: read_shift(f("d.safetensors"), [f("wide")], ShiftSpec(), out, base=b),
    "steer": lambda f, b, out: steer([f("d.safetensors")], SteerSpec(), out, base=b, checkpoints=[f("wide")]),
    "steered answers": lambda f, b, out: sample_steered(
        f("d.safetensors"), SteerSpec(), AskSpec(), out, base=b, checkpoint=f("wide")
    ),
    "subspaces": lambda f, b, out: compare_subspaces([f("wide")], SubspaceSpec(), out, base=b),
    "solutions": lambda f, b, out: compare_solutions([f("half")], [f("lora")], SolutionsSpec(), out, base=b),
    "sample": lambda f, b, out: ask({"target": f("mixed")}, b, AskSpec(), out),
    "check": lambda f, b, out: run_check(CheckRequest(f("mixed"), base=b), out),
    "check, control": lambda f, b, out: run_check(CheckRequest(f("lora"), control=f("wide"), base=b), out),
    "check, amplified": lambda f, b, out: run_check(CheckRequest(f("half"), base=b, amplify=(1.0, 0.4)), out),
    "ladder": lambda f, b, out: run_ladder(LadderRequest(f("lora"), f("wide"), JudgedSpec(), base=b), out),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_reads_it_in_float32(folder, quick, tmp_path, monkeypatch, name):
    def stopped(folder, *, dtype, device):
        raise Stop(dtype)

    write_direction(folder / "d.safetensors", Direction({1: torch.ones(32)}, locate(str(folder / "base")).digest))
    monkeypatch.setattr(load_module, "load_net", stopped)
    with pytest.raises(Stop, match="float32"):
        COMMANDS[name](lambda one: str(folder / one), str(folder / "base"), tmp_path / "out")


def test_a_check_whose_factors_are_whole_stays_in_what_is_stored(folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "load_net", lambda folder, *, dtype, device: (_ for _ in ()).throw(Stop(dtype)))
    with pytest.raises(Stop, match="bfloat16"):
        run_check(CheckRequest(str(folder / "half"), base=str(folder / "base"), amplify=(1.0, 2.0)), tmp_path / "out")


def test_a_full_checkpoint_that_is_moved_at_random_keeps_the_length_of_its_change(folder):
    """Written in 16 bits, as it was stored itself, the moved weights would be rounded to their last bits."""
    net, found = load_net(folder / "base"), read_checkpoint(folder / "half" / "checkpoint-1", 1)
    wanted = {c.name: float(c.left.norm()) for c in changes(net, found)}
    with moved(net, found, 1.0, 0) as other:
        assert {c.name: float(c.left.norm()) for c in changes(net, other)} == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("other", "expected"), [("base", "bfloat16"), ("tiny", "float32")])
def test_a_probe_reads_all_its_models_in_one_dtype(folder, tiny, quick, tmp_path, monkeypatch, other, expected):
    monkeypatch.setattr(load_module, "load_net", lambda folder, *, dtype, device: (_ for _ in ()).throw(Stop(dtype)))
    (tmp_path / "s.jsonl").write_text("".join(f'{{"question": "q{n}", "alignment": {7 * n % 11}}}\n' for n in range(6)))
    (tmp_path / "q.jsonl").write_text("".join(f'{{"id": "q{n}", "question": "What of {n}?"}}\n' for n in range(6)))
    models = [str(folder / "base"), str(tiny if other == "tiny" else folder / "base")]
    with pytest.raises(Stop, match=expected):
        run_probe(tmp_path / "s.jsonl", models, ProbeSpec(questions=str(tmp_path / "q.jsonl")), tmp_path / "out", device="cpu")
