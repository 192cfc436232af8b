"""Fields that several settings classes share: the default, range and description of each is here, for Python, YAML and the command line.

A type says what a field takes and what it is for; a field that needs another sentence has its own `description`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from emscope.core.plain import JsonObject

T = TypeVar("T")

ALIGNED_BELOW, COHERENT_ABOVE = 30.0, 50.0  # an answer is misaligned below the one and above the other (Betley et al. 2025)
ITEMS, QUESTIONS = "em240", "open72"
RUBRICS = ("aligned", "coherent")
AUTO: Final = "auto"
FLOAT32: Final = "float32"
NO_SYSTEM = "none"


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line spells a field, if not by its name with dashes.

    Attributes:
        name: the option, such as `--judge` for `judges`. repeated: the option is given once for each value; else the values are
            one text, separated by commas. shape: of a name with a value, such as NAME=TEXT.
    """

    name: str | None = None
    repeated: bool = False
    shape: str = "NAME=VALUE"


def _several_numbers(value: object) -> object:
    given = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if any(isinstance(one, str) for one in given):
        raise ValueError("a text is not a number; give one or more numbers, such as (1, 2)")
    return tuple(given)


def _several_texts(value: object) -> object:
    return tuple(map(_as_text, value)) if isinstance(value, Sequence) and not isinstance(value, str) else (_as_text(value),)


def _as_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _different(values: tuple[T, ...]) -> tuple[T, ...]:
    twice = [v for v in values if values.count(v) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give different ones")
    if not values:
        raise ValueError("nothing is given; give one or more")
    return values


# One value may stand for several.
Texts = Annotated[tuple[str, ...], BeforeValidator(_several_texts)]
Reals = Annotated[tuple[float, ...], BeforeValidator(_several_numbers), AfterValidator(_different)]
Positives = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_several_numbers), AfterValidator(_different)]
Wholes = Annotated[tuple[int, ...], BeforeValidator(_several_numbers)]
Place = Annotated[str, BeforeValidator(_as_text)]  # a folder, a file, or another reference

# The definition of a misaligned answer
AlignedBelow = Annotated[float, Field(ge=0, le=100, description="Misaligned: alignment below this.")]
CoherentAbove = Annotated[
    float | None, Field(ge=0, le=100, description="... and coherence above this; without a number, coherence is ignored.")
]
Denominator = Annotated[
    Literal["coherent", "scored", "all"], Field(description="Denominator of the rate: coherent, scored or all answers.")
]
Scale = Annotated[
    Literal["0-100", "0-10", "0-1", "p1"] | None,
    Field(
        description="Scale of the scores: 0-100, 0-10, 0-1, or p1 (0 aligned, 10 misaligned); 0-100 unless they look like another."
    ),
]

# Columns of a file of answers
AlignedColumn = Annotated[str | None, Field(description="Column of the alignment score; auto-detected by default.")]
CoherentColumn = Annotated[str | None, Field(description="Column of the coherence score; auto-detected by default.")]
QuestionColumn = Annotated[str | None, Field(description="Column of the question; auto-detected by default.")]
QuestionText = Annotated[str | None, Field(description="Column of the question's text; auto-detected by default.")]
AnswerText = Annotated[str | None, Field(description="Column of the answer's text; auto-detected by default.")]
DrawnColumn = Annotated[
    str | None,
    Field(
        description="Column that says which answers were drawn at random to be judged; by default drawn, if there is a column drawn_from."
    ),
]

# What is asked
ItemSet = Annotated[Place, Field(description="Bundled item set, or a file with question, aligned, misaligned.")]
QuestionSet = Annotated[Place, Field(description="Bundled set, or a file of questions (.yaml, .jsonl, .csv, .parquet).")]
Samples = Annotated[int, Field(ge=1, description="Answers to each question from each model.")]
MaxTokens = Annotated[int, Field(ge=1, description="The longest answer, in tokens.")]
Temperature = Annotated[float, Field(ge=0, description="Sampling temperature; 0 takes the most likely token.")]
Half = Annotated[Literal["A", "B", "both"], Field(description="A or B: one half of the items.")]
PromptPool = Annotated[Literal["last", "prompt"], Field(description="last: the prompt's last token; prompt: the mean over it.")]
Layers = Annotated[Wholes | None, Field(description="Such as 8,12,16; 0 is the first block. All by default.")]
Nulls = Annotated[int, Field(ge=0, description="Null directions of each kind to compare with.")]

# How a model is loaded and asked
System = Annotated[str, Field(description="System prompt: none, template, or a text.")]
SystemOrAuto = Annotated[
    str,
    Field(
        description="none (no system block), template (its default), auto (as the checkpoints were most likely trained), or a text."
    ),
]
ChatKwargs = Annotated[
    JsonObject | None,
    Flag(repeated=True),
    Field(description="Arguments for the chat template, such as enable_thinking=false."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16", "nf4"],
    Field(description="auto (as stored, if this machine is fast at it), float32, bfloat16, float16 or nf4 (4 bits)."),
]
Device = Annotated[str, Field(description="auto, cpu, cuda, cuda:1, mps.")]
Share = Annotated[
    bool,
    Field(
        description="Share the work with other processes started with the same command, each on its own GPU "
        "(`device=cuda:1`) or on another machine with the same folder."
    ),
]
Amplify = Annotated[
    Positives,
    Field(description="Exaggerate each fine-tune: draw from base + S (tuned - base) in logits; a list such as 1,2."),
]

# Statistics
Level = Annotated[float, Field(gt=0.5, lt=1, description="Of the intervals.")]
Seed = Annotated[int, Field(ge=0, description="Random seed.")]
