"""Finding a model's blocks and the places inside them by structure, not by architecture name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from emscope.core.errors import InputError, near

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, ModuleList

    from emscope.models.types import CausalLM, ModuleOutput, Stream


def blocks(net: CausalLM) -> ModuleList:
    """Return the list of transformer blocks of a causal LM, in order (block 0 is the first).

    Raises:
        InputError: where the model has no list of `num_hidden_layers` modules.
    """
    return cast("ModuleList", net.get_submodule(blocks_name(net)))


def blocks_name(net: CausalLM) -> str:
    """Return the dotted name of the list of blocks, such as `model.layers`.

    It is the one that the model's configuration names as `emscope_blocks`, else the first list as long as the model is deep.

    Raises:
        InputError: there is none; the error says how to name it.
    """
    import torch

    depth = net.config.get_text_config().num_hidden_layers
    named = getattr(net.config, "emscope_blocks", None)
    if named is not None:
        return _named(net, named)
    for name, module in net.get_decoder().named_modules(prefix=decoder_name(net)):
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return str(name)
    raise InputError(
        f"{type(net).__name__} has no list of {depth} blocks that emscope can find",
        f'name it in the model\'s config.json, such as "emscope_blocks": "{_longest(net)}"',
    )


def decoder_name(net: CausalLM) -> str:
    """Return the dotted name of the part that reads text, not the tower of a model that takes images too, which may be as deep."""
    decoder = net.get_decoder()
    return next(str(name) for name, module in net.named_modules() if module is decoder)


def _named(net: CausalLM, name: object) -> str:
    import torch

    if isinstance(dict(net.named_modules()).get(name), torch.nn.ModuleList):
        return str(name)
    raise InputError(f"emscope_blocks: {type(net).__name__} has no list of blocks '{name}'", f"try '{_longest(net)}'")


def _longest(net: CausalLM) -> str:
    """Return the name of the model's longest list of modules, most likely its blocks."""
    import torch

    lists = {name: len(m) for name, m in net.named_modules() if isinstance(m, torch.nn.ModuleList)}
    return max(lists, key=lambda name: lists[name]) if lists else "model.layers"


def check_layers(net: CausalLM, layers: tuple[int, ...] | None, where: str) -> None:
    """Reject block numbers that the model does not have.

    Raises:
        InputError: naming `where` the number was given.
    """
    depth = len(blocks(net))
    for layer in layers or ():
        if not 0 <= layer < depth:
            raise InputError(f"{where}: layer {layer} is out of range", f"this model has layers 0 to {depth - 1}")


RESIDUAL = ("o_proj", "out_proj", "c_proj", "down_proj", "dense_4h_to_h", "attention.dense", "fc2", "wo", "w2")


def layer_of(net: CausalLM, name: str) -> int | None:
    """Return the block that a module or parameter is in; None outside the blocks."""
    prefix = f"{blocks_name(net)}."
    place = name.find(prefix)
    number = name[place + len(prefix) :].split(".", 1)[0] if place >= 0 else ""
    return int(number) if number.isdigit() else None


def writes_residual(name: str) -> bool:
    """True for a matrix, by its module's name, whose output is added to the residual stream."""
    return name.endswith(RESIDUAL)


def mlp_output_is_residual(net: CausalLM) -> bool:
    """True where each block ends in `down_proj`, an ordinary linear layer whose output is added to the residual stream unchanged.

    Not so on GPT-2 (its matrices are Conv1D) and where a norm follows the MLP (Gemma 2 and 3, OLMo 2).
    """
    import torch

    for block in blocks(net):
        parts = dict(block.named_modules())
        if type(parts.get("mlp.down_proj")) is not torch.nn.Linear:
            return False
        if any(name in parts for name in ("post_feedforward_layernorm", "post_mlp_layernorm")):
            return False
    return True


SITES = ("block", "before", "mixer", "attention", "mlp")


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: `site` of block `layer`.

    `block`: the residual stream after the block; `before`: before it; `mixer`, `attention`, `mlp`: what that part adds to
    the stream (the mixer is the block's attention, or what replaces it or runs beside it). Block 0 is the first; `before` 0 is
    the embeddings.
    """

    site: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"


def check_places(net: CausalLM, places: Sequence[Place], where: str = "places") -> None:
    """Reject places that the model does not have.

    Raises:
        InputError: a site that does not exist, with the near name, or a layer out of range.
    """
    for place in places:
        if place.site not in SITES:
            raise InputError(f"{where}: there is no site '{place.site}'", near(place.site, SITES))
    check_layers(net, tuple(p.layer for p in places), where)


def shares_keys(net: CausalLM) -> bool:
    """Tell whether upper blocks take keys and values from lower ones, so that more than the stream passes from block to block (Gemma 3n and 4)."""
    return bool(getattr(net.config.get_text_config(), "num_kv_shared_layers", 0))


def stream_in(given: Sequence[Stream], named: Mapping[str, Stream]) -> Stream:
    """Return the residual stream among the arguments of a block."""
    return given[0] if given else named["hidden_states"]


def final_norm(net: CausalLM) -> Module:
    """Return the module between the last block and the output head, found beside the blocks and checked on a small probe.

    Raises:
        InputError: no module there fits; the error says how to name it.
    """
    import torch

    where = blocks_name(net).rpartition(".")[0]
    beside = net.get_submodule(where)
    seen: dict[str, Stream] = {}

    def keep(module: Module, given: object, output: ModuleOutput) -> None:
        seen["stream"] = tensor_of(output)

    handle = blocks(net)[-1].register_forward_hook(keep)
    try:
        with torch.no_grad():
            probe = torch.arange(1, 5, device=net.device)[None]
            last = net.base_model(input_ids=probe, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    named = getattr(net.config, "emscope_final_norm", None)
    others = [(n, m) for n, m in beside.named_children() if not isinstance(m, torch.nn.ModuleList | torch.nn.Embedding)]
    for name, module in others:
        if named in (None, name) and _gives(module, seen["stream"], last):
            return module
    if torch.equal(seen["stream"], last):
        return torch.nn.Identity()
    raise InputError(
        f"{type(net).__name__} has no norm after its blocks that emscope can find",
        f'name it in the model\'s config.json, such as "emscope_final_norm": "norm"; there are {", ".join(n for n, _ in others)}',
    )


def _gives(module: Module, given: Stream, expected: Stream) -> bool:
    import torch

    try:
        with torch.no_grad():
            found = module(given)
    except Exception:  # a module of another kind, called with what it does not take
        return False
    return (
        isinstance(found, torch.Tensor)
        and found.shape == expected.shape
        and torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    )


def tensor_of(output: ModuleOutput) -> Tensor:
    """Return the tensor of a module's output, which some give alone and some first of several."""
    return output[0] if isinstance(output, tuple) else output
