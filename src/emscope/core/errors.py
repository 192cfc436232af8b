"""The errors emscope raises on purpose: one sentence with the bad value, one with the remedy.

Only the command line prints and exits; `exit_code` says how. Instances survive pickling (they cross process boundaries).
A message names a setting by its field in backticks, `count` or `pool=last`; the command line spells it as its option, `--count` or `--pool last`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

ELSEWHERE = {  # other training tools' names for a setting, and ours
    "learning_rate": ("lr",),
    "lr_scheduler_type": ("schedule",),
    "lr_scheduler": ("schedule",),
    "optim": ("optimiser",),
    "max_steps": ("steps",),
    "save_steps": ("checkpoints",),
    "per_device_train_batch_size": ("micro_batch",),
    "train_batch_size": ("batch",),
    "warmup_steps": ("warmup",),
    "warmup_ratio": ("warmup",),
    "lora_rank": ("rank",),
    "lora_r": ("rank",),
    "r": ("rank",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "use_rslora": ("rslora",),
    "target_modules": ("modules",),
    "layers_to_transform": ("layers",),
    "base": ("model",),
    "base_model": ("model",),
    "model_name_or_path": ("model",),
}
SETTING = re.compile(r"`([a-z_]+)(?:=([^`]+))?`")


class EmscopeError(Exception):
    """Base of all deliberate errors.

    Args:
        fault: what is wrong, with the offending value in it.
        remedy: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, fault: str, remedy: str = "") -> None:
        super().__init__(fault, remedy)
        self.fault = fault
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.fault}; {self.remedy}" if self.remedy else self.fault


class InputError(EmscopeError):
    """The user's input is wrong (exit code 2)."""

    exit_code = 2


class WorldError(EmscopeError):
    """The machine, the disk or the network is at fault (exit code 1)."""


class Diverged(WorldError):
    """A training whose loss or update is no longer a number; earlier saves stay."""


class MissingDependency(InputError):
    """An optional package is not installed; the remedy is the install line."""


def spelled(text: str, options: Mapping[str, str]) -> str:
    """Return a text with settings spelled as their command-line options.

    >>> spelled("`pool=last` needs `systems`; see `table`", {"pool": "--pool", "systems": "--systems"})
    '--pool last needs --systems; see `table`'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found[0]
        return options[name] if value is None else f"{options[name]} {value}"

    return SETTING.sub(option, text)


def near(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the nearest known name, or for our name of what other tools call `name`, else the list of what exists.

    >>> near("learning_rate", ["lr", "steps"])
    "did you mean 'lr'?"
    """
    names = sorted(known)
    match = [ours for ours in ELSEWHERE.get(name, ()) if ours in names][:1] or get_close_matches(name, names, n=1, cutoff=0.6)
    if match:
        return f"did you mean '{match[0]}'?"
    return "known: " + ", ".join(names) if names else "none is known"
