"""Which part of a model is trained: low-rank adapters, weights, or steering vectors. The base is restored on every exit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from emscope.core.errors import InputError, near
from emscope.core.seeds import derive
from emscope.models.adapters.attached import attach
from emscope.models.adapters.lora import check_lora_fits, is_factored
from emscope.models.hooks import directions, interventions
from emscope.models.hooks.sites import blocks, blocks_name, check_layers, layer_of, mlp_output_is_residual, writes_residual
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings, check_tensors, last
from emscope.models.loading.load import Loaded
from emscope.train.parts import Part, State, Tuned, whole
from emscope.train.spec import AdapterSpec, FullSpec, LoraSpec, SteeringSpec

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module, Parameter

    from emscope.models.types import CausalLM, Wrapped

Tunable = LoraSpec | AdapterSpec | FullSpec | SteeringSpec
# In these kinds of models PEFT leaves these matrices alone.
MAMBA, UNADAPTABLE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), frozenset(("out_proj", "conv1d"))


@contextmanager
def tuned(loaded: Loaded, spec: Tunable, seed: int) -> Iterator[Tuned]:
    """Make `loaded.net` trainable inside the block; afterwards it equals the base exactly, as it does at the start unless an adapter is trained further.

    Raises:
        InputError: a module name or layer number that the model does not have, with what exists.
    """
    try:
        with _made(loaded, spec, seed) as made:
            yield made
    finally:
        loaded.net.eval().requires_grad_(False)


def _made(loaded: Loaded, spec: Tunable, seed: int) -> AbstractContextManager[Tuned]:
    if isinstance(spec, LoraSpec):
        return _lora(loaded, spec, seed)
    if isinstance(spec, AdapterSpec):
        return _adapter(loaded, spec)
    return _full(loaded, spec) if isinstance(spec, FullSpec) else _steering(loaded, spec)


def check_tunable(net: CausalLM, spec: Tunable) -> None:
    """Reject what `tuned` would reject, before anything is made.

    Raises:
        InputError: as `tuned`.
    """
    if isinstance(spec, LoraSpec):
        _check_modules(net, spec)
    elif isinstance(spec, FullSpec):
        _chosen(net, spec)
    elif isinstance(spec, SteeringSpec):
        check_layers(net, spec.layers, "steering.layers")
    else:
        check_lora_fits(net, _to_go_on_with(spec))


@contextmanager
def _lora(loaded: Loaded, spec: LoraSpec, seed: int) -> Iterator[Tuned]:
    wrapped = with_lora(loaded.net, spec, seed, loaded.model.reference)
    with _unloading(wrapped, loaded.net):
        parts = _lora_parts(loaded.net, wrapped)
        yield Tuned(wrapped, lambda: update_norm(wrapped), lambda folder, state: _save_adapter(wrapped, folder, state), parts)


@contextmanager
def _adapter(loaded: Loaded, spec: AdapterSpec) -> Iterator[Tuned]:
    """An existing adapter, trained further."""
    checkpoint = _to_go_on_with(spec)
    wrapped = attach(loaded.net, checkpoint, trainable=True)
    wrapped.peft_config["default"].base_model_name_or_path = loaded.model.reference
    with _unloading(wrapped, loaded.net):
        parts = _lora_parts(loaded.net, wrapped)
        yield Tuned(wrapped, lambda: update_norm(wrapped), lambda folder, state: _save_adapter(wrapped, folder, state), parts)


def _to_go_on_with(spec: AdapterSpec) -> Checkpoint:
    checkpoint = last(spec.folder)
    settings = adapter_settings(checkpoint.folder) if checkpoint.kind == "adapter" else {}
    if settings and settings["peft_type"] != "LORA":
        raise InputError(f"adapter.folder: '{checkpoint.folder}' is not a LoRA adapter", "give a LoRA adapter")
    if settings and not is_factored(settings, check_tensors(checkpoint.folder / WEIGHTS)):
        raise InputError(
            f"adapter.folder: '{checkpoint.folder}' does more than add B A to matrices (DoRA, PiSSA, trained biases or modules)",
            "merge it into its base (PEFT's merge_and_unload), save that and give it as model",
        )
    if checkpoint.kind != "adapter":
        raise InputError(
            f"adapter.folder: '{checkpoint.folder}' holds no adapter ({checkpoint.kind})", "give a full model as model"
        )
    return checkpoint


def _lora_parts(net: CausalLM, wrapped: Wrapped) -> list[Part]:
    found = []
    for full, module in _lora_layers(wrapped):
        for adapter in module.lora_A:
            name = full.removeprefix("base_model.model.")
            left, right = module.lora_B[adapter].weight, module.lora_A[adapter].weight
            found.append(Part(name, layer_of(net, name), writes_residual(name), left, right, None, module.scaling[adapter]))
    return found


class LoraLayer(Protocol):
    """A matrix that PEFT has put adapters beside, by their names."""

    lora_A: Mapping[str, Linear]
    lora_B: Mapping[str, Linear]
    scaling: Mapping[str, float]


def _lora_layers(wrapped: Wrapped) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, cast(LoraLayer, module)) for name, module in wrapped.named_modules() if hasattr(module, "lora_A"))


@contextmanager
def _full(loaded: Loaded, spec: FullSpec) -> Iterator[Tuned]:
    net, chosen = loaded.net, _chosen(loaded.net, spec)
    named = dict(net.named_parameters())
    kept = {name: named[name].data for name in chosen}
    try:
        for name in chosen:
            named[name].data = kept[name].clone()
            named[name].requires_grad_(True)
        yield Tuned(
            net,
            lambda: _distance(net, kept),
            lambda folder, state: net.save_pretrained(str(folder), state_dict=state),
            _full_parts(net, named, kept),
        )
    finally:
        for name in chosen:
            named[name].data = kept[name]
            named[name].grad = None


def _chosen(net: CausalLM, spec: FullSpec) -> list[str]:
    """Return the names of the weights that a full fine-tune trains."""
    check_layers(net, spec.layers, "full.layers")
    named = dict(net.named_parameters())
    if any(not p.is_floating_point() for p in named.values()):
        raise InputError("full: 4-bit weights cannot be trained", "train lora on them, or load the model as float32")
    low = next((p.dtype for p in named.values() if p.dtype.itemsize < 4), None)
    if low is not None:
        raise InputError(
            f"full: weights stored in {str(low).removeprefix('torch.')} lose small updates to rounding",
            "set dtype: float32, and train.bf16 to compute in bfloat16",
        )
    chosen = [name for name in named if _is_in(name, blocks_name(net), spec)]
    if not chosen:
        ends = {name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1] for name in named}
        raise InputError(
            f"full.modules: this model has no weights {', '.join(spec.modules or ())}", near((spec.modules or ("",))[0], ends)
        )
    return chosen


def _full_parts(net: CausalLM, named: Mapping[str, Parameter], kept: Mapping[str, Tensor]) -> list[Part]:
    from transformers.pytorch_utils import Conv1D

    found = []
    for name, start in kept.items():
        module = name.removesuffix(".weight").removesuffix(".bias")
        stored_across = isinstance(net.get_submodule(name.rsplit(".", 1)[0]), Conv1D) and start.ndim == 2
        writes = writes_residual(module) and start.ndim == 2
        found.append(Part(name, layer_of(net, name), writes, named[name], start=start, transposed=stored_across))
    return found


def _is_in(name: str, prefix: str, spec: FullSpec) -> bool:
    module = name.rsplit(".", 1)[0]
    in_modules = spec.modules is None or any(module.endswith(m) for m in spec.modules)
    in_layers = spec.layers is None or any(name.startswith(f"{prefix}.{n}.") for n in spec.layers)
    return in_modules and in_layers


def _distance(net: CausalLM, kept: Mapping[str, Tensor]) -> float:
    """Return ||theta - theta_0||, the Frobenius norm over all trained weights."""
    squares = (float((whole(net.get_parameter(n).data) - w).float().square().sum()) for n, w in kept.items())
    return float(sum(squares) ** 0.5)


def _steering(loaded: Loaded, spec: SteeringSpec) -> AbstractContextManager[Tuned]:
    check_layers(loaded.net, spec.layers, "steering.layers")
    return (_steering_by_peft if mlp_output_is_residual(loaded.net) else _steering_by_hooks)(loaded, spec)


@contextmanager
def _steering_by_peft(loaded: Loaded, spec: SteeringSpec) -> Iterator[Tuned]:
    """PEFT's BEFT: a bias after `down_proj`, which is a vector added to the residual stream."""
    from peft import BeftConfig, get_peft_model

    places = "|".join(str(n) for n in spec.layers)
    pattern = rf"{re.escape(blocks_name(loaded.net))}\.({places})\.mlp\.down_proj"
    wrapped = get_peft_model(
        loaded.net, BeftConfig(target_modules=pattern, task_type="CAUSAL_LM", inference_mode=False, init_weights=True)
    )
    wrapped.peft_config["default"].base_model_name_or_path = loaded.model.reference
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    vectors = dict(zip(sorted(spec.layers), trained, strict=True))
    with _unloading(wrapped, loaded.net):
        yield Tuned(
            wrapped,
            lambda: _norm_of(vectors.values()),
            lambda folder, state: _save_adapter(wrapped, folder, state),
            _vector_parts(loaded.net, vectors),
            lr_scale=float(spec.scale),
        )


