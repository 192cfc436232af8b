"""Reading what flows through a model, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from emscope.models.hooks.branches import Branch, branches, without
from emscope.models.hooks.sites import Place, check_places, stream_in

if TYPE_CHECKING:
    from torch.nn import Module

    from emscope.models.types import CausalLM, ModuleOutput, Stream

See = Callable[[Place, "Stream"], None]


def branches_at(net: CausalLM, places: Sequence[Place]) -> dict[Place, tuple[Branch, ...]]:
    """Return the modules to watch for each place (`block` and `before`: the block itself); finding them may take a forward pass.

    Raises:
        InputError: a place that the model does not have.
    """
    check_places(net, places)
    every = {site: branches(net, site) for site in dict.fromkeys(p.site for p in places)}
    for place in places:
        if not every[place.site][place.layer]:
            raise without(net, place.site, place.layer)
    return {place: every[place.site][place.layer] for place in places}


@contextmanager
def watched(at: Mapping[Place, Sequence[Branch]], see: See) -> Iterator[None]:
    """Within the block call `see(place, values [B, T, D])` for each place at each forward pass.

    Graph and dtype are the pass's own; nothing is copied, so that `see` decides what is kept. The hooks are removed on every
    exit, even if `see` or the pass raises.

    Args:
        at: as `branches_at` finds them.
    """
    with ExitStack() as stack:
        for place, parts in at.items():
            if place.site == "before":
                (block,) = parts
                stack.callback(block.module.register_forward_pre_hook(_seeing_input(place, see), with_kwargs=True).remove)
                continue
            sums: dict[str, Stream] = {}
            for part in parts:
                hook = _seeing(place, part, len(parts), sums, see)
                stack.callback(part.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def captured(net: CausalLM, places: Sequence[Place]) -> Iterator[dict[Place, Stream]]:
    """Yield a dict that holds, after each forward pass inside the block, the values [B, T, D] at each place."""
    found: dict[Place, Stream] = {}
    with watched(branches_at(net, places), found.__setitem__):
        yield found


def _seeing(place: Place, part: Branch, parts: int, sums: dict[str, Stream], see: See) -> Callable[..., None]:
    """Return a hook that shows the sum over a place's branches once the last of them has been computed."""

    def hook(module: Module, given: Sequence[Stream], named: Mapping[str, Stream], output: ModuleOutput) -> None:
        sums[part.name] = part.adds(output, given, named)
        if len(sums) == parts:
            values = list(sums.values())
            sums.clear()
            see(place, sum(values[1:], values[0]))

    return hook


def _seeing_input(place: Place, see: See) -> Callable[..., None]:
    def hook(module: Module, given: Sequence[Stream], named: Mapping[str, Stream]) -> None:
        see(place, stream_in(given, named))

    return hook
