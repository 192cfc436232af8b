"""Who judges answers, and how; and which answers go to a judge that is too expensive for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from emscope.core.digest import short
from emscope.core.spec import Spec, parse
from emscope.judging.names import BANDIT, LOCAL
from emscope.models.remote.address import check_address

if TYPE_CHECKING:
    from emscope.models.remote.api import ApiModel


class JudgingSpec(Spec):
    """How a judge is asked."""

    top: int = Field(
        20, ge=0, le=20, description="How many log-probabilities of the first token to request; 0 if the judge gives none."
    )
    max_tokens: int = Field(16, ge=1, description="The longest reply, in tokens.")
    connections: int = Field(10, ge=1, le=1000, description="Concurrent requests.")
    retries: int = Field(6, ge=0, description="Retries after a failed attempt.")
    timeout: int = Field(60, ge=1, description="Seconds that one attempt may take.")
    digits: bool = Field(
        False,
        description="If a judge's tokens split numbers, read them digit by digit (needs a server that continues a turn: llama.cpp, vLLM).",
    )
    batch: bool = Field(False, description="Use the provider's batch API, if it has one: cheaper, but hours later.")
    prices: tuple[float, float] | None = Field(None, description="Dollars per million tokens in and out, such as 2.5,10.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.prices is not None and min(self.prices) < 0:
            raise ValueError(
                f"`prices` are {self.prices[0]:g} and {self.prices[1]:g}; give dollars per million tokens, in and out"
            )
        if self.digits and self.top < 10:
            raise ValueError(f"`digits` needs at least the ten most likely tokens, but `top` is {self.top}; leave it at 20")
        return self


class JudgeSpec(JudgingSpec):
    """A judge: `local`, `bandit` (a linter of code), a model as Inspect names it, or one at the `url` of an OpenAI-compatible server."""

    name: str
    url: str | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> JudgeSpec:
        if not self.name.strip():
            raise ValueError("a judge has no name; give one such as openai/gpt-4o, or NAME@http://127.0.0.1:8080/v1")
        if self.url is not None:
            check_address(self.url, f"the address of the judge '{self.name}'")
        return self

    @property
    def local(self) -> bool:
        """True for the judge that comes with emscope and needs no key."""
        return self.name == LOCAL and self.url is None

    @property
    def here(self) -> bool:
        """True for judges that read in this process: the local one, and the linter of code."""
        return self.local or (self.name == BANDIT and self.url is None)

    @property
    def key(self) -> str:
        """What decides its verdicts: not connections, retries or prices."""
        if self.local:
            from emscope.judging.local import digest_of_bundled

            return short([self.name, digest_of_bundled()])
        return short([self.name, self.url, self.top, self.max_tokens, *(["digits"] if self.digits else [])])

    def api(self) -> ApiModel:
        """Return the model to ask."""
        from emscope.models.remote.api import ApiModel

        return ApiModel(
            self.name, self.url, self.max_tokens, 0.0, self.top, self.connections, self.retries, self.timeout, self.batch
        )


class DrawSpec(Spec):
    """`count` answers of each group that the columns `by` make, drawn without replacement; `judge` None: for every judge.

    A larger draw with the same seed keeps those drawn before.
    """

    count: int = Field(ge=2)
    judge: str | None = None
    by: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)


def judges_named(names: Iterable[str], how: JudgingSpec = JudgingSpec()) -> tuple[JudgeSpec, ...]:
    """Return judges by their names: `local`, `bandit`, models as Inspect names them, or NAME@URL; all are asked in the same way.

    Raises:
        InputError: a judge without a name.
    """
    named = [(name, *name.partition("@http")) for name in names]
    return tuple(
        parse(JudgeSpec, {**how.model_dump(), "name": model, "url": f"http{url}" if at else None}, f"judge '{name}'")
        for name, model, at, url in named
    )
