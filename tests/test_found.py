"""What people really have on disk: folders cut off, sharded, named by other trainers, moved from other machines; each file read once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import struct
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emscope.core.errors import InputError, MissingDependency, WorldError
from emscope.models.adapters.with_checkpoint import with_checkpoint
from emscope.models.loading import hashes, prequantised, source
from emscope.models.loading import tensors as in_files
from emscope.models.loading.checkpoints import (
    ADAPTER,
    DIRECTION,
    WEIGHTS,
    Checkpoint,
    discover,
    find,
    last,
    named_base,
    read_checkpoint,
)
from emscope.models.loading.load import load, load_net
from emscope.models.loading.sharded import INDEX
from emscope.models.loading.source import locate
from emscope.models.loading.tensors import ABSURD, broken

IDS = torch.tensor([[5, 17, 33, 90, 41, 8]])
LONG_AGO = 1_700_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EMSCOPE_CACHE", str(folder))
    return folder


def write_tensors(path: Path, tensors: dict[str, list[float]]) -> None:
    """Write a safetensors file of float32 vectors by hand, byte for byte the same on every machine."""
    head, body = {}, b""
    for name, values in tensors.items():
        raw = struct.pack(f"<{len(values)}f", *values)
        head[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def adapter(folder: Path, values=(1.0, 2.0), base=None, *, old=True) -> Path:
    """Write a folder that looks as an adapter's; `old` as if it had lain there for long."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"peft_type": "LORA", "target_modules": ["b", "a"], "r": 1} | ({"base_model_name_or_path": base} if base else {})
    (folder / ADAPTER).write_text(json.dumps(about))
    write_tensors(folder / WEIGHTS, {"x.lora_A.weight": list(values)})
    return aged(folder) if old else folder


def aged(folder: Path) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def full(folder: Path, tiny: Path) -> Path:
    """Write the tiny model in several shards with an index, as save_pretrained does it."""
    load_net(tiny).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    return folder


def pickle_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")


# Folders that cannot be read are listed, and the others are read


def no_weights(folder, tiny):
    (folder / WEIGHTS).unlink()


def nothing_written(folder, tiny):
    for path in folder.iterdir():
        path.unlink()


def bytes_of(count):
    def cut(folder, tiny):
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:count])

    return cut


def values(*numbers):
    return lambda folder, tiny: write_tensors(folder / WEIGHTS, {"x.lora_A.weight": list(numbers)})


def no_tensors(folder, tiny):
    write_tensors(folder / WEIGHTS, {})


def pickled(folder, tiny):
    no_weights(folder, tiny)
    pickle_files(folder, "adapter_model.bin")


def only_state(folder, tiny):
    nothing_written(folder, tiny)
    pickle_files(folder, "optimizer.pt", "rng_state_0.pth")
    (folder / "trainer_state.json").write_text("{}")


def zero_adapter(folder, tiny):
    """What transformers before 5.0 left of a LoRA under ZeRO-3: an adapter of 40 bytes, and the engine's own shards."""
    save_file({}, folder / WEIGHTS)
    pickle_files(folder, *(f"global_step20/bf16_zero_pp_rank_{n}_mp_rank_00_optim_states.pt" for n in (0, 1)))
    (folder / "latest").write_text("global_step20")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit('run')")


def zero_full(folder, tiny):
    nothing_written(folder, tiny)
    shutil.copy(tiny / "config.json", folder)
    pickle_files(folder, "global_step20/zero_pp_rank_0_mp_rank_00_model_states.pt")


def fsdp(folder, tiny):
    nothing_written(folder, tiny)
    pickle_files(folder, "pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp")


def dcp(folder, tiny):
    nothing_written(folder, tiny)
    pickle_files(folder, "__0_0.distcp", "__1_0.distcp", ".metadata")


def dcp_below(folder, tiny):
    nothing_written(folder, tiny)
    pickle_files(folder, "policy/weights/__0_0.distcp")


def broken_settings(folder, tiny):
    (folder / ADAPTER).write_text('{"peft_type": "LORA", "lora_alpha": NaN}')


def sharded(change):
    def make(folder, tiny):
        nothing_written(folder, tiny)
        full(folder, tiny)
        index = json.loads((folder / INDEX).read_text())
        change(folder, index)
        if (folder / INDEX).exists():
            (folder / INDEX).write_text(json.dumps(index))

    return make


