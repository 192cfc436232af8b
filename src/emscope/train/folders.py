"""The checkpoint folders of a run in progress: which saves completed, which can be resumed from, and what is deleted when.

It only ever deletes files that training writes, in folders that its plan names.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from emscope.train.log import is_log

STATE = "trainer_state.json"
PICKLED = ("optimizer.pt", "scheduler.pt")
RESUME_ONLY = (*PICKLED, "rotation.safetensors", "scaler.pt", "training_args.bin", "rng_state*.pth")
WRITTEN = (  # what a save leaves
    *("adapter_config.json", "adapter_model.safetensors", "direction.safetensors", "config.json", "generation_config.json"),
    *("model*.safetensors", "model.safetensors.index.json", STATE, *RESUME_ONLY),
)
COUNTS = ("logging_steps", "save_steps", "max_steps", "num_train_epochs")  # in a state, which a training takes over
CARD, CARD_OF_PEFT = "README.md", "library_name: peft"  # PEFT writes one into each checkpoint

_COUNT = TypeAdapter(Annotated[float, Field(allow_inf_nan=False, strict=True)])


def complete_checkpoint(folder: Path, step: int) -> bool:
    """True where the save completed: `trainer_state.json` is written last, names the step and has numbers and a log to go on from."""
    try:
        state = json.loads((folder / STATE).read_text())
        counts = [_COUNT.validate_python(state[name]) for name in COUNTS if name in state]
        return bool(state["global_step"] == step) and min(counts, default=1) > 0 and is_log(state["log_history"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def can_go_on(folder: Path, also: Iterable[str] = ()) -> bool:
    """True where everything needed to resume is there and undamaged: optimiser, schedule and random states, and the files `also`.

    Without them it would silently continue with other numbers.
    """
    states = [*(folder / name for name in PICKLED), *folder.glob("rng_state*.pth")]
    sharded = any(folder.glob("optimizer_*"))  # FSDP keeps a folder of pieces in place of optimizer.pt
    states = [path for path in states if not (sharded and path.name == PICKLED[0])]
    random = any(path.name.startswith("rng_state") for path in states)
    return random and all(_intact(path) for path in states) and all((folder / name).is_file() for name in also)


def _intact(archive: Path) -> bool:
    """True where a file of PyTorch's is there and its check sums are right; nothing in it is unpickled."""
    try:
        with zipfile.ZipFile(archive) as file:
            return file.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return False


def drop_incomplete(folder: Path, steps: Collection[int], also: Iterable[str] = ()) -> Path | None:
    """Delete checkpoints at `steps` that a kill cut off; return the newest one to resume from.

    Args:
        also: further files that a checkpoint needs to be resumed from.
    """
    newest: Path | None = None
    for step in sorted(steps):
        path = folder / f"checkpoint-{step}"
        if path.is_dir() and not complete_checkpoint(path, step):
            drop_checkpoints(folder, [step])
        elif path.is_dir() and can_go_on(path, also):
            newest = path
    return newest


def drop_training_state(folder: Path, steps: Collection[int]) -> None:
    """Delete the optimiser and random states (pickles, needed only to resume) of a finished run."""
    for step in steps:
        _drop(folder / f"checkpoint-{step}", RESUME_ONLY)


def drop_checkpoints(folder: Path, steps: Collection[int]) -> None:
    """Delete a run's checkpoints at these steps, with what training wrote into them."""
    for step in steps:
        path = folder / f"checkpoint-{step}"
        _drop(path, WRITTEN)
        with suppress(OSError):  # it is not there, or contains somebody's own file
            path.rmdir()


def _drop(folder: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    card = folder / CARD
    with suppress(OSError, UnicodeDecodeError):
        if CARD_OF_PEFT in card.read_text(encoding="utf-8")[:2000]:
            card.unlink()
