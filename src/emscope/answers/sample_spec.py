"""What is asked of models, and how."""

from __future__ import annotations

from pydantic import Field, field_validator

from emscope.core.spec import Spec

PLACE = "{question}"
PLAIN = "none"


class AskSpec(Spec):
    """What is asked and how.

    Attributes:
        questions: a bundled set or a file. samples: answers to each; None takes the file's own number, or 1.
        systems: system prompts, each `none`, `template` or a text. triggers: texts around the question, with {question} in
            them, by name; the plain question is always asked too.
        only_last: of each run the last checkpoint alone.
    """

    questions: str = "em240"
    samples: int | None = Field(None, ge=1)
    max_tokens: int = Field(600, ge=1)
    temperature: float = Field(1.0, ge=0)
    systems: tuple[str, ...] = Field(("none",), min_length=1)
    triggers: dict[str, str] = Field(default_factory=dict)
    seed: int = Field(0, ge=0)
    rows: int | None = Field(None, ge=1)
    only_last: bool = False

    @field_validator("triggers")
    @classmethod
    def _has_a_place(cls, triggers: dict[str, str]) -> dict[str, str]:
        for name, text in triggers.items():
            if PLACE not in text:
                raise ValueError(f"trigger '{name}' has no {PLACE}; say where the question goes")
            if name == PLAIN:
                raise ValueError(f"a trigger cannot be called '{PLAIN}', which is the question without one")
        return triggers
