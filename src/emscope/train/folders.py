"""The checkpoint folders of a run in progress: which saves went through, what is deleted when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def complete_checkpoint(folder: Path, step: int) -> bool:
    """True where the save went through: `trainer_state.json` is written last and names the step."""
    try:
        return json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def drop_incomplete(folder: Path) -> Path | None:
    """Delete checkpoints that a kill cut off; return the newest complete one."""
    newest: tuple[int, Path] | None = None
    for path in folder.glob("checkpoint-*"):
        step = int(path.name.rsplit("-", 1)[1]) if path.name.rsplit("-", 1)[1].isdigit() else -1
        if not complete_checkpoint(path, step):
            shutil.rmtree(path)
        elif newest is None or step > newest[0]:
            newest = (step, path)
    return newest[1] if newest else None


def drop_training_state(folder: Path) -> None:
    """Delete the optimiser and random states (pickles, needed only to resume) of a finished run."""
    for path in folder.glob("checkpoint-*"):
        for name in ("rotation.safetensors", "optimizer.pt", "scheduler.pt", "scaler.pt", "training_args.bin", "README.md"):
            (path / name).unlink(missing_ok=True)
        for state in path.glob("rng_state*.pth"):
            state.unlink()
