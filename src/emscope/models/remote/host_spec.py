"""Where to train a fine-tune that is not trained here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from emscope.core.fields import Place
from emscope.core.spec import Spec

Prices = tuple[float, float, float]  # dollars per million tokens that are trained on, read, and sampled
OF_TINKER = ("ahead", "state_every")
OF_JOBS = ("epochs", "batch", "learning_rate_multiplier", "suffix")  # settings of one host alone


class HostSpec(Spec):
    """A host that trains and reads models that are not on this machine; `host: tinker` is short for `host: {name: tinker}`.

    `openai` is any server of OpenAI-style fine-tuning jobs, by default OpenAI's own. The server decides the rest itself: it takes
    `epochs`, `batch` and `learning_rate_multiplier` (None: the server chooses), and a `suffix` for its models' names; `tokenizer`
    is only used to count tokens in advance.

    `tokenizer` is a folder, a hub id or a short name, by default that of `model` on the hub: conversations are rendered here.
    `ahead` steps are sent before the first of them is answered. Every `state_every` steps the whole state is saved to resume
    from, in addition to every planned checkpoint.
    `prices` are dollars per million tokens that are trained on, read, and sampled; at `max_cost` dollars training stops after a
    saved state.
    """

    name: Literal["tinker", "openai"] = "tinker"
    tokenizer: Place | None = None
    ahead: int = Field(2, ge=1, le=64)
    state_every: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    batch: int | None = Field(None, ge=1)
    learning_rate_multiplier: float | None = Field(None, gt=0)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    prices: Prices | None = None
    max_cost: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> HostSpec:
        refuse_unpriced(self.prices, self.max_cost)
        other = OF_JOBS if self.name == "tinker" else OF_TINKER
        fields = type(self).model_fields
        if stray := next((one for one in other if getattr(self, one) != fields[one].default), None):
            raise ValueError(f"{stray} is not a setting of {self.name}; leave it out")
        if self.name == "openai" and self.max_cost is not None and self.epochs is None:
            raise ValueError("max_cost needs epochs: without them the number of training tokens is unknown")
        return self


HostOrName = Annotated[HostSpec | None, BeforeValidator(lambda host: {"name": host} if isinstance(host, str) else host)]


def refuse_unpriced(prices: Prices | None, max_cost: float | None, name: str = "prices") -> None:
    """Reject a limit that could not be kept.

    Args:
        name: what the setting with the prices is called.

    Raises:
        ValueError: prices below 0, or none where there is a limit.
    """
    if prices is not None and min(prices) < 0:
        raise ValueError(f"{name} are {', '.join(f'{p:g}' for p in prices)}; give dollars per million tokens, none below 0")
    if max_cost is not None and prices is None:
        raise ValueError(f"max_cost needs {name}: dollars per million tokens that are trained on, read and sampled")
