"""A tiny random model with the structure of a large one: whatever depends only on structure works on both or neither.

Widths, depth and the number of experts become small; kinds of layers, windows, ratios of heads, low-rank attention, rotations and
the vocabulary stay.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from emscope.core.errors import InputError
from emscope.core.plain import Json, JsonObject
from emscope.models.loading.load import body_named

if TYPE_CHECKING:
    from emscope.models.types import CausalLM, Config

HEADS, HEAD, INNER, EXPERTS, GROUPS, CHOSEN = 4, 16, 96, 8, 2, 2
TOWER_HEADS = 2
MOST_LAYERS = 6
LARGEST = 400_000_000  # weights of a copy whose widths could not be made small
TOP_K = ("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_topk", "moe_k")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def tiny_model(config: Config, *, seed: int = 0) -> CausalLM:
    """Return a tiny random causal LM with the structure that `config` describes, in float32 and evaluation mode.

    Raises:
        InputError: no copy can be made that runs a forward pass, with the reason.
    """
    import torch

    from emscope.models.sizing.simulated import whole_model

    faults = []
    for narrow in (True, False):
        try:
            small = tiny_config(config, narrow=narrow)
            if not narrow and _weights(small) > LARGEST:
                continue
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                net = body_named(_loud(whole_model(small, dtype=torch.float32)))
            with torch.no_grad():
                found = net(input_ids=torch.arange(1, 6)[None], use_cache=False).logits
            if bool(found.isfinite().all()):
                return net
            faults.append("its logits are not numbers")
        except Exception as error:  # whatever an architecture does with unusual sizes
            faults.append(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200])
    raise InputError(
        f"no tiny copy of a {getattr(config, 'model_type', '?')} model can be made ({'; '.join(dict.fromkeys(faults))})",
        "give the weights themselves, on a machine that can hold them",
    )


def _loud(net: CausalLM) -> CausalLM:
    """Return the model with larger weights: at the usual scale a random model is near-uniform, and no fault would show."""
    import torch

    net.eval().requires_grad_(False)
    for p in net.parameters():
        p.mul_(3.0) if p.ndim >= 2 else p.add_(0.2 * torch.randn_like(p))
    return net


def _weights(config: Config) -> int:
    from emscope.models.sizing.memory import counted

    return counted(config).parameters


def tiny_config(config: Config, *, narrow: bool = True) -> Config:
    """Return the configuration of a small model with the same structure.

    Args:
        narrow: make widths small too, not depth and experts alone.
    """
    settings, text = copy.deepcopy(config.to_dict()), config.get_text_config()
    place = next((k for k in getattr(config, "sub_configs", {}) if getattr(config, k, None) is text), None)
    inner = settings[place] if place else settings
    assert isinstance(inner, dict), "a configuration's part is an object"
    names: Mapping[str, str] = getattr(text, "attribute_map", {})
    old = int(text.hidden_size)
    _shrink(inner, names, narrow=narrow)
    new = _number(inner, names.get("hidden_size", "hidden_size"))
    for name, part in settings.items():
        if isinstance(part, dict) and name.endswith("_config") and name != place:
            _shrink_tower(part, old, new, narrow=narrow)
    settings.pop("transformers_version", None)
    return type(config).from_dict(settings)


def _number(t: Mapping[str, Json], name: str, default: int | None = None) -> int:
    """Return a setting that is a whole number.

    Raises:
        TypeError: it is not, which `tiny_model` reports.
    """
    value = t.get(name, default)
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}")
    return value


def _cap(t: JsonObject, name: str, most: int) -> None:
    """Make a setting at most `most`, where it is a whole number."""
    value = t.get(name)
    if isinstance(value, int):
        t[name] = min(value, most)


def _shrink(t: JsonObject, names: Mapping[str, str], *, narrow: bool) -> None:
    """Make a text model's settings small, in place. Args: names: the settings' own names of the usual ones."""

    def key(name: str) -> str:
        return str(names.get(name, name))

    _keep_layers(t, _number(t, key("num_hidden_layers")), key("num_hidden_layers"))
    for name in EXPERT_COUNTS:
        _cap(t, key(name), EXPERTS)
    for name in TOP_K:
        _cap(t, key(name), CHOSEN)
    groups = t.get("n_group")
    if isinstance(groups, int) and groups > 1:
        t["n_group"] = GROUPS
        _cap(t, "topk_group", GROUPS - 1)
    if narrow:
        _narrow(t, key)


def _narrow(t: JsonObject, key: Callable[[str], str]) -> None:
    heads, groups = _number(t, key("num_attention_heads")), t.get(key("num_key_value_heads"))
    few = min(heads, HEADS)
    low_rank = t.get("kv_lora_rank") is not None
    own = isinstance(t.get("head_dim"), int) and not low_rank
    head = _number(t, "head_dim") if own else _number(t, key("hidden_size")) // heads
    t[key("num_attention_heads")], t[key("hidden_size")] = few, HEADS * HEAD
    if isinstance(groups, int):
        t[key("num_key_value_heads")] = few if groups == heads else max(1, min(groups, few // 2))
    for name in ("head_dim", "global_head_dim", "v_head_dim") if own else ():
        if isinstance(t.get(name), int):
            t[name] = HEAD
    if isinstance(t.get("num_global_key_value_heads"), int):
        t["num_global_key_value_heads"] = t[key("num_key_value_heads")]
    for name, value in t.items():
        if (
            isinstance(value, int)
            and re.search(r"intermediate_size|^ffn_dim$|^n_inner$|^ffn_hidden_size$", name)
            and value > INNER
        ):
            t[name] = INNER
    if isinstance(t.get("hidden_size_per_layer_input"), int):
        t["hidden_size_per_layer_input"] = HEAD
    if not low_rank:
        for name in ("rope_parameters", "rope_scaling"):
            _turn(t.get(name), head, HEAD if own else HEADS * HEAD // few)
    _narrow_mamba(t)


def _narrow_mamba(t: JsonObject) -> None:
    if not isinstance(t.get("mamba_n_heads"), int):
        return
    inside = _number(t, "mamba_expand", 2) * HEADS * HEAD
    if isinstance(t.get("mamba_d_ssm"), int):
        t["mamba_d_ssm"] = inside
    t["mamba_d_head"], t["mamba_n_heads"], t["mamba_n_groups"] = HEAD, inside // HEAD, 1
    t["mamba_d_state"] = min(_number(t, "mamba_d_state", HEAD), HEAD)


def _turn(rope: Json, old: int, new: int) -> None:
    """Fit rotations of heads `old` wide to heads `new` wide: lists of factors, and sections that share the planes."""
    if not isinstance(rope, dict):
        return
    for inner in rope.values():
        _turn(inner, old, new)
    part = rope.get("partial_rotary_factor", 1.0)
    planes = int(new * part) // 2 if isinstance(part, int | float) else new // 2
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if isinstance(factors, list):
            rope[name] = factors[:planes]
    sections = rope.get("mrope_section")
    if isinstance(sections, list):
        whole = sum(sections)
        parts = [n * planes // whole for n in sections]
        parts[0] += planes - sum(parts)
        rope["mrope_section"] = parts


def _keep_layers(t: JsonObject, depth: int, name: str) -> None:
    """Keep the first layer of each kind, two at least; lists of one value per layer and of layers' numbers follow."""
    lists = {k: v for k, v in t.items() if isinstance(v, list) and len(v) == depth and depth > 1}
    numbered = {k: v for k, v in t.items() if k not in lists and _is_numbers(v, k, depth)}
    dense = _number(t, "first_k_dense_replace") if t.get("first_k_dense_replace") else 0
    kinds: dict[tuple[object, ...], int] = {}
    for n in range(depth):
        told = (*(repr(v[n]) for v in lists.values()), *(n in v for v in numbered.values()), n >= dense)
        kinds.setdefault(told, n)
    kept = sorted([*kinds.values()][:MOST_LAYERS])
    kept = sorted([*kept, *[n for n in range(depth) if n not in kept][: max(0, 2 - len(kept))]])
    for k, v in lists.items():
        t[k] = [v[n] for n in kept]
    for k, numbers in numbered.items():
        t[k] = [place for place, n in enumerate(kept) if n in numbers]
    if dense:
        t["first_k_dense_replace"] = sum(n < dense for n in kept)
    _cap(t, "num_kv_shared_layers", 0)
    t[name] = len(kept)