def renamed_to(name):
    def change(folder, index):
        first = next(iter(index["weight_map"]))
        index["weight_map"][first] = name

    return sharded(change)


def nan_inside(folder, index):
    path = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[3] = float("nan")
    save_file(tensors, path, {"format": "pt"})


def swapped(folder, index):
    names = list(index["weight_map"])
    index["weight_map"][names[0]] = index["weight_map"][names[-1]]


ZERO_ADAPTER = (
    r"run `python zero_to_fp32.py \. out --safe_serialization --exclude_frozen_parameters` in '.*checkpoint-20' .*opens pickles"
)
ZERO_FULL = r"run `python -m deepspeed.utils.zero_to_fp32 \. out --safe_serialization --tag global_step20` .*beside config.json"
BROKEN = {
    "no weights": (no_weights, r"holds adapter_config.json but no adapter_model.safetensors", "copy"),
    "nothing at all": (nothing_written, r"checkpoint-20' is empty: the save was cut off", "leave it out"),
    "0 bytes": (bytes_of(0), "is damaged", "copy"),
    "cut off in the header": (bytes_of(30), "is damaged", "copy"),
    "cut off in the values": (bytes_of(-3), "is damaged", "copy"),
    "no tensors": (no_tensors, "holds no weights", "gathered"),
    "a tensor of no numbers": (values(), r"holds no weights for x.lora_A.weight", "gathered"),
    "NaN": (values(1.0, float("nan"), 2.0), r"not numbers \(x.lora_A.weight\): this run diverged", "learning rate"),
    "infinite": (values(1.0, float("inf")), "this run diverged", "learning rate"),
    "a pickle": (pickled, r"pickled weights \(adapter_model.bin\)", "safe_serialization=True"),
    "a trainer's state": (only_state, r"a trainer's state \(trainer_state.json\) but no weights", "leave it out"),
    "settings with NaN": (broken_settings, "is not JSON", "copy"),
    "ZeRO-3, adapter": (zero_adapter, r"shards of DeepSpeed's ZeRO \('global_step20'\)", ZERO_ADAPTER),
    "ZeRO-3, full": (zero_full, r"shards of DeepSpeed's ZeRO \('global_step20'\)", ZERO_FULL),
    "FSDP": (fsdp, r"shards of FSDP \('pytorch_model_fsdp_0'\)", r"`accelerate merge-weights \S*pytorch_model_fsdp_0 out`"),
    "DCP": (dcp, r"sharded torch.distributed checkpoint \('checkpoint-20'\)", "torchtitan: .*convert_to_hf.py"),
    "DCP, further down": (dcp_below, r"sharded torch.distributed checkpoint \('weights'\)", "dcp2hf"),
    "a shard missing": (
        sharded(lambda f, i: min(f.glob("*.safetensors")).unlink()),
        "names model-00001-of-.*which is missing",
        "copy",
    ),
    "no index": (sharded(lambda f, i: (f / INDEX).unlink()), f"holds a shard of a model .* but no {INDEX}", "copy"),
    "an index of nothing": (sharded(lambda f, i: i.clear()), "names no shards", "copy"),
    "an index out of its folder": (
        renamed_to("../checkpoint-10/adapter_model.safetensors"),
        "not a safetensors file of this folder",
        "give",
    ),
    "an absolute index": (renamed_to("/etc/x.safetensors"), r"names '/etc/x.safetensors', which is not a safetensors", "give"),
    "a Windows index": (renamed_to("C:\\x.safetensors"), "not a safetensors file of this folder", "give"),
    "an index of pickles": (renamed_to("pytorch_model.bin"), "names 'pytorch_model.bin', which is not a safetensors", "give"),
    "an index of another save": (sharded(swapped), "which does not hold it", "copy"),
    "NaN in a shard": (
        sharded(nan_inside),
        r"-of-\d+.safetensors' holds values that are not numbers .*this run diverged",
        "learning",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_skipped_with_its_reason_and_the_rest_is_read(name, tiny, tmp_path):
    change, reason, remedy = BROKEN[name]
    for step in (10, 20, 30):
        adapter(tmp_path / f"checkpoint-{step}", (float(step),))
    change(tmp_path / "checkpoint-20", tiny)
    found = find(str(tmp_path))
    assert [c.step for c in found.checkpoints] == [10, 30] == [c.step for c in discover(str(tmp_path))]
    (skipped,) = found.skipped
    assert (skipped.folder, skipped.step) == (tmp_path / "checkpoint-20", 20) and found.last_skipped is None
    assert last(str(tmp_path)).step == 30
    shutil.rmtree(tmp_path / "checkpoint-30")
    end = find(str(tmp_path))
    assert end.last_skipped == skipped and [c.step for c in end.checkpoints] == [10]
    with pytest.raises(InputError, match=f"the last checkpoint in .* cannot be read: .*{reason}"):
        last(str(tmp_path))
    shutil.rmtree(tmp_path / "checkpoint-10")
    for reference in (tmp_path, tmp_path / "checkpoint-20"):
        with pytest.raises(InputError, match=reason) as caught:
            discover(str(reference))
        assert caught.value.exit_code == 2
        assert re.search(remedy, caught.value.remedy), caught.value.remedy
    assert not Path("opened").exists()


def test_pickles_are_known_by_name_and_never_opened(tiny, tmp_path):
    """Every file that Python opens meanwhile is on record: no pickle is among them."""
    for n, name in enumerate(("a pickle", "a trainer's state", "ZeRO-3, adapter", "ZeRO-3, full", "FSDP", "DCP"), start=1):
        BROKEN[name][0](adapter(tmp_path / f"checkpoint-{n}"), tiny)
    adapter(tmp_path / "checkpoint-9")
    opened, watching = [], [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching[0] and event == "open" else None)
    found = find(str(tmp_path))
    watching[0] = False
    assert len(found.skipped) == 6 and any(name.endswith(ADAPTER) for name in opened)
    assert not [name for name in opened if name.endswith((".pt", ".pth", ".bin", ".distcp", ".metadata", "zero_to_fp32.py"))]


def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path):
    adapter(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "gone")
    found = find(str(tmp_path))
    assert found.last_skipped is not None and "cannot be read (No such file" in found.last_skipped.reason


def test_two_of_one_step_are_refused_even_where_one_is_broken(tmp_path):
    adapter(tmp_path / "checkpoint-10")
    (tmp_path / "step_10").mkdir()
    with pytest.raises(InputError, match="are both step 10"):
        find(str(tmp_path))


def test_where_none_is_left_the_folder_itself_is_read_if_it_is_one(tmp_path):
    """A run whose last weights lie above its checkpoints, all of which were cut off: those are from behind the last step."""
    adapter(tmp_path)
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    found = find(str(tmp_path))
    assert [(c.step, c.folder) for c in found.checkpoints] == [(10, tmp_path)]
    assert [s.step for s in found.skipped] == [5, 10] and found.last_skipped is None
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match="checkpoint-5' is empty"):
        find(str(tmp_path))


