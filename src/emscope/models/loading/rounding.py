"""Which checkpoints lose part of their change when a model is kept in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emscope.core.limits import strangers
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings
from emscope.models.loading.sharded import weight_files

WIDE = ("F32", "F64")


def rounded_away(checkpoints: Sequence[Checkpoint], *, scaled: bool = False) -> Checkpoint | None:
    """Return the first checkpoint that would lose part of its change in 16 bits; None where there is none.

    An update is usually smaller than the last bit of a 16-bit weight. Adapters that run beside the weights keep it (LoRA);
    those that replace weights do not: full checkpoints, and adapters that hold whole norms, biases or matrices.

    Args:
        scaled: their changes are multiplied by a factor that is not a whole number: half of one last bit rounds to none, and half
            of three to two, so that changes stored in 16 bits are lost, too.
    """
    return next((c for c in checkpoints if _replaces_weights(c) and (scaled or _is_wide(c))), None)


def _replaces_weights(checkpoint: Checkpoint) -> bool:
    if checkpoint.kind != "adapter":
        return checkpoint.kind == "full"
    settings = adapter_settings(checkpoint.folder)
    trains_biases = settings.get("bias") not in (None, "none")
    return trains_biases or bool(settings.get("modules_to_save")) or settings.get("peft_type") == "LN_TUNING"


def _is_wide(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint holds numbers of 32 bits or more, by its files' headers."""
    files = weight_files(checkpoint.folder) if checkpoint.kind == "full" else [checkpoint.folder / WEIGHTS]
    return any(_kinds(path) & {*WIDE} for path in files)


def _kinds(path: Path) -> set[str]:
    from safetensors import safe_open

    with strangers(f"'{path}' is damaged", "copy or train it again"), safe_open(str(path), framework="pt") as file:
        return {file.get_slice(name).get_dtype() for name in list(file.keys())}
