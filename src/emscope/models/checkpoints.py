"""Checkpoints of a fine-tune, from any tool that writes Hugging Face or PEFT folders, put onto one loaded base.

Only safetensors and JSON are opened; `optimizer.pt`, `rng_state.pth` and their like are pickles and stay shut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emscope.core.digest import canonical, digest, file_digest
from emscope.core.errors import InputError
from emscope.models.load import load_net
from emscope.models.source import hub_snapshot, refuse_pickles

ADAPTER, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One step of a fine-tune on disk: `kind` is `adapter` or `full`; `base` the base its adapter names, if any."""

    step: int
    folder: Path
    kind: str
    base: str | None
    digest: str


def discover(reference: str) -> list[Checkpoint]:
    """Return the checkpoints in a folder (`checkpoint-N` inside it, or itself one), or of `hf:org/repo@rev`, by step.

    Raises:
        InputError: missing or empty folder, no checkpoint in it, damaged or pickled weights.
    """
    root = hub_snapshot(reference.removeprefix("hf:")) if reference.startswith("hf:") else Path(reference).expanduser()
    if not root.exists():
        raise InputError(f"no folder '{root}'", "give the folder that holds the checkpoint-N folders")
    if not root.is_dir():
        raise InputError(f"'{root}' is a file", "give the folder that holds the checkpoint-N folders")
    inside = sorted((step, path) for path in root.iterdir() if path.is_dir() and (step := _step(path)) is not None)
    found = [read_checkpoint(path, step) for step, path in inside if not _unfinished(path, step)]
    if not found and _is_checkpoint(root):
        found = [read_checkpoint(root, _step(root) or _trained_steps(root) or 1)]
    if not found:
        refuse_pickles(root)
        what = "is empty" if not any(root.iterdir()) else "holds no checkpoint-N folder and is none itself"
        raise InputError(
            f"'{root}' {what}",
            "give the output folder of the training run (adapter_config.json or config.json with *.safetensors)",
        )
    return found


