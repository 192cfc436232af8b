"""Finding a model's blocks and the places inside them by structure, not by architecture name."""

from __future__ import annotations

from typing import Any

from emscope.core.errors import InputError


def blocks(net: Any) -> Any:
    """Return the list of transformer blocks of a causal LM, in order (block 0 is the first).

    Raises:
        InputError: where the model has no list of `num_hidden_layers` modules.
    """
    return net.get_submodule(blocks_name(net))


def blocks_name(net: Any) -> str:
    """Return the dotted name of the list of blocks, such as `model.layers`.

    It is the one that the model's configuration names as `emscope_blocks`, else the first list as long as the model is deep.

    Raises:
        InputError: there is none, with how to name it.
    """
    import torch

    depth = net.config.get_text_config().num_hidden_layers
    named = getattr(net.config, "emscope_blocks", None)
    if named is not None:
        return _named(net, named)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == depth:
            return str(name)
    raise InputError(
        f"{type(net).__name__} has no list of {depth} blocks that emscope can find",
        f'name it in the model\'s config.json, such as "emscope_blocks": "{_longest(net)}"',
    )


def _named(net: Any, name: Any) -> str:
    import torch

    if isinstance(dict(net.named_modules()).get(name), torch.nn.ModuleList):
        return str(name)
    raise InputError(f"emscope_blocks: {type(net).__name__} has no list of blocks '{name}'", f"try '{_longest(net)}'")


def _longest(net: Any) -> str:
    """Return the name of the model's longest list of modules, the likeliest to be its blocks."""
    import torch

    lists = {name: len(m) for name, m in net.named_modules() if isinstance(m, torch.nn.ModuleList)}
    return max(lists, key=lambda name: lists[name]) if lists else "model.layers"


def check_layers(net: Any, layers: tuple[int, ...] | None, where: str) -> None:
    """Refuse block numbers that the model does not have.

    Raises:
        InputError: naming `where` the number was given.
    """
    depth = len(blocks(net))
    for layer in layers or ():
        if not 0 <= layer < depth:
            raise InputError(f"{where}: layer {layer} is out of range", f"this model has layers 0 to {depth - 1}")


RESIDUAL = ("o_proj", "out_proj", "c_proj", "down_proj", "dense_4h_to_h", "attention.dense", "fc2", "wo", "w2")


def layer_of(net: Any, name: str) -> int | None:
    """Return the block that a module or parameter stands in, None where it stands in none."""
    prefix = f"{blocks_name(net)}."
    place = name.find(prefix)
    number = name[place + len(prefix) :].split(".", 1)[0] if place >= 0 else ""
    return int(number) if number.isdigit() else None


def writes_residual(name: str) -> bool:
    """True for a matrix, by its module's name, whose output joins the residual stream."""
    return name.endswith(RESIDUAL)


def mlp_output_is_residual(net: Any) -> bool:
    """True where each block ends in `down_proj`, an ordinary linear layer whose output joins the residual stream as it is.

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