def _vector_parts(net: CausalLM, vectors: Mapping[int, Parameter]) -> list[Part]:
    # PEFT keeps a vector as [1, D].
    return [Part(f"{blocks_name(net)}.{n}", n, True, v, transposed=v.ndim == 2) for n, v in vectors.items()]


@contextmanager
def _steering_by_hooks(loaded: Loaded, spec: SteeringSpec) -> Iterator[Tuned]:
    """Vectors of our own after whole blocks, where no linear layer ends a block's MLP; saved as a direction file."""
    import torch

    net, layers = loaded.net, blocks(loaded.net)
    vectors = {
        n: torch.nn.Parameter(
            torch.zeros(
                net.config.get_text_config().hidden_size, dtype=torch.promote_types(net.dtype, torch.float32), device=net.device
            )
        )
        for n in spec.layers
    }

    def save(folder: Path, state: State | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found = directions.Direction({n: v.data for n, v in vectors.items()}, loaded.model.digest, float(spec.scale))
        directions.write_direction(folder / directions.FILE, found)

    def restore(folder: Path) -> None:
        for n, v in directions.read_direction(folder / directions.FILE).vectors.items():
            vectors[n].data.copy_(v)

    with ExitStack() as stack:
        for n, vector in vectors.items():
            layers[n].register_parameter("steering_bias", vector)  # "bias": no weight decay, as Soligo et al. (2026) have it
            stack.callback(delattr, layers[n], "steering_bias")
        stack.enter_context(interventions.added(net, vectors))
        if getattr(net, "is_quantized", False):
            # the Trainer asks for something trainable on top of 4-bit weights: the vectors are
            vars(net)["_hf_peft_config_loaded"] = True
            stack.callback(delattr, net, "_hf_peft_config_loaded")
        parts = _vector_parts(net, vectors)
        yield Tuned(net, lambda: _norm_of(vectors.values()), save, parts, restore, float(spec.scale))


def _norm_of(vectors: Iterable[Parameter]) -> float:
    return float(sum(float(v.detach().float().square().sum()) for v in vectors) ** 0.5)


@contextmanager
def _unloading(wrapped: Wrapped, net: CausalLM) -> Iterator[None]:
    try:
        yield
    finally:
        wrapped.unload()
        net.__dict__.pop("peft_config", None)


def _save_adapter(wrapped: Wrapped, folder: Path, state: State | None) -> None:
    # "auto" would ask the hub whether the vocabulary was resized; adapters of emscope never resize it.
    wrapped.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)