def _is_numbers(value: Json, name: str, depth: int) -> TypeGuard[Sequence[int]]:
    """True for a list of layers' numbers."""
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not re.search(r"layers$|layers?_ind|indexes$|indices$", name)
    ):
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < depth for n in value)


def _shrink_tower(part: JsonObject, old: int, new: int, *, narrow: bool) -> None:
    """Make a tower for images or sound small; what it hands to the text model is as wide as that (`old`, now `new`)."""
    for name in ("depth", "num_hidden_layers", "encoder_layers", "num_layers"):
        if isinstance(part.get(name), int):
            part[name] = 1
    for name, value in part.items():
        if value == old and name in ("out_hidden_size", "projection_dim", "output_dim", "lm_hidden_size"):
            part[name] = new
        if _is_numbers(value, name, 1 << 20):
            part[name] = [n for n in value if n < 1]
    heads = next((name for name in ("num_heads", "num_attention_heads") if isinstance(part.get(name), int)), None)
    if narrow and heads and isinstance(part.get("hidden_size"), int):
        part[heads], part["hidden_size"] = TOWER_HEADS, TOWER_HEADS * HEAD
        for name, size in (("head_dim", HEAD), ("num_key_value_heads", TOWER_HEADS), ("intermediate_size", INNER)):
            if isinstance(part.get(name), int):
                part[name] = size