def read_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Read what `folder` says about itself.

    Raises:
        InputError: where weights are missing, pickled or damaged, or the adapter's configuration is no JSON.
    """
    if (folder / ADAPTER).is_file():
        settings = _adapter_settings(folder)
        if not (folder / WEIGHTS).is_file():
            refuse_pickles(folder)
            raise InputError(f"'{folder}' holds {ADAPTER} but no {WEIGHTS}", "copy the adapter's weights into it")
        check_tensors(folder / WEIGHTS)
        base = settings.get("base_model_name_or_path") or None
        # PEFT writes target_modules in the order of a set: canonical JSON makes equal adapters hash equal.
        volatile = {
            k: sorted(v) if isinstance(v, list) and all(isinstance(x, str) for x in v) else v for k, v in settings.items()
        }
        return Checkpoint(step, folder, "adapter", base, digest([canonical(volatile), file_digest(folder / WEIGHTS)]))
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        refuse_pickles(folder)
        raise InputError(
            f"'{folder}' holds neither an adapter nor a model in safetensors",
            f"it needs {ADAPTER} and {WEIGHTS}, or config.json and *.safetensors",
        )
    for path in weights:
        check_tensors(path)
    return Checkpoint(step, folder, "full", None, digest([[p.name, file_digest(p)] for p in weights]))


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


@contextmanager
def applied(net: Any, checkpoint: Checkpoint, *, scale: float = 1.0) -> Iterator[Any]:
    """Yield a model that behaves as `checkpoint` does; `net` is bit-equal to before on every exit.

    An adapter is merged into `net` where its kind can be (the forward pass then costs what the base's does), else it runs
    beside it. `scale` multiplies the update: base + scale * (checkpoint - base).

    Raises:
        InputError: where the adapter was made for another model (a module is missing or a shape differs).
    """
    if checkpoint.kind == "full":
        yield _full(net, checkpoint, scale)
        return
    with _adapter(net, checkpoint, scale) as merged:
        yield merged


@contextmanager
def _adapter(net: Any, checkpoint: Checkpoint, scale: float) -> Iterator[Any]:
    wrapped = _attach(net, checkpoint)
    kept: list[tuple[Any, Any]] = []
    try:
        _scale(wrapped, checkpoint, scale)
        wrapped.eval().requires_grad_(False)
        kept = _snapshot(wrapped)
        if kept:
            wrapped.merge_adapter()
        yield wrapped.get_base_model()
    finally:
        for parameter, value in kept:
            parameter.data = value
        _unload(wrapped)
        net.eval().requires_grad_(False)


def _attach(net: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel

    try:
        wrapped = PeftModel.from_pretrained(net, str(checkpoint.folder), is_trainable=False)
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        _strip(net)
        raise InputError(
            f"adapter '{checkpoint.folder}' does not fit this base ({_first_line(error)})",
            f"give the base it was trained on with --base{f' (it names {checkpoint.base})' if checkpoint.base else ''}",
        ) from None
    missing = _unmatched(wrapped, checkpoint)
    if missing:
        _unload(wrapped)
        raise InputError(
            f"adapter '{checkpoint.folder}' has a tensor this base has no place for ({missing})",
            "give the base it was trained on with --base",
        )
    return wrapped


def _unmatched(wrapped: Any, checkpoint: Checkpoint) -> str | None:
    """Return a tensor name of the adapter file that found no module, which PEFT would only warn about."""
    from peft import get_peft_model_state_dict

    held = set(get_peft_model_state_dict(wrapped))
    return next((name for name in check_tensors(checkpoint.folder / WEIGHTS) if name not in held), None)


def _snapshot(wrapped: Any) -> list[tuple[Any, Any]]:
    """Return (parameter, its tensor) of all weights that merging changes, or [] where the adapter cannot be merged.

    Merging works on a copy, so putting the original tensor back is exact where subtracting the update is not.
    """
    layers = [m for m in wrapped.modules() if hasattr(m, "merge") and hasattr(m, "get_base_layer") and hasattr(m, "base_layer")]
    mergeable = layers and not any(getattr(wrapped.peft_config[a], "is_prompt_learning", False) for a in wrapped.peft_config)
    if not mergeable or any(str(c.peft_type).rsplit(".", 1)[-1] == "BEFT" for c in wrapped.peft_config.values()):
        return []
    kept = []
    for layer in layers:
        for parameter in layer.get_base_layer().parameters(recurse=False):
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.clone()
    return kept


def _scale(wrapped: Any, checkpoint: Checkpoint, scale: float) -> None:
    if scale == 1.0:
        return
    layers = [m for m in wrapped.modules() if hasattr(m, "set_scale") and hasattr(m, "scaling")]
    if not layers:
        raise InputError(
            f"the adapter in '{checkpoint.folder}' has no scale to amplify", "leave --amplify out for this kind of adapter"
        )
    for layer in layers:
        layer.set_scale("default", scale)


def _unload(wrapped: Any) -> None:
    """Take the adapter's modules out again without touching weights."""
    for layer in wrapped.modules():
        if getattr(layer, "merged_adapters", None):
            layer.merged_adapters.clear()
    wrapped.unload()
    _strip(wrapped.get_base_model())


def _strip(net: Any) -> None:
    for name in ("peft_config", "_hf_peft_config_loaded"):
        if name in net.__dict__:
            delattr(net, name)


def _full(net: Any, checkpoint: Checkpoint, scale: float) -> Any:
    import torch

    other = load_net(checkpoint.folder, dtype=str(net.dtype).removeprefix("torch.")).to(net.device)
    mine, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    wrong = sorted(
        name
        for name in mine.keys() | theirs.keys()
        if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
    )
    if wrong:
        raise InputError(
            f"checkpoint '{checkpoint.folder}' does not fit this base (tensor {wrong[0]})",
            "give the model it was trained from with --base",
        )
    if scale != 1.0:
        with torch.no_grad():
            for name, value in theirs.items():
                value.copy_(mine[name] + scale * (value - mine[name]))
    return other.eval().requires_grad_(False)


def _adapter_settings(folder: Path) -> dict[str, Any]:
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
    return (folder / ADAPTER).is_file() or (folder / "config.json").is_file()


def _unfinished(folder: Path, step: int) -> bool:
    """True where the folder holds no weights at all: a save that was cut off before anything was written."""
    return not any(folder.iterdir())


def _trained_steps(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / "trainer_state.json").read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:200] if lines else type(error).__name__