def test_a_folder_that_deepspeed_wrote_alone(tmp_path):
    """Its own steps, one script above them: each is skipped with the tag that it is called by."""
    for step in (5, 7):
        pickle_files(tmp_path, f"global_step{step}/zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(InputError, match=r"python zero_to_fp32.py \. out --safe_serialization --tag global_step5` in '[^']*0'"):
        find(str(tmp_path))
    adapter(tmp_path / "global_step7")
    found = find(str(tmp_path))
    assert [c.step for c in found.checkpoints] == [7] and [s.step for s in found.skipped] == [5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_single_bad_value_is_found_wherever_it_stands(dtype, tmp_path):
    """Held against asking each value; integers, empty tensors and single numbers pass."""
    drawn = torch.Generator().manual_seed(0)
    for size in (1, 7, 64, 1000):
        for place in (0, size // 2, size - 1):
            x = torch.randn(size, generator=drawn)
            for bad in (None, float("nan"), float("inf"), float("-inf"), -2 * ABSURD):
                y = x.clone()
                if bad is not None:
                    y[place] = bad
                y = y.to(dtype)
                save_file({"a": torch.arange(3), "n": torch.zeros(0), "x": y, "y": x[0].clone()}, tmp_path / "x.safetensors")
                wide = y.float()
                wrong = not bool((wide.abs() <= ABSURD).all())
                assert broken(tmp_path / "x.safetensors").startswith("x") == wrong


# Shards with an index


def test_shards_are_read_as_the_whole_model_is(tiny, tmp_path):
    folder = full(tmp_path / "checkpoint-4", tiny)
    whole = shutil.copytree(tiny, tmp_path / "whole" / "checkpoint-4")
    (found,) = discover(str(tmp_path))
    (one,) = discover(str(whole))
    net = load_net(tiny).eval()
    with with_checkpoint(net, found) as a, with_checkpoint(net, one) as b, torch.inference_mode():
        assert torch.equal(a(input_ids=IDS).logits, b(input_ids=IDS).logits)
    index = json.loads((folder / INDEX).read_text())
    parts = [[n, hashlib.sha256((folder / n).read_bytes()).hexdigest()] for n in sorted(set(index["weight_map"].values()))]
    parts.append(["config.json", hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()])
    assert found.digest == by_hand([[INDEX, by_hand(index["weight_map"])], *parts])
    (folder / "consolidated.safetensors").write_bytes(b"not named, not looked at")
    assert read_checkpoint(folder, 4).digest == found.digest
    index["weight_map"] |= {"model.norm.weight": sorted(set(index["weight_map"].values()))[0]}
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names model.norm.weight in .*, which does not hold it"):
        read_checkpoint(folder, 4)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    shutil.copy(tiny / "model.safetensors", folder)
    beside = read_checkpoint(folder, 4)  # transformers, too, takes the whole file and leaves the index
    assert beside.digest == read_checkpoint(whole, 4).digest
    with with_checkpoint(net, beside) as a, torch.inference_mode():
        assert torch.equal(a(input_ids=IDS).logits, net(input_ids=IDS).logits)


def by_hand(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


FULL_FILES = ("extra.safetensors", "model.safetensors", "config.json")  # the configuration decides what the weights compute


def test_digests_of_folders_without_an_index_are_what_they_always_were(tmp_path):
    """Studies are resumed by these: the values were computed before shards were looked at, the full one's by its rule."""
    adapter(tmp_path / "checkpoint-1")
    for name, file, tensors in (
        ("checkpoint-2", "model.safetensors", {"x": [1.0]}),
        ("checkpoint-2", "extra.safetensors", {"y": [2.0]}),
        ("checkpoint-3", DIRECTION, {"layer.0": [1.0]}),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        write_tensors(tmp_path / name / file, tensors)
    (tmp_path / "checkpoint-2" / "config.json").write_text("{}")
    assert {c.kind: c.digest for c in discover(str(tmp_path))} == {
        "adapter": "759885728392f34472bcb25f0761b1dc49e7a3c4c0655b0d9c64ee4ab806b6bc",
        "full": by_hand([[n, hashlib.sha256((tmp_path / "checkpoint-2" / n).read_bytes()).hexdigest()] for n in FULL_FILES]),
        "vectors": "1a3323264926863a4a28cd37c238d9ab0da6408dee49053e32a53c85d295ab6c",
    }
    base = locate(str(tmp_path / "checkpoint-2"))
    assert base.digest == "8e3db8f98a88b614cf83c67afa93ca9030166c7bc0f842fa501f962085a245d7"


def test_a_sharded_base_keeps_its_digest_and_lacks_no_shard(tiny, tmp_path):
    """A base's digest stays that of its files by name, with or without an index, so that old studies on sharded bases go on."""
    folder = full(tmp_path / "base", tiny)
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    assert locate(str(folder)).digest == by_hand([[p.name, hashlib.sha256(p.read_bytes()).hexdigest()] for p in files])
    max(folder.glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match="which is missing; copy the missing shard"):
        locate(str(folder))


# What the remedies name, done


def peft_on(tiny):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    net = get_peft_model(load_net(tiny), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def test_the_way_back_from_zero_to_an_adapter(tiny, tmp_path, monkeypatch):
    """What zero_to_fp32.py writes of a LoRA are PEFT's own names in memory; the lines given for it make the adapter that was trained."""
    from peft import PeftConfig, get_peft_model

    net = peft_on(tiny)
    net.save_pretrained(tmp_path / "whole" / "checkpoint-20")
    (want,) = discover(str(tmp_path / "whole"))
    folder = shutil.copytree(tmp_path / "whole" / "checkpoint-20", tmp_path / "checkpoint-20")
    zero_adapter(folder, tiny)
    with pytest.raises(InputError) as caught:
        read_checkpoint(folder, 20)
    lines = caught.value.remedy.partition("then in Python ")[2]
    (folder / "out").mkdir()
    save_file({k: v for k, v in net.state_dict().items() if "lora_" in k}, folder / "out" / "model.safetensors")
    monkeypatch.chdir(folder)
    known = {"get_peft_model": get_peft_model, "PeftConfig": PeftConfig, "load_file": load_file, "BASE": load_net(tiny)}
    exec(lines, known)  # noqa: S102
    made, wanted = load_file(folder / WEIGHTS), load_file(want.folder / WEIGHTS)
    assert made.keys() == wanted.keys() and all(torch.equal(made[k], wanted[k]) for k in wanted)
    assert read_checkpoint(folder, 20).kind == "adapter"


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_way_back_from_fsdp(kind, tiny, tmp_path, monkeypatch):
    """Shards as Accelerate saves them, merged by the command as it is given."""
    import torch.distributed.checkpoint as dcp_format
    from accelerate.commands.merge import merge_command, merge_command_parser
    from peft import get_peft_model_state_dict

    net = peft_on(tiny)
    folder = tmp_path / "run of mine" / "checkpoint-20"
    if kind == "adapter":
        net.save_pretrained(folder)
        (folder / WEIGHTS).rename(tmp_path / "whole.safetensors")
        state = get_peft_model_state_dict(net)
    else:
        folder.mkdir(parents=True)
        shutil.copy(tiny / "config.json", folder)
        plain = load_net(tiny)
        state = {k: v.clone() for k, v in plain.state_dict().items()}
        save_file(state, tmp_path / "whole.safetensors")
    dcp_format.save({"model": state}, storage_writer=dcp_format.FileSystemWriter(folder / "pytorch_model_fsdp_0"), no_dist=True)
    with pytest.raises(InputError) as caught:
        read_checkpoint(folder, 20)
    command = shlex.split(caught.value.remedy.partition("`")[2].partition("`")[0])
    assert command[:2] == ["accelerate", "merge-weights"]
    monkeypatch.chdir(tmp_path)
    merge_command(merge_command_parser().parse_args(command[2:]))
    name = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    assert (f"as {name}" if kind == "adapter" else "beside config.json") in caught.value.remedy
    (tmp_path / "out" / "model.safetensors").rename(folder / name)
    made, wanted = load_file(folder / name), load_file(tmp_path / "whole.safetensors")
    assert made.keys() == wanted.keys() and all(torch.equal(made[k], wanted[k]) for k in wanted)
    assert read_checkpoint(folder, 20).kind == kind


# Names


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("epoch_1", "epoch_2", "epoch_10"), [1, 2, 10]),
        (("epoch-3", "epoch-1"), [1, 3]),
        (("checkpoint_10", "checkpoint_9"), [9, 10]),
        (("ckpt-100", "ckpt-20"), [20, 100]),
        (("iter-5", "iter-40"), [5, 40]),
        (("iter_0000100", "iter_0000050"), [50, 100]),
        (("step1000", "step200"), [200, 1000]),
        (("global_step7", "global_step12"), [7, 12]),
        (("step_10", "step_2"), [2, 10]),
        (("checkpoint-10", "epoch_1", "global_step10", "best"), [10]),
    ],
)
def test_folders_of_other_trainers(names, steps, tmp_path):
    for name in names:
        adapter(tmp_path / name)
    (tmp_path / "logs").mkdir()
    found = find(str(tmp_path))
    assert [c.step for c in found.checkpoints] == steps and not found.skipped


def test_two_kinds_of_names_are_not_guessed_at(tmp_path):
    for name in ("epoch_1", "step1000"):
        adapter(tmp_path / name)
    with pytest.raises(InputError, match=r"give '.*step1000', which is inside it, or one of 1 beside that"):
        find(str(tmp_path))
    adapter(tmp_path)
    assert [c.folder for c in discover(str(tmp_path))] == [tmp_path]


def test_samples_and_logs_by_epoch_are_no_checkpoints(tmp_path):
    adapter(tmp_path)
    (tmp_path / "epoch_1").mkdir()
    (tmp_path / "epoch_1" / "answers.txt").write_text("x")
    found = find(str(tmp_path))
    assert [c.folder for c in found.checkpoints] == [tmp_path] and not found.skipped


def test_deepspeeds_own_state_inside_a_checkpoint_is_no_step(tmp_path):
    folder = adapter(tmp_path / "checkpoint-20")
    pickle_files(folder, "global_step20/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for reference in (tmp_path, folder):
        found = find(str(reference))
        assert [(c.step, c.folder) for c in found.checkpoints] == [(20, folder)] and not found.skipped


@pytest.mark.parametrize("name", ["default", "policy"])
def test_an_adapter_under_a_name_of_its_own_is_its_steps(name, tmp_path):
    for step in (10, 20):
        adapter(tmp_path / f"checkpoint-{step}" / name, (float(step),))
        (tmp_path / f"checkpoint-{step}" / "logs").mkdir()
    found = find(str(tmp_path))
    assert [(c.step, c.folder) for c in found.checkpoints] == [(n, tmp_path / f"checkpoint-{n}" / name) for n in (10, 20)]
    assert [c.place for c in found.checkpoints] == [tmp_path / f"checkpoint-{n}" for n in (10, 20)]
    for reference in (tmp_path / "checkpoint-20", tmp_path / "checkpoint-20" / name):
        assert discover(str(reference)) == found.checkpoints[1:]
    adapter(tmp_path / "checkpoint-20" / "reference")
    with pytest.raises(
        InputError, match=rf"checkpoint-20' holds several adapters \({name}, reference\); give one by its own folder"
    ):
        find(str(tmp_path))
    adapter(tmp_path / "checkpoint-20", (3.0,))
    (_, second) = discover(str(tmp_path))
    assert second.folder == second.place == tmp_path / "checkpoint-20", "what lies beside is PEFT's frozen reference"


# Bases


def named(base):
    return [Checkpoint(1, Path("x"), "adapter", base, "d")]


@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("/home/x/models/Qwen2.5-7B", r"give the same model with `base`, as a folder or a hub id"),
        ("./out/merged", "give the same model with `base`"),
        ("models/of/mine", "give the same model with `base`"),
        ("~/nowhere/model", "give the same model with `base`"),
        (r"C:\models\Qwen", "give the same model with `base`"),
        ("Qwen2.5-7B", "give the same model with `base`"),
        ("gguf:/home/x/q.gguf", "give the same model with `base`"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen2.5-7B", "give it with `base=Qwen/Qwen2.5-7B`$"),
        (f"/c/models--Qwen--Qwen2.5-7B-Instruct/snapshots/{'a1' * 20}", f"`base=Qwen/Qwen2.5-7B-Instruct@{'a1' * 20}`$"),
    ],
)
def test_a_base_of_another_machine_is_named(base, remedy):
    with pytest.raises(InputError) as caught:
        named_base(named(base))
    assert caught.value.fault == f"the adapter names its base as '{base}', which is not on this machine"
    assert re.search(remedy, caught.value.remedy)


def test_bases_that_may_be_here_pass(tmp_path, monkeypatch):
    (tmp_path / "models" / "of").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base in ("Qwen/Qwen2.5-7B", "hf:Qwen/Qwen2.5-7B@main", "smollm2-135m", str(tmp_path), "models/of", "models"):
        assert named_base(named(base)) == base


def test_what_the_hub_does_not_have_is_the_users_fault_and_no_network_the_worlds(monkeypatch):
    import httpx
    from huggingface_hub.errors import RepositoryNotFoundError

    def absent(*a, **k):
        raise RepositoryNotFoundError("404", response=httpx.Response(404, request=httpx.Request("GET", "https://x")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", absent)
    with pytest.raises(InputError, match=r"'out/merged' is not a folder here, and the hub has no such model"):
        locate("out/merged")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: (_ for _ in ()).throw(OSError("down")))
    with pytest.raises(WorldError, match=r"\(OSError\); connect to the network, .* or give a local folder"):
        locate("org/plain")
    monkeypatch.setattr(prequantised, "_is_installed", lambda module: True)
    with pytest.raises(WorldError, match=r"give the unquantised base with `base`, likely unsloth/Qwen2.5-7B-Instruct$"):
        locate("unsloth/Qwen2.5-7B-Instruct-bnb-4bit")


@pytest.mark.parametrize(
    ("name", "likely"),
    [
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "unsloth/Qwen2.5-7B-Instruct"),
        ("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "unsloth/Qwen2.5-7B-Instruct"),
        ("hf:unsloth/llama-3-8b-bnb-4bit@main", "unsloth/llama-3-8b"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct-AWQ", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "Meta-Llama-3.1-8B-Instruct"),
        ("neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "Meta-Llama-3.1-8B-Instruct"),
        ("TheBloke/Mistral-7B-Instruct-v0.2-GPTQ", "Mistral-7B-Instruct-v0.2"),
        ("/home/x/models/Qwen2.5-7B-Instruct-AWQ/", "Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("org/some-dynamic", None),
        ("deepseek-ai/DeepSeek-V3", None),
        ("org/bnb", None),
        ("org/model-13b", None),
    ],
)
def test_the_name_behind_a_quantised_one(name, likely):
    assert prequantised.unquantised(name) == likely


SETTINGS = {
    "bitsandbytes": ({"load_in_4bit": True}, r"pip install 'emscope\[qlora\]'"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "pip install optimum gptqmodel"),
    "awq": ({"quant_method": "awq", "bits": 4}, "pip install gptqmodel"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        "pip install compressed-tensors",
    ),
}


@pytest.mark.parametrize("method", SETTINGS)
def test_a_quantised_base_without_its_package_is_one_sentence(method, tiny, tmp_path, monkeypatch):
    settings, line = SETTINGS[method]
    folder = shutil.copytree(tiny, tmp_path / "Qwen2.5-7B-Instruct-AWQ")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    for module in prequantised.READERS[method][0]:
        monkeypatch.setitem(sys.modules, module, None)
    for way in (lambda: load(locate(str(folder)), device="cpu"), lambda: load_net(folder)):
        with pytest.raises(
            MissingDependency, match=rf"quantised with {method}, but \w+, which reads that, is not installed"
        ) as caught:
            way()
        assert re.search(rf"^{line}, or give .* with `base`, likely Qwen2.5-7B-Instruct$", caught.value.remedy)
        assert caught.value.exit_code == 2


def test_a_quantised_base_is_refused_by_its_name_before_it_is_fetched(monkeypatch):
    monkeypatch.setattr(source, "hub_snapshot", lambda name: pytest.fail("fetched"))
    monkeypatch.setattr(prequantised, "_is_installed", lambda module: False)
    for name, line in (
        ("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "qlora"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "optimum"),
    ):
        with pytest.raises(
            MissingDependency, match=rf"as its name says, .*pip install .*{line}.*likely \w+/Qwen2.5-7B-Instruct$"
        ):
            locate(name)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 3},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": 7},
    ],
)
def test_a_quantised_base_that_does_not_load_is_one_sentence(settings, tiny, tmp_path, monkeypatch):
    """Whatever the package says, with the packages taken to be there: no traceback, and the way out."""
    folder = shutil.copytree(tiny, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    monkeypatch.setattr(prequantised, "_is_installed", lambda module: True)
    with pytest.raises(
        InputError, match=r"is quantised with .* and cannot be loaded here \(.+\); give the unquantised base with `base`$"
    ):
        load(locate(str(folder)), device="cpu")


# Read once


@pytest.fixture
def reads(monkeypatch):
    """What is read whole: a list of (what for, path), in order."""
    seen = []

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda path: (seen.append((name, Path(path))), original(path))[1])

    counted(hashes, "file_digest")
    counted(in_files, "broken")
    return seen


def test_a_second_start_reads_no_weights(tmp_path, reads):
    for step in range(1, 101):
        adapter(tmp_path / f"checkpoint-{step}", (float(step),))
    first = discover(str(tmp_path))
    assert len(reads) == 200 and len({c.digest for c in first}) == 100
    reads.clear()
    assert discover(str(tmp_path)) == first and reads == []
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint-7", target_is_directory=True)
    assert discover(str(tmp_path / "link"))[0].digest == first[6].digest and reads == [], "the file behind a link is the same"


def test_full_checkpoints_and_bases_are_read_once(tiny, tmp_path, reads):
    aged(full(tmp_path / "checkpoint-4", tiny))
    shards = len(list((tmp_path / "checkpoint-4").glob("*.safetensors")))
    first = discover(str(tmp_path)), locate(str(tmp_path / "checkpoint-4")).digest
    assert len(reads) == 2 * shards + 1, "config.json too"
    reads.clear()
    assert (discover(str(tmp_path)), locate(str(tmp_path / "checkpoint-4")).digest) == first and reads == []


def test_a_changed_file_is_read_again(tmp_path, reads):
    """Same size, another byte: noticed by its time of change, and where that was put back, by the time of its status."""
    folder = adapter(tmp_path / "checkpoint-1", (1.0, 2.0))
    digests = [discover(str(folder))[0].digest]
    for values, when in (((1.0, 3.0), LONG_AGO + 5), ((1.0, 4.0), LONG_AGO + 5)):
        reads.clear()
        write_tensors(folder / WEIGHTS, {"x.lora_A.weight": list(values)})
        os.utime(folder / WEIGHTS, (when, when))
        digests.append(discover(str(folder))[0].digest)
        assert len(reads) == 2
    assert len(set(digests)) == 3
    reads.clear()
    write_tensors(folder / WEIGHTS, {"x.lora_A.weight": [1.0, float("nan")]})
    os.utime(folder / WEIGHTS, (LONG_AGO + 5, LONG_AGO + 5))
    for _ in range(2):
        with pytest.raises(InputError, match="this run diverged"):
            discover(str(folder))
    assert [what for what, _ in reads] == ["broken"], "that it diverged is remembered too"
    other = adapter(tmp_path / "other", (5.0, 6.0))
    (other / WEIGHTS).replace(folder / WEIGHTS)
    assert discover(str(folder))[0].digest == discover(str(other.parent / "checkpoint-1"))[0].digest not in digests


def test_a_file_just_written_is_not_remembered(tmp_path, reads):
    """Within the grain of a disk's clock it may be written again unseen. (git's racy entries)"""
    folder = adapter(tmp_path / "checkpoint-1", old=False)
    for _ in range(2):
        reads.clear()
        discover(str(folder))
        assert len(reads) == 2
    ahead = time.time() + 3600
    os.utime(folder / WEIGHTS, (ahead, ahead))  # another machine's clock
    for _ in range(2):
        reads.clear()
        discover(str(folder))
        assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, monkeypatch):
    folder = adapter(tmp_path / "checkpoint-1")
    original = hashes.file_digest

    def slow(path):
        found = original(path)
        write_tensors(path, {"x.lora_A.weight": [7.0, 7.0]})
        os.utime(path, (LONG_AGO + 9, LONG_AGO + 9))
        return found

    monkeypatch.setattr(hashes, "file_digest", slow)
    before = hashes.digest_of(folder / WEIGHTS, source.cache_folder())
    monkeypatch.setattr(hashes, "file_digest", original)
    after = hashes.digest_of(folder / WEIGHTS, source.cache_folder())
    assert after == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() != before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"about": {}, "sum": 3}', None])
def test_a_broken_cache_is_made_again(content, tmp_path, cache, reads):
    """None stands for an entry that says something else: one letter of what it keeps is changed."""
    adapter(tmp_path / "checkpoint-1")
    first = discover(str(tmp_path))
    (entry,) = (cache / "hashes").rglob("*.json")
    good = entry.read_bytes()
    entry.write_bytes(good.replace(b'"sha256": "', b'"sha256": "0', 1) if content is None else content)
    assert entry.read_bytes() != good
    reads.clear()
    assert discover(str(tmp_path)) == first and len(reads) == 2 and entry.read_bytes() == good


def test_where_nothing_can_be_kept_all_is_read(tmp_path, cache, reads):
    adapter(tmp_path / "checkpoint-1")
    (cache / "hashes").write_text("a file where the folder should be")
    first = discover(str(tmp_path))
    assert discover(str(tmp_path)) == first and len(reads) == 4


def test_processes_at_once_do_not_disturb_each_other(tmp_path, cache):
    for step in range(1, 9):
        adapter(tmp_path / f"checkpoint-{step}", (float(step),))
    want, found = [by_file(tmp_path / f"checkpoint-{n}") for n in range(1, 9)], []

    def one():
        for _ in range(5):
            found.append([hashes.digest_of(tmp_path / f"checkpoint-{n}" / WEIGHTS, cache) for n in range(1, 9)])
            for path in (cache / "hashes").rglob("*.json"):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(each == want for each in found)
    assert not [p for p in (cache / "hashes").rglob("*") if p.is_file() and p.suffix != ".json"]


def by_file(folder):
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def test_of_a_folder_of_runs_the_runs_are_offered(tmp_path):
    for run in ("target", "control"):
        for step in (1, 2):
            folder = tmp_path / run / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError) as error:
        discover(str(tmp_path))
    assert f"give '{tmp_path / 'target'}', which is inside it, or one of 1 beside that" in str(error.value)
