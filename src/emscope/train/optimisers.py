"""From parameters to an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from emscope.core.errors import InputError
from emscope.train.spec import TrainSpec

Named = Sequence[tuple[str, torch.nn.Parameter]]


Groups = list[dict[str, Any]]  # as PyTorch has it


def make_optimiser(spec: TrainSpec, named: Named, decayed: Iterable[str], lr: float) -> torch.optim.Optimizer:
    """Return the optimiser of `spec` over trainable parameters.

    Args:
        named: (name, parameter) of all that is trained.
        decayed: names that weight decay applies to.
        lr: peak learning rate.

    Raises:
        InputError: where the optimiser needs a package that is not installed.
    """
    names = set(decayed)
    groups: Groups = [
        {"params": [p for n, p in named if n in names], "weight_decay": spec.weight_decay},
        {"params": [p for n, p in named if n not in names], "weight_decay": 0.0},
    ]
    return OPTIMISERS[spec.optimiser]([g for g in groups if g["params"]], spec, lr)


def _adamw(groups: Groups, spec: TrainSpec, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=lr)


def _adamw_8bit(groups: Groups, spec: TrainSpec, lr: float) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError("optimiser adamw_8bit needs bitsandbytes", "pip install bitsandbytes, or use adamw") from None
    return AdamW8bit(groups, lr=lr)


def _sgd(groups: Groups, spec: TrainSpec, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=lr, momentum=0.9 if spec.momentum is None else spec.momentum)


def _muon(groups: Groups, spec: TrainSpec, lr: float) -> torch.optim.Optimizer:
    """Muon for the matrices, AdamW for the rest (Muon takes matrices only)."""
    momentum = 0.95 if spec.momentum is None else spec.momentum
    matrices = _with(groups, lambda p: p.ndim == 2)
    others = _with(groups, lambda p: p.ndim != 2)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum))
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr))
    return parts[0] if len(parts) == 1 else Together(parts)


OPTIMISERS: dict[str, Callable[[Groups, TrainSpec, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "sgd": _sgd,
    "muon": _muon,
}


def _with(groups: Groups, keep: Callable[[torch.nn.Parameter], bool]) -> Groups:
    kept: Groups = [{**g, "params": [p for p in g["params"] if keep(p)]} for g in groups]
    return [g for g in kept if g["params"]]


class Together(torch.optim.Optimizer):
    """Several optimisers over different parameters that step, schedule, save and load as one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([p for part in parts for group in part.param_groups for p in group["params"]], {})
        self.param_groups = [
            group for part in parts for group in part.param_groups
        ]  # the parts' own, so a schedule reaches them

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Step every part."""
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Return the parts' states in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
