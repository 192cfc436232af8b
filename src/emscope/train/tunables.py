"""What of a model is trained: low-rank adapters, weights, or steering vectors. The base is put back on every exit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError, near
from emscope.core.seeds import derive
from emscope.models.adapters.attached import attach
from emscope.models.adapters.lora import check_lora_fits, is_factored
from emscope.models.hooks import directions, interventions
from emscope.models.hooks.sites import blocks, blocks_name, check_layers, layer_of, mlp_output_is_residual, writes_residual
from emscope.models.loading.checkpoints import WEIGHTS, Checkpoint, adapter_settings, check_tensors, last
from emscope.models.loading.load import Loaded
from emscope.train.spec import AdapterSpec, FullSpec, LoraSpec, SteeringSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One matrix or vector that is trained: the update is scale x (weight - start) x right.

    Attributes:
        module: the name of the module it changes; layer: its block, None outside the blocks.
        writes: its output joins the residual stream.
        weight: the parameter, [out, r] (a vector: [out]); `transposed`: stored as [in, out].
        right: [r, in], None where the weight is the whole update.
        start: the weight before training, None for zero.
    """

    module: str
    layer: int | None
    writes: bool
    weight: Any
    right: Any | None = None
    start: Any | None = None
    scale: float = 1.0
    transposed: bool = False

    def left(self) -> Any:
        """Return the weight's change so far [out, r], without the scale."""
        return self._upright(self.weight.detach() if self.start is None else self.weight.detach() - self.start)

    def gradient(self) -> Any | None:
        """Return the weight's gradient [out, r], None where there is none."""
        return None if self.weight.grad is None else self._upright(self.weight.grad)

    def core(self) -> Any:
        """Return a matrix with the singular values of the whole update, as small as its rank allows."""
        import torch

        left = self.left().float()
        if self.right is None:
            return self.scale * left
        return (
            self.scale * torch.linalg.qr(left).R @ torch.linalg.qr(self.right.detach().float().T).R.T
        )  # the orthogonal factors change no singular value

    def _upright(self, matrix: Any) -> Any:
        matrix = matrix.reshape(len(matrix), -1)
        return matrix.T if self.transposed else matrix


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model made trainable.

    Attributes:
        model: what the trainer gets (the adapters' wrapper, or the network itself).
        norm: returns the norm of the change from the base so far, scale included.
        parts: what is trained, matrix by matrix.
        save: writes what was trained into a checkpoint folder, from a state dict where the model is sharded, else None.
        restore: reads it back from one; None where the trainer's own way does.
        lr_scale: what the learning rate is multiplied by.
    """

    model: Any
    norm: Callable[[], float]
    save: Callable[[Path, Any], None]
    parts: Sequence[Part]
    restore: Callable[[Path], None] | None = None
    lr_scale: float = 1.0


@contextmanager
def tuned(loaded: Loaded, spec: LoraSpec | AdapterSpec | FullSpec | SteeringSpec, seed: int) -> Iterator[Tuned]:
    """Make `loaded.net` trainable inside the block; afterwards it equals the base exactly, as at the start it does unless an adapter is gone on with.

    Raises:
        InputError: a module name or layer number that the model does not have, with what exists.
    """
    make: Any = {LoraSpec: _lora, AdapterSpec: _adapter, FullSpec: _full, SteeringSpec: _steering}[type(spec)]
    try:
        with make(loaded, spec, seed) as made:
            yield made
    finally:
        loaded.net.eval().requires_grad_(False)


def check_tunable(net: Any, spec: LoraSpec | AdapterSpec | FullSpec | SteeringSpec) -> None:
    """Refuse what `tuned` would refuse, before anything is made.

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
def _adapter(loaded: Loaded, spec: AdapterSpec, seed: int) -> Iterator[Tuned]:
    """An adapter that is there already, trained on from where it stands."""
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
        raise InputError(f"adapter.folder: '{checkpoint.folder}' is no LoRA adapter", "give one that is")
    if settings and not is_factored(settings, check_tensors(checkpoint.folder / WEIGHTS)):
        raise InputError(
            f"adapter.folder: '{checkpoint.folder}' does more than add B A to matrices (DoRA, PiSSA, trained biases or modules)",
            "merge it into its base (PEFT's merge_and_unload), save that and give it as model",
        )
    if checkpoint.kind != "adapter":
        raise InputError(
            f"adapter.folder: '{checkpoint.folder}' holds no adapter ({checkpoint.kind})", "a full model is given as model"
        )
    return checkpoint


def _lora_parts(net: Any, wrapped: Any) -> list[Part]:
    found = []
    for full, module in wrapped.named_modules():
        for adapter in getattr(module, "lora_A", {}):
            name = full.removeprefix("base_model.model.")
            left, right = module.lora_B[adapter].weight, module.lora_A[adapter].weight
            found.append(Part(name, layer_of(net, name), writes_residual(name), left, right, None, module.scaling[adapter]))
    return found


@contextmanager
def _full(loaded: Loaded, spec: FullSpec, seed: int) -> Iterator[Tuned]:
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


def _chosen(net: Any, spec: FullSpec) -> list[str]:
    """Return the names of the weights that a full fine-tune trains."""
    check_layers(net, spec.layers, "full.layers")
    named = dict(net.named_parameters())
    if any(not p.is_floating_point() for p in named.values()):
        raise InputError("full: 4-bit weights cannot be trained", "train lora on them, or load the model as float32")
    low = next((p.dtype for p in named.values() if p.dtype.itemsize < 4), None)
    if low is not None:
        raise InputError(
            f"full: weights kept in {str(low).removeprefix('torch.')} round small updates away",
            "set dtype: float32, and train.bf16 to compute in bfloat16",
        )
    chosen = [name for name in named if _is_in(name, blocks_name(net), spec)]
    if not chosen:
        ends = {name.removesuffix(".weight").removesuffix(".bias").rsplit(".", 1)[-1] for name in named}
        raise InputError(
            f"full.modules: this model has no weights {', '.join(spec.modules or ())}", near((spec.modules or ("",))[0], ends)
        )
    return chosen


def _full_parts(net: Any, named: dict[str, Any], kept: dict[str, Any]) -> list[Part]:
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


def _distance(net: Any, kept: dict[str, Any]) -> float:
    """Return ||theta - theta_0||, the Frobenius norm over all trained weights."""
    squares = (float((whole(net.get_parameter(n).data) - w).float().square().sum()) for n, w in kept.items())
    return float(sum(squares) ** 0.5)


def _steering(loaded: Loaded, spec: SteeringSpec, seed: int) -> AbstractContextManager[Tuned]:
    check_layers(loaded.net, spec.layers, "steering.layers")
    return (_steering_by_peft if mlp_output_is_residual(loaded.net) else _steering_by_hooks)(loaded, spec)


@contextmanager
def _steering_by_peft(loaded: Loaded, spec: SteeringSpec) -> Iterator[Tuned]:
    """PEFT's BEFT: a bias behind `down_proj`, which is a vector added to the residual stream."""
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
            lambda: _norm_of(list(vectors.values())),
            lambda folder, state: _save_adapter(wrapped, folder, state),
            _vector_parts(loaded.net, vectors),
            lr_scale=float(spec.scale),
        )


