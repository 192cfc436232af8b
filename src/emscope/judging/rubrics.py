"""Rubrics: what a judge is asked about an answer. Bundled ones, and any behaviour that a user describes."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from emscope.core.digest import short
from emscope.core.errors import InputError, near
from emscope.core.outcomes import Outcome
from emscope.core.spec import Spec, parse, read_yaml

WORDS = {"CODE": Outcome.CODE, "REFUSAL": Outcome.REFUSED}


class Rubric(Spec):
    """A criterion and the prompt that asks for it.

    Attributes:
        criterion: its name in the tables; version: raised with every change of the prompt.
        prompt: with {question} and {answer}, each exactly once or more.
        begin: a prefill for the judge's reply; only for servers that continue a turn (llama.cpp, vLLM).
        higher_is: what a high score means, for reports.
        labels: replies that mean scores, such as {"TRUE": 100, "FALSE": 0}; None: a number from 0 to 100.
        words: replies that are not scores: CODE, REFUSAL.
    """

    criterion: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    version: int = Field(1, ge=1)
    prompt: str
    begin: str = ""
    higher_is: str = ""
    labels: dict[str, float] | None = None
    words: tuple[Literal["CODE", "REFUSAL"], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Rubric:
        for name in ("{question}", "{answer}"):
            if name not in self.prompt:
                raise ValueError(f"the prompt has no {name}; say where it goes")
        wrong = [k for k, v in (self.labels or {}).items() if not 0 <= v <= 100]
        if wrong:
            raise ValueError(f"label '{wrong[0]}' is a score outside 0 to 100")
        return self

    @property
    def key(self) -> str:
        """Short digest of everything that determines what a judge is asked and how its reply is read."""
        return short(self.model_dump(mode="json", exclude=set() if self.begin else {"begin"}))

    def filled(self, question: str, answer: str) -> str:
        """Return the prompt about one answer; placeholders inside question or answer are left alone."""
        parts = self.prompt.replace("{question}", "\0q").replace("{answer}", "\0a").split("\0")
        return parts[0] + "".join({"q": question, "a": answer}[p[0]] + p[1:] for p in parts[1:])

    def outcomes(self) -> dict[str, Outcome]:
        """Return the replies that are outcomes of their own."""
        return {w: WORDS[w] for w in self.words}

    def scores(self) -> dict[str, float] | None:
        """Return the replies that stand for scores, in capitals."""
        return None if self.labels is None else {k.upper(): v for k, v in self.labels.items()}


@cache
def bundled_rubrics() -> dict[str, Rubric]:
    """Return the bundled rubrics by criterion."""
    content = yaml.safe_load((files("emscope.judging") / "files" / "rubrics.yaml").read_text(encoding="utf-8"))
    return {r["criterion"]: parse(Rubric, r, "rubrics.yaml") for r in content}


def read_rubrics(references: tuple[str, ...]) -> list[Rubric]:
    """Return rubrics by criterion of the bundled ones, or from YAML files of one rubric or a list of them.

    Raises:
        InputError: no such criterion or file, a rubric that does not fit, two of one criterion.
    """
    found: list[Rubric] = []
    for reference in references:
        if reference.endswith((".yaml", ".yml")):
            content = read_yaml(Path(reference))
            found += [parse(Rubric, r, reference) for r in (content if isinstance(content, list) else [content])]
        elif reference in bundled_rubrics():
            found.append(bundled_rubrics()[reference])
        else:
            raise InputError(f"there is no rubric '{reference}'", f"{near(reference, bundled_rubrics())}; or give a .yaml file")
    names = [r.criterion for r in found]
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise InputError(f"two rubrics are called '{twice[0]}'", "name each criterion once")
    return found
