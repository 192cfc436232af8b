"""Where a fine-tune is trained that is not trained here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from emscope.core.fields import Place
from emscope.core.spec import Spec

Prices = tuple[float, float, float]  # dollars per million tokens that are trained on, read, and sampled


class HostSpec(Spec):
    """A host that trains and reads what is not on this machine; `host: tinker` is short for `host: {name: tinker}`.

    `tokenizer` is a folder, a hub id or a short name, by default that of `model` on the hub: conversations are rendered here.
    `ahead` steps are sent before the first of them is answered. Every `state_every` steps the whole state is saved to go on from,
    beside every planned checkpoint.
    `prices` are dollars per million tokens that are trained on, read, and sampled; at `max_cost` dollars training stops behind a
    saved state.
    """

    name: Literal["tinker"] = "tinker"
    tokenizer: Place | None = None
    ahead: int = Field(2, ge=1, le=64)
    state_every: int | None = Field(None, ge=1)
    prices: Prices | None = None
    max_cost: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> HostSpec:
        refuse_unpriced(self.prices, self.max_cost)
        return self


def refuse_unpriced(prices: Prices | None, max_cost: float | None, name: str = "prices") -> None:
    """Refuse a limit that could not be held.

    Args:
        name: what the setting with the prices is called.

    Raises:
        ValueError: prices below 0, or none where there is a limit.
    """
    if prices is not None and min(prices) < 0:
        raise ValueError(f"{name} are {', '.join(f'{p:g}' for p in prices)}; give dollars per million tokens, none below 0")
    if max_cost is not None and prices is None:
        raise ValueError(f"max_cost needs {name}: dollars per million tokens that are trained on, read and sampled")
