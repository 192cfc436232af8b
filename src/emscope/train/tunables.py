"""What of a model is trained."""

from __future__ import annotations

from typing import Any

from emscope.core.errors import InputError, near
from emscope.core.seeds import derive
from emscope.train.spec import LoraSpec


def with_lora(net: Any, spec: LoraSpec, seed: int, base: str) -> Any:
    """Wrap `net` with fresh LoRA adapters; the start of training equals the base exactly (B is zero).

    Args:
        base: what `base_model_name_or_path` in the adapter's folder shall say.

    Raises:
        InputError: a module name or layer number that the model does not have, with what exists.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    _check_modules(net, spec)
    torch.manual_seed(derive(seed, "init"))
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.rslora,
        lora_dropout=spec.dropout,
        target_modules=_targets(net, spec),
        layers_to_transform=list(spec.layers) if spec.layers is not None else None,
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(net, config)
    wrapped.peft_config["default"].base_model_name_or_path = base
    return wrapped


def update_norm(wrapped: Any) -> float:
    """Return the Frobenius norm of the whole weight update, sqrt(sum ||scale B A||_F^2), without forming B A.

    ||BA||^2 = tr((B^T B)(A A^T)), both rank x rank. (ours; `scale` is alpha/sqrt(r) with rsLoRA, else alpha/r)
    """
    import torch

    total = 0.0
    with torch.no_grad():
        for module in wrapped.modules():
            for name in getattr(module, "lora_A", {}):
                a, b = module.lora_A[name].weight.float(), module.lora_B[name].weight.float()
                total += module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
    return float(max(total, 0.0) ** 0.5)


def _targets(net: Any, spec: LoraSpec) -> str | list[str]:
    if not isinstance(spec.modules, str):
        return list(spec.modules)
    # PEFT takes layer numbers only beside a list of names.
    return spec.modules if spec.layers is None else sorted(_linear_names(net))


def _linear_names(net: Any) -> set[str]:
    """Return the last name parts of the matrices inside the blocks (GPT-2 keeps them as Conv1D)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = net.get_output_embeddings()
    return {
        name.rsplit(".", 1)[-1] for name, m in net.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head
    }


def _check_modules(net: Any, spec: LoraSpec) -> None:
    for name in spec.modules if not isinstance(spec.modules, str) else ():
        if not any(full.endswith(name) for full, _ in net.named_modules()):
            raise InputError(f"lora.modules: this model has no module '{name}'", near(name, _linear_names(net)))
    depth = net.config.num_hidden_layers
    for layer in spec.layers or ():
        if not 0 <= layer < depth:
            raise InputError(f"lora.layers: layer {layer} is out of range", f"this model has layers 0 to {depth - 1}")