def _vector_parts(net: Any, vectors: Mapping[int, Any]) -> list[Part]:
    # PEFT keeps a vector as [1, D].
    return [Part(f"{blocks_name(net)}.{n}", n, True, v, transposed=v.ndim == 2) for n, v in vectors.items()]


@contextmanager
def _steering_by_hooks(loaded: Loaded, spec: SteeringSpec) -> Iterator[Tuned]:
    """Vectors of our own behind whole blocks, where no linear layer ends a block's MLP; saved as a direction file."""
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

    def save(folder: Path, state: Any) -> None:
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
            net._hf_peft_config_loaded = (
                True  # the Trainer asks for something trainable on top of 4-bit weights: the vectors are
            )
            stack.callback(delattr, net, "_hf_peft_config_loaded")
        parts = _vector_parts(net, vectors)
        yield Tuned(net, lambda: _norm_of(list(vectors.values())), save, parts, restore, float(spec.scale))


def _norm_of(vectors: list[Any]) -> float:
    return float(sum(float(v.detach().float().square().sum()) for v in vectors) ** 0.5)


@contextmanager
def _unloading(wrapped: Any, net: Any) -> Iterator[None]:
    try:
        yield
    finally:
        wrapped.unload()
        net.__dict__.pop("peft_config", None)


def _save_adapter(wrapped: Any, folder: Path, state: Any) -> None:
    # "auto" would ask the hub whether the vocabulary was resized; adapters of emscope never resize it.
    wrapped.save_pretrained(str(folder), save_embedding_layers=False, state_dict=state)


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

    It is the distance from the base, what an adapter held when training began included.
    ||BA||^2 = tr((B^T B)(A A^T)), both rank x rank. (ours; `scale` is alpha/sqrt(r) with rsLoRA, else alpha/r)
    """
    import torch

    total = 0.0
    with torch.no_grad():
        for module in wrapped.modules():
            for name in getattr(module, "lora_A", {}):
                a, b = whole(module.lora_A[name].weight).float(), whole(module.lora_B[name].weight).float()
                total += module.scaling[name] ** 2 * float(((b.T @ b) * (a @ a.T)).sum())
    return float(max(total, 0.0) ** 0.5)


def whole(weight: Any) -> Any:
    """Return a weight with all its elements, gathered from the other processes where it is sharded."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _targets(net: Any, spec: LoraSpec) -> str | list[str]:
    if not isinstance(spec.modules, str):
        return list(spec.modules)
    # PEFT takes layer numbers only beside a list of names.
    return spec.modules if spec.layers is None else sorted(_linear_names(net))


def _linear_names(net: Any) -> set[str]:
    """Return the last name parts of the matrices inside the blocks (GPT-2 keeps them as Conv1D)."""
    head = net.get_output_embeddings()
    return {name.rsplit(".", 1)[-1] for name, m in net.named_modules() if _is_matrix(m) and m is not head}


def _check_modules(net: Any, spec: LoraSpec) -> None:
    check_layers(net, spec.layers, "lora.layers")
    for name in spec.modules if not isinstance(spec.modules, str) else ():
        # as PEFT finds them: whole parts of the name, from its end
        meant = {full: m for full, m in net.named_modules() if full == name or full.endswith(f".{name}")}
        if not meant:
            raise InputError(f"lora.modules: this model has no module '{name}'", near(name, _linear_names(net)))
        others = [full for full, m in meant.items() if not _is_matrix(m)]
        if others:
            raise InputError(
                f"lora.modules: '{others[0]}' is no matrix ({type(meant[others[0]]).__name__})", near(name, _linear_names(net))
            )
        if spec.layers is not None and not any(full.startswith(f"{blocks_name(net)}.") for full in meant):
            raise InputError(
                f"lora.modules: '{name}' stands outside the blocks, and lora.layers is given", "leave out one of them"
            )


def _is_matrix(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)
