"""The settings of the commands that look inside a model, one class each; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emscope.core.fields import (
    ALIGNED_BELOW,
    AUTO,
    COHERENT_ABOVE,
    ITEMS,
    NO_SYSTEM,
    AlignedBelow,
    AlignedColumn,
    AnswerText,
    CoherentAbove,
    CoherentColumn,
    Dtype,
    Flag,
    Half,
    ItemSet,
    Layers,
    MaxTokens,
    Nulls,
    Place,
    Positives,
    PromptPool,
    QuestionColumn,
    QuestionSet,
    QuestionText,
    Reals,
    Samples,
    Seed,
    System,
)
from emscope.core.spec import Spec

OF_THE_FILE = "Such as 8,12,16; 0 is the first block. By default all in the file."


class ExtractSpec(Spec):
    """Where a direction comes from.

    Without `answers`, `systems` and `minus` it comes from items with two fixed answers. With `answers`, those below
    `aligned_below` are compared with those above `aligned_above`, all of them coherent.
    """

    items: ItemSet = ITEMS
    half: Half = Field("both", description="A or B: leave the other half of the items for testing.")
    answers: Place | None = Field(None, description="File of judged answers to use in place of items.")
    aligned_below: AlignedBelow = Field(ALIGNED_BELOW, description="Judged answers: misaligned are those below this.")
    aligned_above: float = Field(70.0, ge=0, le=100, description="Judged answers: aligned are those above this.")
    coherent_above: CoherentAbove = Field(
        COHERENT_ABOVE, description="Judged answers: use those more coherent than this; without a number, all of them."
    )
    aligned: AlignedColumn = None
    coherent: CoherentColumn = None
    question: QuestionText = None
    answer: AnswerText = None
    systems: tuple[str, str] | None = Field(
        None, description="Two system texts, the first asking for the behaviour, the second for its opposite."
    )
    minus: Place | None = Field(
        None,
        description="A fine-tune, or base, to subtract: what separates the model of `checkpoint` from it on the same texts, the items' questions "
        "(`pool` last) or answers.",
    )
    questions: QuestionSet = Field(ITEMS, description="With `systems`: bundled set or file of questions to answer.")
    samples: Samples = Field(1, description="With `systems`: answers to each question under each text.")
    max_tokens: MaxTokens = Field(64, description="With `systems`: the most tokens an answer may have.")
    count: int | None = Field(None, ge=2, description="Use this many items or questions.")
    method: Literal["mean", "pca", "logistic"] = Field("mean", description="mean (difference of means), pca or logistic.")
    pool: Literal["answer", "last"] = Field(
        "answer",
        description="Tokens to take the mean over: answer; with `systems` and `minus` also last, the prompt's last token.",
    )
    layers: Layers = None
    nulls: Nulls = Field(10, description="Null directions of each kind to store with it.")
    system: System = Field(NO_SYSTEM, description="System prompt of items and answers: none, template, or a text.")
    dtype: Dtype = AUTO
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_source(self) -> ExtractSpec:
        if self.answers is not None and self.systems is not None:
            raise ValueError("`answers` and `systems` are both given; use one")
        if self.minus is not None and (self.answers is not None or self.systems is not None):
            raise ValueError("`minus` compares two models on the texts of items; leave `answers` and `systems` out")
        if self.pool == "last" and self.systems is None and self.minus is None:
            raise ValueError("`pool=last` reads the prompt's end, which both sides share; use answer, or `systems` or `minus`")
        return self


class ShiftSpec(Spec):
    """Where, and on which questions, to read how far fine-tunes have moved along a direction."""

    every: bool = Field(False, description="Read all checkpoints of each run, not only the last.")
    questions: QuestionSet = ITEMS
    count: int | None = Field(None, ge=2, description="Use this many questions.")
    pool: PromptPool = "last"
    layers: Layers = Field(None, description=OF_THE_FILE)
    nulls: Nulls = 10
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0


class SteerSpec(Spec):
    """How a direction is tried.

    `way`: `add` adds scale times the direction to the residual stream after a layer, `ablate` takes its component out.
    `ablate_update` takes the direction out of what a LoRA fine-tune writes into the stream in that block, and leaves the stream
    itself alone. The null directions are tried in the same way.
    """

    way: Literal["add", "ablate", "ablate_update"] = "add"
    layers: Layers = Field(None, description=OF_THE_FILE)
    together: bool = Field(False, description="Act at all these layers at once; by default one at a time.")
    scales: Reals = Field((-2.0, -1.0, 1.0, 2.0), description="What the direction is multiplied by.")
    tokens: Literal["all", "prompt", "answer"] = Field(
        "all", description="Act at all tokens, at the prompt's or at the answer's."
    )
    items: ItemSet = ITEMS
    half: Half = Field("both", description="A or B: the half that the direction was not found on.")
    count: int | None = Field(None, ge=2, description="Use this many items.")
    neutral: int = Field(0, ge=0, description="Also read this many neutral texts, to see what it does to anything else.")
    truth: int = Field(
        0, ge=0, description="Also read this many questions on misconceptions: is the true answer the most likely?"
    )
    nulls: Nulls = Field(5, description="Try this many null directions of each kind.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0


class DiffSpec(Spec):
    """What is read: both answers of paired items, and after which blocks; the last block is always included."""

    items: ItemSet = ITEMS
    half: Half = "both"
    count: int | None = Field(
        60, ge=2, description="Use this many items, with both answers of each; all of them without a number."
    )
    layers: Layers = Field(None, description="Such as 8,12,16; 0 is the first block. By default ten, spread over the model.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0


class ProbeSpec(Spec):
    """What is probed: the score's mean over a question's answers, by `k` directions, principal ones of the training prompts or random ones.

    Folds keep the forms of a question together.
    """

    questions: QuestionSet = Field(description="The questions that were asked: bundled set or file.")
    score: str | None = Field(None, description="Column of the score; by default the alignment score, auto-detected.")
    question: QuestionColumn = Field(None, description="Column of the question's id or text; auto-detected by default.")
    where: Annotated[dict[str, str], Flag(repeated=True, shape="column=value")] = Field(
        default_factory=dict, description="Keep the rows with this value."
    )
    layers: Layers = None
    pool: PromptPool = "last"
    k: int = Field(150, ge=1, description="Directions to project on.")
    estimators: tuple[Literal["ols", "ridge", "lasso", "tree"], ...] = Field(
        ("ridge",), description="Any of ols, ridge, lasso, tree, separated by commas."
    )
    random_seeds: Annotated[int, Flag("--random")] = Field(0, ge=0, description="Also use this many sets of random directions.")
    folds: int = Field(5, ge=2, description="Parts that the questions are split into.")
    repeats: int = Field(10, ge=1, description="How many times they are split.")
    permutations: int = Field(0, ge=0, description="Shuffles of the scores, for a permutation test.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0


class SolutionsSpec(Spec):
    """What general and narrow fine-tunes are compared by: the loss on held-out answers, and the KL on plain texts."""

    domain: str = Field("finance", description="Bundled domain whose held-out answers the loss is read on.")
    answers: str | None = Field(None, description="Kind of answers that was taught; the domain's first by default.")
    count: int | None = Field(None, ge=2, description="Use this many held-out questions.")
    norms: Positives = Field(
        (0.125, 0.25, 0.5, 0.75, 1.0, 1.5),
        description="Scale updates to these effective norms, as multiples of the general ones' mean.",
    )
    amounts: Positives = Field(
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0), description="How far the weights are moved, above 0 up to 1."
    )
    draws: int = Field(2, ge=1, description="Random ways to move them.")
    texts: int = Field(60, ge=2, description="Plain texts for the divergence from the base.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0

    @model_validator(mode="after")
    def _at_most_all(self) -> SolutionsSpec:
        if max(self.amounts) > 1:
            raise ValueError(f"`amounts` reach {max(self.amounts):g}; give numbers above 0 up to 1")
        return self


class SubspaceSpec(Spec):
    """What is compared: shifts on the training prompts, whose space has `ks` directions, and on other prompts."""

    train: Place = Field("finance", description="The training prompts: bundled domain, or file of conversations.")
    questions: QuestionSet = Field(ITEMS, description="The other prompts: bundled set or file.")
    layers: Layers = None
    pool: PromptPool = "last"
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 5, 10, 20, 50), description="Numbers of directions in the subspace."
    )
    held: int = Field(5, ge=2, description="Hold every N-th training prompt out of the subspace.")
    count: int | None = Field(None, ge=4, description="Use this many prompts of each kind.")
    random_seeds: Annotated[int, Flag("--random")] = Field(5, ge=1, description="Random subspaces to compare with.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0


class RiskSpec(Spec):
    """How the samples of a training set are ranked: each answer relative to the model's own to the same prompt (persona vectors, Chen et al. 2025), or alone.

    Alone is cheaper, but includes what all answers share.
    """

    layer: int | None = Field(None, description="Layer of the direction; needed where it has several.")
    against: Literal["own", "nothing"] = Field(
        "own", description="own: less the model's own answers; nothing: the training answers alone."
    )
    max_tokens: MaxTokens = Field(64, description="The most tokens the model's own answers may have.")
    count: int | None = Field(None, ge=2, description="Rank only this many samples, drawn at random.")
    system: System = NO_SYSTEM
    dtype: Dtype = AUTO
    seed: Seed = 0
