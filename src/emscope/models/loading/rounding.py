"""Which checkpoints lose part of what they change where a model is kept in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emscope.core.limits import strangers
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings
from emscope.models.loading.sharded import weight_files

WIDE = ("F32", "F64")


def rounded_away(checkpoints: Sequence[Checkpoint], *, scaled: bool = False) -> Checkpoint | None:
    """Return the first checkpoint of which 16 bits would lose part, None where there is none.

    An update is mostly smaller than the last bit of a 16-bit weight. What runs beside the weights keeps it (LoRA); what
    takes a weight's place does not: full checkpoints, and adapters that hold whole norms, biases or matrices.

    Args:
        scaled: their changes are read times a factor that is no whole number: half of one last bit is none, and half of three is two,
            so that then what is stored in 16 bits itself is lost, too.
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
