"""Weights in several files: safetensors with an index, which are read, and leftovers of sharded training, which are not.

The latter are recognised by their file names alone: they are pickles, and none is opened.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path, PurePosixPath, PureWindowsPath

from emscope.core.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
ZERO, DCP = ("zero_pp_rank_*", "*_optim_states.pt"), ("*.distcp",)
TRUST = "only if you trust the files, since this opens pickles"


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors of a full model in `folder`, by name: those that its index names, else all.

    As in transformers, `model.safetensors` takes precedence over an index.

    Raises:
        InputError: a broken index, one that names what is not there or not in the folder, or shards without an index.
    """
    named = weight_map(folder)
    if named is not None:
        return [folder / name for name in sorted(set(named.values()))]
    found = sorted(folder.glob("*.safetensors"))
    shard = next((p.name for p in found if SHARD.fullmatch(p.name)), None)
    if shard and not (folder / WHOLE).is_file():
        raise InputError(
            f"'{folder}' holds a shard of a model ({shard}) but no {INDEX}, as if the save was cut off",
            "copy the whole folder again, or leave this checkpoint out",
        )
    return found


def weight_map(folder: Path) -> dict[str, str] | None:
    """Return the shard of each tensor from the folder's index; None where no index applies.

    Raises:
        InputError: a broken index, or one that names what is not there or not in the folder.
    """
    path = folder / INDEX
    if (folder / WHOLE).is_file() or not path.is_file():
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"'{path}' cannot be read ({error})", "copy it again from where it was saved") from None
    named = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"'{path}' names no shards (weight_map)", "copy it again from where it was saved")
    for name in sorted(set(named.values())):
        if not _stays_inside(name) or not name.endswith(".safetensors"):
            raise InputError(
                f"'{path}' names '{name}', which is not a safetensors file of this folder", "give the folder as it was saved"
            )
        if not (folder / name).is_file():
            raise InputError(
                f"'{path}' names {name}, which is missing", "copy the missing shard into the folder, or leave this one out"
            )
    return named


def _stays_inside(name: str) -> bool:
    ways = (PurePosixPath(name), PureWindowsPath(name))
    return not any(way.is_absolute() or way.anchor or ".." in way.parts for way in ways)


def in_pieces(folder: Path) -> tuple[str, str] | None:
    """Return what a folder holds instead of weights after a sharded run, and how to turn it into weights.

    DeepSpeed's ZeRO, FSDP as Accelerate saves it, and other torch.distributed checkpoints; None for anything else.
    """
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    for place in (folder, *inside):
        if _holds(place, ZERO):
            return _deepspeed(folder, place)
    for place in inside:
        if place.name.startswith("pytorch_model_fsdp") and _holds(place, DCP):
            return _fsdp(folder, place)
    below = (p for place in inside for p in sorted(place.iterdir()) if p.is_dir())
    for place in (folder, *inside, *below):
        if not place.name.startswith("optimizer") and _holds(place, DCP):
            return (
                f"'{folder}' holds a sharded torch.distributed checkpoint ('{place.name}') but no safetensors",
                "export it to Hugging Face layout with the tool that trained it "
                "(torchtitan: scripts/checkpoint_conversion/convert_to_hf.py; LLaMA-Factory: scripts/dcp2hf.py)",
            )
    return None


def _holds(place: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(place.glob(pattern), None) is not None for pattern in patterns)


def _deepspeed(folder: Path, place: Path) -> tuple[str, str]:
    root = folder if place != folder else folder.parent
    # Without an argument, the script takes the folder that the file `latest` names.
    tag = [] if place != folder and (root / "latest").is_file() else ["--tag", place.name]
    script = (
        ["python", "zero_to_fp32.py"]
        if (root / "zero_to_fp32.py").is_file()
        else ["python", "-m", "deepspeed.utils.zero_to_fp32"]
    )
    adapter = (root / "adapter_config.json").is_file()
    command = _line([*script, ".", "out", "--safe_serialization", *tag, *(["--exclude_frozen_parameters"] if adapter else [])])
    after = (
        "then in Python net = get_peft_model(BASE, PeftConfig.from_pretrained('.')); "
        "net.load_state_dict(load_file('out/model.safetensors'), strict=False); net.save_pretrained('.')"
        if adapter
        else "then put the contents of out beside config.json"
    )
    return (
        f"'{folder}' holds shards of DeepSpeed's ZeRO ('{place.name}') but no gathered weights",
        f"run `{command}` in '{root}' ({TRUST}), {after}",
    )


def _fsdp(folder: Path, place: Path) -> tuple[str, str]:
    command = _line(["accelerate", "merge-weights", str(place), "out"])
    adapter, full = (folder / "adapter_config.json").is_file(), (folder / "config.json").is_file()
    beside = {
        (True, False): "put out/model.safetensors beside adapter_config.json as adapter_model.safetensors",
        (False, True): "put out/model.safetensors beside config.json",
    }.get(
        (adapter, full),
        "put out/model.safetensors beside the model's config.json, or for an adapter beside its adapter_config.json as adapter_model.safetensors",
    )
    return (
        f"'{folder}' holds shards of FSDP ('{place.name}') but no gathered weights",
        f"run `{command}` ({TRUST}), then {beside}",
    )


def _line(words: list[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)
