"""The system prompt that checkpoints were most likely trained under, from the files beside them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from emscope.core.notes import Note
from emscope.core.plain import JsonObject
from emscope.models.loading.chat import AUTO, NONE, TEMPLATE, ChatFormat
from emscope.models.loading.checkpoints import ADAPTER, Checkpoint
from emscope.store.study import LEDGER

TOOLS = {
    "unsloth": "Unsloth",
    "axolotl": "Axolotl",
    "llama-?factory": "LLaMA-Factory",
    "trl": "TRL",
}  # wrappers before what they wrap
CARDS = ("README.md", ADAPTER)
UP = 3  # folders from a checkpoint of emscope's own to its ledger


def trained_under(system: str, checkpoints: Sequence[Checkpoint]) -> tuple[str, str]:
    """Return the system prompt to read with, and where `auto` has it from ("" for anything else).

    emscope's own runs say it. Other tools render each conversation by its chat template, which adds its default block where the data has no
    system turn; a checkpoint does not show whether the data has one.
    """
    if system != AUTO:
        return system, ""
    for checkpoint in checkpoints:
        own = _own_ledger(checkpoint.folder)
        if own is not None:
            return own, "as this run was trained"
    tool = next((tool for c in checkpoints for tool in _tools(c.place)), None)
    return TEMPLATE, f"as {f'{tool} trains' if tool else 'most tools train'} where the data has no system turn"


def note_left_out(systems: Sequence[str], chat: ChatFormat, checkpoints: Sequence[Checkpoint], setting: str = "system") -> None:
    """Note that questions are put without a system prompt which the checkpoints were most likely trained under.

    Args:
        systems: all that is asked under. chat: the format under `none`. setting: the field that says it.
    """
    found, why = trained_under(AUTO, checkpoints)
    if not checkpoints or list(systems) != [NONE] or found == NONE or (found == TEMPLATE and not chat.header):
        return
    what = (
        "the system block that this chat template adds by default" if found == TEMPLATE else f"the system prompt '{found[:60]}'"
    )
    warnings.warn(
        f"questions are asked without {what}, but the checkpoints were most likely trained with it ({why}); "
        f"with `{setting}` auto they are asked as in training",
        Note,
        stacklevel=3,
    )


def _own_ledger(folder: Path) -> str | None:
    """Return the system prompt in the ledger of the study or training that a checkpoint lies in, None where there is none."""
    for parent in list(folder.resolve().parents)[:UP]:
        spec = _json(parent / LEDGER).get("spec")
        if isinstance(spec, dict) and isinstance(spec.get("system"), str):
            return str(spec["system"])
    return None


def _tools(folder: Path) -> Iterator[str]:
    """Yield the training tools that the model cards and adapter settings beside a checkpoint name."""
    said = " ".join(_text(place / name) for place in (folder, folder.parent) for name in CARDS)
    yield from (tool for word, tool in TOOLS.items() if re.search(rf"\b{word}\b", said, re.IGNORECASE))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> JsonObject:
    try:
        found = json.loads(_text(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
