"""Reading what flows through a model, without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from emscope.models.hooks.sites import Place, check_places, site_modules, stream_in, tensor_of


def modules_at(net: Any, places: Sequence[Place]) -> dict[Place, Any]:
    """Return the module to watch for each place; finding it may take a forward pass.

    Raises:
        InputError: a place that the model does not have.
    """
    check_places(net, places)
    every = {site: site_modules(net, site) for site in dict.fromkeys(p.site for p in places)}
    return {place: every[place.site][place.layer] for place in places}


@contextmanager
def watched(modules: Mapping[Place, Any], see: Callable[[Place, Any], None]) -> Iterator[None]:
    """Within the block call `see(place, values [B, T, D])` for each place at each forward pass.

    Graph and dtype are the pass's own; nothing is copied, so that `see` decides what is kept. The watching is gone on every
    exit, also where `see` or the pass raises.

    Args:
        modules: as `modules_at` finds them.
    """
    with ExitStack() as stack:
        for place, module in modules.items():
            if place.site == "before":
                handle = module.register_forward_pre_hook(_seeing_input(place, see), with_kwargs=True)
            else:
                handle = module.register_forward_hook(_seeing(place, see))
            stack.callback(handle.remove)
        yield


@contextmanager
def captured(net: Any, places: Sequence[Place]) -> Iterator[dict[Place, Any]]:
    """Yield a dict that holds, after each forward pass inside the block, the values [B, T, D] at each place."""
    found: dict[Place, Any] = {}
    with watched(modules_at(net, places), found.__setitem__):
        yield found


def _seeing(place: Place, see: Callable[[Place, Any], None]) -> Any:
    def hook(module: Any, given: Any, output: Any) -> None:
        see(place, tensor_of(output))

    return hook


def _seeing_input(place: Place, see: Callable[[Place, Any], None]) -> Any:
    def hook(module: Any, given: Any, named: Any) -> None:
        see(place, stream_in(given, named))

    return hook
