"""Checkpoints of a fine-tune on disk, from any tool that writes Hugging Face or PEFT folders.

Only safetensors and JSON are opened; `optimizer.pt`, `rng_state.pth` and their like are pickles and stay shut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from emscope.core.digest import canonical, digest, file_digest
from emscope.core.errors import InputError
from emscope.models.source import hub_snapshot, refuse_pickles

ADAPTER, WEIGHTS, DIRECTION = "adapter_config.json", "adapter_model.safetensors", "direction.safetensors"
WRAPPED = r"^(?:(?:module|_orig_mod|_forward_module)\.)+|(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step of a fine-tune on disk: `kind` is `adapter`, `vectors` or `full`; `base` the base its adapter names, if any."""

    step: int
    folder: Path
    kind: str
    base: str | None
    digest: str


def discover(reference: str) -> list[Checkpoint]:
    """Return the checkpoints in a folder (`checkpoint-N` inside it, or itself one), or of `hf:org/repo@rev`, by step.

    Raises:
        InputError: missing or empty folder, no checkpoint in it, two of one step, damaged, empty or pickled weights.
    """
    root = hub_snapshot(reference.removeprefix("hf:")) if reference.startswith("hf:") else Path(reference).expanduser()
    if not root.exists():
        raise InputError(f"no folder '{root}'", "give the folder that holds the checkpoint-N folders")
    if not root.is_dir():
        raise InputError(f"'{root}' is a file", "give the folder that holds the checkpoint-N folders")
    inside = sorted((step, path) for path in root.iterdir() if path.is_dir() and (step := _step(path)) is not None)
    _check_steps(inside)
    found = [read_checkpoint(path, step) for step, path in inside if not _unfinished(path, step)]
    if not found and _is_checkpoint(root):
        found = [read_checkpoint(root, _step(root) or _trained_steps(root) or 1)]
    if not found:
        refuse_pickles(root)
        what = "is empty" if not any(root.iterdir()) else "holds no checkpoint-N folder and is none itself"
        raise InputError(
            f"'{root}' {what}",
            _further_down(root)
            or "give the output folder of the training run (adapter_config.json or config.json with *.safetensors)",
        )
    return found


def _check_steps(inside: Sequence[tuple[int, Path]]) -> None:
    """Refuse two folders of one step: whoever reads a step could not tell which is meant."""
    for (step, path), (following, other) in pairwise(inside):
        if step == following:
            raise InputError(f"'{path}' and '{other}' are both step {step}", "leave one of them in the folder")


def _further_down(folder: Path) -> str | None:
    """Return what to give instead of a folder that holds checkpoints one or two levels down under names that tell no step."""
    below = sorted(
        p.parent for pattern in ("*", "*/*") for p in folder.glob(f"{pattern}/*") if p.name in (ADAPTER, "config.json")
    )
    if not below:
        return None
    others = len(set(below)) - 1
    return f"give '{below[-1]}', which lies inside it{f', or one of {others} beside that' if others else ''}, or name each checkpoint-N"


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read what `folder` says about itself.

    Raises:
        InputError: where weights are missing, pickled, damaged, empty or no numbers, or the adapter's configuration is no JSON.
    """
    if (folder / ADAPTER).is_file():
        settings = adapter_settings(folder)
        if not (folder / WEIGHTS).is_file():
            refuse_pickles(folder)
            raise InputError(f"'{folder}' holds {ADAPTER} but no {WEIGHTS}", "copy the adapter's weights into it")
        _check_values(folder / WEIGHTS)
        base = settings.get("base_model_name_or_path") or None
        # PEFT writes target_modules in the order of a set: canonical JSON makes equal adapters hash equal.
        volatile = {
            k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v for k, v in settings.items()
        }
        return Checkpoint(step, folder, "adapter", base, digest([canonical(volatile), file_digest(folder / WEIGHTS)]))
    if (folder / DIRECTION).is_file():
        _check_values(folder / DIRECTION)
        return Checkpoint(step, folder, "vectors", None, file_digest(folder / DIRECTION))
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        refuse_pickles(folder)
        raise InputError(
            f"'{folder}' holds neither an adapter nor a model in safetensors",
            _further_down(folder) or f"it needs {ADAPTER} and {WEIGHTS}, or config.json and *.safetensors",
        )
    for path in weights:
        check_tensors(path)
    return Checkpoint(step, folder, "full", None, digest([[p.name, file_digest(p)] for p in weights]))


def named_base(checkpoints: Sequence[Checkpoint], option: str = "--base") -> str:
    """Return the base that the adapters name.

    Raises:
        InputError: where they name none, or more than one.
    """
    names = sorted({c.base for c in checkpoints if c.base})
    if not names:
        raise InputError("the checkpoints do not name their base model", f"give it with {option}")
    if len(names) > 1:
        raise InputError(f"the checkpoints name different bases ({', '.join(names)})", f"give the right one with {option}")
    return names[0]


def check_tensors(path: Path) -> list[str]:
    """Return the tensor names in a safetensors file, reading its header only.

    Raises:
        InputError: where the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"'{path}' is damaged ({error})", "copy or train it again") from None


def plain_name(name: str) -> str:
    """Return a tensor's name without what torch.compile, data parallelism and sharding put before the model's own."""
    return re.sub(WRAPPED, "", name)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, reading its header only.

    Raises:
        InputError: where the file is damaged.
    """
    from safetensors import safe_open

    names = check_tensors(path)
    with safe_open(str(path), framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _check_values(path: Path) -> None:
    """Refuse an adapter's file without weights, or with values that are no numbers."""
    from safetensors import safe_open

    shapes = tensor_shapes(path)
    empty = next((name for name, shape in shapes.items() if 0 in shape), None)
    if not shapes or empty:
        raise InputError(
            f"'{path}' holds no weights{f' for {empty}' if empty else ''}, as where a sharded run saved without gathering them",
            "save it again from the training run with its weights gathered (DeepSpeed: stage3_gather_16bit_weights_on_model_save)",
        )
    with safe_open(str(path), framework="pt") as file:
        broken = next((name for name in shapes if not file.get_tensor(name).isfinite().all()), None)
    if broken:
        raise InputError(
            f"'{path}' holds values that are no numbers ({broken}): this run diverged",
            "take this checkpoint out of the folder, or train again with a lower learning rate",
        )


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return what PEFT wrote about an adapter.

    Raises:
        InputError: where it is no JSON object or names no kind of adapter.
    """
    try:
        settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"'{folder / ADAPTER}' is not JSON ({error})", "copy it again from the training run") from None
    if not isinstance(settings, dict) or "peft_type" not in settings:
        raise InputError(f"'{folder / ADAPTER}' names no peft_type", "give an adapter that PEFT wrote")
    return settings


def _step(path: Path) -> int | None:
    match = re.fullmatch(r"(?:checkpoint|step|global_step)[-_](\d+)", path.name)
    return int(match.group(1)) if match else None


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (ADAPTER, DIRECTION, "config.json"))


def _unfinished(folder: Path, step: int) -> bool:
    """True where the folder holds no weights at all: a save that was cut off before anything was written."""
    return not any(folder.iterdir())


def _trained_steps(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "trainer_state.json").read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
