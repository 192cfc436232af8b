"""What is asked of models, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from emscope.core.fields import (
    AUTO,
    ITEMS,
    NO_SYSTEM,
    Amplify,
    ChatKwargs,
    Device,
    Dtype,
    Flag,
    MaxTokens,
    QuestionSet,
    Seed,
    Share,
    Temperature,
    Texts,
)
from emscope.core.spec import Spec
from emscope.models.remote.host_spec import Prices, refuse_unpriced

PLACE = "{question}"
PLAIN = "none"


class AskSpec(Spec):
    """What is asked of models, and how. Without `samples`, each question is asked as often as its file says, or once."""

    questions: QuestionSet = ITEMS
    samples: int | None = Field(None, ge=1, description="Answers to each; by default the file's own number, or 1.")
    max_tokens: MaxTokens = 600
    temperature: Temperature = 1.0
    systems: Annotated[Texts, Flag("--system", repeated=True)] = Field(
        (NO_SYSTEM,),
        min_length=1,
        description="none, template, auto (as the runs were most likely trained), or a text.",
    )
    triggers: Annotated[dict[str, str], Flag("--trigger", repeated=True, shape="NAME=TEXT")] = Field(
        default_factory=dict,
        description="Named text that contains {question}; the plain question is always asked too.",
    )
    only_last: Annotated[bool, Flag("--last")] = Field(False, description="Sample only the last checkpoint of each run.")
    seed: Seed = Field(0, description="Of all draws.")
    rows: int | None = Field(
        None,
        ge=1,
        description="Answers to generate side by side; fewer need less memory. The default suits the device.",
    )

    @field_validator("triggers")
    @classmethod
    def _has_a_place(cls, triggers: dict[str, str]) -> dict[str, str]:
        for name, text in triggers.items():
            if PLACE not in text:
                raise ValueError(f"trigger '{name}' has no {PLACE}; say where the question goes")
            if name == PLAIN:
                raise ValueError(f"a trigger cannot be called '{PLAIN}', which is the question without one")
        return triggers


class LoadSpec(Spec):
    """How models are loaded here, and read."""

    chat_kwargs: ChatKwargs = None
    amplify: Amplify = (1.0,)
    dtype: Dtype = AUTO
    device: Device = AUTO
    share: Share = False


class ServedSpec(Spec):
    """How models behind an API are asked: where, and how hard. `chat_kwargs` are given to the server's chat template."""

    server: str | None = Field(
        None, description="MODEL@URL of a server that takes LoRA adapters (vLLM): the runs' folders are loaded into it."
    )
    command: Annotated[str | None, Flag("--server-command")] = Field(
        None, description="Command that starts that server; it is stopped afterwards."
    )
    restart_every: int = Field(
        50, ge=1, description="Restart the server after this many adapters, since each leaks host memory."
    )
    connections: int = Field(32, ge=1, le=1000, description="Concurrent requests to a server.")
    retries: int = Field(6, ge=0, description="Attempts after a failed request.")
    timeout: int = Field(600, ge=1, description="Seconds that one request may take.")
    chat_kwargs: ChatKwargs = None
    prices: Prices | None = Field(
        None,
        description="For fine-tunes at a host: dollars per million tokens trained on, read and sampled, such as 0.4,0.1,0.4.",
    )
    max_cost: float | None = Field(
        None, ge=0, description="For fine-tunes at a host: stop before the requests cost more than this many dollars."
    )

    @model_validator(mode="after")
    def _priced(self) -> ServedSpec:
        refuse_unpriced(self.prices, self.max_cost)
        return self
