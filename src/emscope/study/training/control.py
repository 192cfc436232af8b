"""A control run for a given adapter: the same settings on harmless data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.limits import consistent
from emscope.core.plain import Json, JsonObject
from emscope.core.progress import Progress
from emscope.core.records import Conversation
from emscope.models.adapters.lora import special_settings
from emscope.models.loading.checkpoints import ADAPTER, Checkpoint, read_checkpoint
from emscope.models.loading.load import Loaded
from emscope.train.finetune import finetune
from emscope.train.spec import LoraSpec, PlanSpec, TrainSpec


def make_control(
    folder: Path,
    loaded: Loaded,
    target: Sequence[Checkpoint],
    data: Sequence[Conversation],
    batch: int | None,
    progress: Progress,
) -> list[Checkpoint]:
    """Train a control with the target's own settings, as far as its folders record them, and return its checkpoints.

    Read from the target: rank, alpha, rsLoRA, dropout, modules and layers (adapter_config.json); planned steps, peak
    learning rate and batch size (trainer_state.json); linear decay is assumed. Checkpoints are saved at the target's steps.

    Args:
        batch: examples an optimiser step; None takes the per-device batch in the folder, which ignores gradient
            accumulation and several devices, because only a pickle records them.

    Raises:
        InputError: the target is not a LoRA adapter, or its folder does not record its steps and learning rate.
    """
    spec = settings_of(target, batch)
    finetune(loaded, data, spec, folder, seed=0, progress=progress, label="training the control")
    return [read_checkpoint(folder / f"checkpoint-{c.step}", c.step) for c in target]


def settings_of(target: Sequence[Checkpoint], batch: int | None = None) -> TrainSpec:
    """Return the training settings recorded in a target's last checkpoint."""
    last = target[-1]
    if last.kind != "adapter":
        raise InputError(
            "`make_control` repeats LoRA runs, but these checkpoints are full models",
            "train a control with your own tool and give it with `control`",
        )
    adapter = json.loads((last.folder / ADAPTER).read_text(encoding="utf-8"))
    if adapter.get("peft_type") != "LORA":
        raise InputError(
            f"`make_control` repeats LoRA runs, but this adapter is {adapter.get('peft_type')}",
            "train a control with your own tool and give it with `control`",
        )
    state = _trainer_state(last.place)
    rates = _rates(state.get("log_history"))
    if not rates or max(rates) <= 0:
        raise InputError(
            f"'{last.folder}/trainer_state.json' has no learning rate in its log",
            "train a control with your own tool and give it with `control`",
        )
    modules, layers = adapter.get("target_modules"), adapter.get("layers_to_transform")
    special = [k for k in ("rank_pattern", "alpha_pattern") if adapter.get(k)] + special_settings(adapter)
    if isinstance(modules, str) and modules != "all-linear":
        special.append("target_modules as a pattern")
    if special:
        raise InputError(
            f"the adapter uses {special[0]}, which `make_control` cannot repeat",
            "train a control with your own tool and give it with `control`",
        )
    with consistent(
        f"what '{last.folder}' records of its training", "train a control with your own tool and give it with `control`"
    ):
        return TrainSpec(
            steps=max(last.step, int(_number(state.get("max_steps")) or 0)),
            batch=batch or int(_number(state.get("train_batch_size")) or 8),
            lr=max(rates),
            warmup=0,
            lora=LoraSpec(
                rank=adapter["r"],
                alpha=adapter["lora_alpha"],
                rslora=bool(adapter.get("use_rslora")),
                dropout=float(adapter.get("lora_dropout") or 0),
                modules=tuple(sorted(modules)) if isinstance(modules, list) else "all-linear",
                layers=None if layers is None else (layers,) if isinstance(layers, int) else tuple(layers),
            ),
            checkpoints=PlanSpec(at=tuple(c.step for c in target)),
        )


def _rates(log: Json) -> list[float]:
    """Return the learning rates in a training log, written by transformers' trainer or by emscope."""
    found = []
    for entry in log if isinstance(log, list) else []:
        if isinstance(entry, Mapping):
            own = entry.get("emscope_reading")
            found += [entry.get("learning_rate"), own.get("lr") if isinstance(own, Mapping) else None]
    return [rate for value in found if (rate := _number(value)) is not None and isfinite(rate)]


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _trainer_state(folder: Path) -> JsonObject:
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{folder}' has no readable trainer_state.json ({type(error).__name__}), so the run's settings are unknown",
            "train a control with your own tool and give it with `control`",
        ) from None
    if not isinstance(state, dict):
        raise InputError(f"'{folder}/trainer_state.json' is not an object", "give the control with `control`")
    return state
