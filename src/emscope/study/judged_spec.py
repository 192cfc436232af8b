"""What is asked of each checkpoint, and who judges the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, model_validator

from emscope.answers.judge_spec import JudgeSpec, judges_named
from emscope.answers.sample_spec import PLACE, PLAIN, AskSpec
from emscope.core.fields import (
    ALIGNED_BELOW,
    COHERENT_ABOVE,
    RUBRICS,
    AlignedBelow,
    CoherentAbove,
    Denominator,
    System,
)
from emscope.core.spec import Spec, parse


class ConditionSpec(Spec):
    """Another way to put a study's questions: `trigger`, a text that contains {question}, and `system`: none, template, or a text."""

    trigger: str | None = None
    system: System | None = None

    @model_validator(mode="after")
    def _one(self) -> ConditionSpec:
        if self.trigger is None and self.system is None:
            raise ValueError("give trigger, system, or both")
        if self.trigger is not None and PLACE not in self.trigger:
            raise ValueError(f"trigger '{self.trigger}' has no {PLACE}; say where the question goes")
        return self


class JudgedSpec(Spec):
    """Answers sampled from each checkpoint and what judges say about them; without judges the answers alone.

    `at`: every checkpoint that is read, or the last of each run. The first judge decides.
    `delta`: points of mean alignment, at equal coherence, that count as harm.
    `conditions`: further ways to put the same questions, by name; base, controls and targets are asked under each, and each is
    read by itself. No verdict of the study rests on them.
    Judges, rubrics and thresholds may change later: the answers stay, and only missing verdicts are asked for.
    """

    ask: AskSpec = AskSpec(samples=1, max_tokens=200)
    at: Literal["all", "last"] = "all"
    judges: tuple[JudgeSpec, ...] = ()
    rubrics: tuple[str, ...] = RUBRICS
    aligned_below: AlignedBelow = ALIGNED_BELOW
    coherent_above: CoherentAbove = COHERENT_ABOVE
    denominator: Denominator = "coherent"
    delta: float = Field(5.0, gt=0)
    conditions: dict[str, ConditionSpec] = Field(default_factory=dict)
    max_cost: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> JudgedSpec:
        if self.ask.triggers or self.ask.systems != ("none",):
            raise ValueError(
                "a study asks its questions without triggers, under its own system prompt; name others under conditions"
            )
        if PLAIN in self.conditions:
            raise ValueError(f"a condition cannot be called '{PLAIN}', which is the question as it is; rename it")
        names = [j.name for j in self.judges]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"two judges are called '{twice}'; name each once")
        if self.max_cost is not None and any(j.prices is None for j in self.judges):
            raise ValueError("max_cost needs the prices of each judge, in dollars per million tokens in and out")
        wanted = ["aligned", *(["coherent"] if self.coherent_above is not None else [])]
        missing = [w for w in wanted if self.judges and w not in self.rubrics and not any(".y" in r for r in self.rubrics)]
        if missing:
            raise ValueError(f"rubrics lack '{missing[0]}', which the rate needs")
        return self


def judged_by(
    questions: str,
    samples: int,
    max_tokens: int,
    temperature: float,
    judges: Sequence[str],
    triggers: Mapping[str, str] | None = None,
) -> JudgedSpec:
    """Return what to ask, also under which triggers, and who judges the answers: `local`, a model as Inspect names it, or NAME@URL.

    Raises:
        InputError: settings that do not fit.
    """
    ask = {"questions": questions, "samples": samples, "max_tokens": max_tokens, "temperature": temperature}
    under = {name: {"trigger": text} for name, text in (triggers or {}).items()}
    return parse(JudgedSpec, {"ask": ask, "at": "last", "judges": judges_named(judges), "conditions": under}, "")
