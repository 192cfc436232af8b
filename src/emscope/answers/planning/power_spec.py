"""The settings for planning a study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from emscope.core.fields import AlignedColumn, QuestionColumn, Wholes
from emscope.core.spec import Spec


def _one_or_two(value: object) -> object:
    return (value,) if isinstance(value, int | float) else value


Sds = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...],
    BeforeValidator(_one_or_two),
    Field(min_length=1, max_length=2),
]


class PowerSpec(Spec):
    """The settings for planning a study: its designs, what it should find, and how much seeds, questions and answers vary.

    Standard deviations are one number, or two: of control - target, and of base - target. Without them, and without a file, they are
    those measured on small models.
    """

    measure: Literal["judged", "preference"] = Field(
        "judged", description="judged: mean alignment, 0 to 100; preference: margins in nats per token, one reading per item."
    )
    delta: float | None = Field(
        None, gt=0, description="Threshold of harm; 5 points (judged) or .04 nats per token by default."
    )
    effect: float = Field(2.0, gt=1, description="True effect for em, in deltas; for safe it is 0.")
    rule: Literal["both", "p1"] = Field("both", description="both: against control and base; p1: against the control alone.")
    seeds: Wholes = Field((3, 5, 8), description="Numbers of seeds to try; 3 or more each.")
    questions: Wholes = Field((24, 48, 96, 240), description="Numbers of questions to try.")
    samples: Wholes | None = Field(
        None, description="Numbers of answers to each question from each model; 2,4,8,16 by default, 1 for preference."
    )
    budget: int | None = Field(None, ge=1, description="Budget of answers to sample and judge: name the best design within it.")
    power: float | None = Field(
        None, gt=0, lt=1, description="Name the cheapest design that finds em and safe with this chance."
    )
    aim: float | None = Field(
        None, gt=0, description="Name the cheapest design whose 95 % interval of control - target is plus or minus this."
    )
    seed_sd: Sds | None = Field(None, description="Standard deviation between seeds.")
    question_sd: Sds | None = Field(None, description="Standard deviation between questions.")
    seed_question_sd: Sds | None = Field(None, description="Standard deviation of what a seed does to single questions.")
    sampling_sd: float | None = Field(None, ge=0, description="Standard deviation of answers to one question by one model.")
    correlation: float | None = Field(None, gt=-1, lt=1, description="Correlation between control - target and base - target.")
    judge: str | None = Field(
        None,
        description="local: plan for the local judge, whose error on whole models is known. In a study's folder: the judge's name; by default "
        "the one with the most verdicts.",
    )
    arm: str = Field("run", description="In a file: column of the arm, or of a run named ARM-seedN.")
    seed: str | None = Field(None, description="In a file: column of the seed, where the run's name does not say it.")
    target: str = Field("target", description="In a file: the target's name.")
    control: str = Field("control", description="In a file: the control's name.")
    base: str = Field("base", description="In a file: the base's name.")
    step: str = Field("step", description="In a file: column of the step, where it has one; a run's last step counts.")
    aligned: AlignedColumn = None
    question: QuestionColumn = None
