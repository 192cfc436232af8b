"""Lower blocks computed once: the output of a block is kept, and later passes over the same tokens start there.

Trying a direction at layer n many times (strengths, null directions) changes nothing up to the output of block n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emscope.models.fast.packed import Pack
from emscope.models.hooks.sites import blocks, shares_keys, tensor_of

if TYPE_CHECKING:
    from torch import Tensor

    from emscope.models.types import CausalLM, ModuleOutput, Stream

LIMIT = 4 << 30  # bytes

Forward = Callable[..., "ModuleOutput"]  # of a block


@contextmanager
def prefix_cached(net: CausalLM, layer: int) -> Iterator[None]:
    """Inside the block, compute blocks 0 to `layer` once for each pack of tokens; only packed passes gain from it.

    Valid as long as nothing inside changes the output of block `layer` itself: hooks on that block's output may come and go,
    since they act on the kept output just as on a computed one. Where blocks share keys and values, everything is computed every
    time.
    """
    if shares_keys(net):
        yield
        return
    kept: dict[bytes, Stream] = {}
    size = [0]
    below = [blocks(net)[n] for n in range(layer + 1)]

    def key(given: Mapping[str, object]) -> bytes | None:
        packed = given.get("emscope_pack")
        return (
            packed.key if isinstance(packed, Pack) and packed.lasting else None
        )  # not a decoding, whose blocks keep more than what flows between them

    def last(forward: Forward) -> Forward:
        passing = passed(forward, lambda given: key(given) in kept)

        def run(hidden: Tensor, *args: object, **given: object) -> ModuleOutput:
            name = key(given)
            if name in kept:
                out, stream = passing(hidden, *args, **given), kept[name].clone()
                return (stream, *out[1:]) if isinstance(out, tuple) else stream
            out = passing(hidden, *args, **given)
            stream = tensor_of(out)
            if name is not None and size[0] + stream.nbytes <= LIMIT:
                kept[name] = stream.clone()  # the output may be changed in place
                size[0] += stream.nbytes
            return out

        return run

    try:
        for block in below[:-1]:
            block.forward = passed(block.forward, lambda given: key(given) in kept)
        below[-1].forward = last(below[-1].forward)
        yield
    finally:
        for block in below:
            block.__dict__.pop("forward", None)


def passed(forward: Forward, when: Callable[[Mapping[str, object]], bool]) -> Forward:
    """Return a block's forward that hands on what comes in, in the shape of what it gives, once it has run and `when` says so of its keywords."""
    shape: list[type] = []

    def run(hidden: Tensor, *args: object, **given: object) -> ModuleOutput:
        if shape and when(given):
            return (hidden,) if shape[0] is tuple else hidden
        out = forward(hidden, *args, **given)
        shape[:] = [type(out)]
        return out

    return run