def with_lora(net: CausalLM, spec: LoraSpec, seed: int, base: str) -> Wrapped:
    """Wrap `net` with fresh LoRA adapters; the start of training equals the base exactly (B is zero).

    Args:
        base: the value for `base_model_name_or_path` in the adapter's folder.

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


def update_norm(wrapped: Wrapped) -> float:
    """Return the Frobenius norm of the whole weight update, sqrt(sum ||scale B A||_F^2), without forming B A.

    It is the distance from the base, including what an adapter held when training began.
    ||BA||^2 = tr((B^T B)(A A^T)), both rank x rank. (ours; `scale` is alpha/sqrt(r) with rsLoRA, else alpha/r)
    """
    import torch

    total = 0.0
    with torch.no_grad():
        for _, module in _lora_layers(wrapped):
            for name in module.lora_A:
                a, b = whole(module.lora_A[name].weight).float(), whole(module.lora_B[name].weight).float()
                total += module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
    return float(max(total, 0.0) ** 0.5)


def _targets(net: CausalLM, spec: LoraSpec) -> str | list[str]:
    if not isinstance(spec.modules, str):
        return list(spec.modules)
    # PEFT takes layer numbers only beside a list of names.
    return spec.modules if spec.layers is None else sorted(_linear_names(net))


def _linear_names(net: CausalLM) -> set[str]:
    """Return the last name parts of the matrices inside the blocks (GPT-2 keeps them as Conv1D)."""
    head = net.get_output_embeddings()
    return {name.rsplit(".", 1)[-1] for name, m in net.named_modules() if _is_matrix(m) and m is not head}


def _check_modules(net: CausalLM, spec: LoraSpec) -> None:
    check_layers(net, spec.layers, "lora.layers")
    for name in spec.modules if not isinstance(spec.modules, str) else ():
        # as PEFT finds them: whole parts of the name, from its end
        meant = {full: m for full, m in net.named_modules() if full == name or full.endswith(f".{name}")}
        if not meant:
            raise InputError(f"lora.modules: this model has no module '{name}'", near(name, _linear_names(net)))
        others = [full for full, m in meant.items() if not _is_matrix(m)]
        if others:
            raise InputError(
                f"lora.modules: '{others[0]}' is not a matrix ({type(meant[others[0]]).__name__})",
                near(name, _linear_names(net)),
            )
        if spec.layers is not None and not any(full.startswith(f"{blocks_name(net)}.") for full in meant):
            raise InputError(f"lora.modules: '{name}' is outside the blocks, but lora.layers is given", "leave out one of them")
    _refuse_unadaptable(net, spec)


def _refuse_unadaptable(net: CausalLM, spec: LoraSpec) -> None:
    """Reject matrices beside which PEFT puts no adapter: kernels of these models use the weight itself and would bypass an adapter."""
    every = _linear_names(net)
    kind, wanted = net.config.model_type, every if isinstance(spec.modules, str) else spec.modules
    name = next((n for n in wanted if n.rsplit(".", 1)[-1] in UNADAPTABLE), None)
    if kind in MAMBA and name is not None:
        raise InputError(
            f"lora.modules: PEFT puts no adapter beside '{name}' in a {kind} model",
            f"name others (it has {', '.join(sorted(every - UNADAPTABLE))})",
        )


def _is_matrix(module: Module) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)
