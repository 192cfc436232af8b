"""Answers sampled while a direction is added to a model or taken out of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from emscope.answers.sample import Acting, Local, ask_subjects, check_subjects, digest_of, prompts_of, write_answers
from emscope.answers.sample_spec import AskSpec
from emscope.answers.trained_as import trained_under
from emscope.core.digest import short
from emscope.core.fields import FLOAT32
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.seeds import derive
from emscope.data.questions import read_questions
from emscope.inside.bands import nulls_of
from emscope.inside.steer import (
    NOTHING,
    REAL,
    Condition,
    SteerSpec,
    Subject,
    acting,
    conditions_of,
)
from emscope.inside.subject import check_fits
from emscope.models.hooks.directions import direction_at
from emscope.models.loading.checkpoints import last, named_base
from emscope.models.loading.load import load, pick_dtype
from emscope.models.loading.source import locate
from emscope.models.made_with import made_with
from emscope.store.study import Study


def sample_steered(
    direction: str,
    spec: SteerSpec,
    asked: AskSpec,
    out: Path,
    *,
    base: str | None = None,
    checkpoint: str | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Path:
    """Sample answers of a model as it is and under each condition; return the file they are in.

    The column `run` says which: `untouched`, or the direction's kind, layers and strength. Called again, it does only what is missing.

    Raises:
        InputError: direction, model and settings that do not fit together.
    """
    tuned = last(checkpoint) if checkpoint else None
    under = [trained_under(system, [tuned] if tuned else [])[0] for system in asked.systems]
    asked = asked.model_copy(update={"systems": tuple(dict.fromkeys(under))})
    model = locate(base or named_base([tuned] if tuned else []))
    found = direction_at(direction)
    questions = read_questions(asked.questions)
    settings = asked.model_dump(mode="json", exclude={"rows", "samples", "only_last", "questions"})
    dtype = pick_dtype(spec.dtype, model, device, [tuned] if tuned else [])
    other: JsonObject = {"dtype": dtype} if dtype != FLOAT32 else {}  # folders from before there was a choice have float32
    frozen = settings | {"questions": digest_of(questions), "base": model.digest, "way": spec.way} | other
    with Study(out, frozen, made_with()) as study:
        loaded = load(model, dtype=dtype, device=device, checkpoints=[tuned] if tuned else [])
        check_fits(loaded, found, direction)
        subject = Subject(
            direction, found, nulls_of(found, [], spec.nulls, derive(spec.seed, "subject", 0)), checkpoint or "base", tuned
        )
        prompts = {p.name: p for p in prompts_of(loaded, questions, asked)}
        subjects = [Local(_name(c, spec), tuned, _acting(c, spec)) for c in conditions_of(subject, spec)]
        check_subjects(study, subjects)
        ask_subjects(study, loaded, asked, prompts, subjects, progress)
        return write_answers(study)


def _name(condition: Condition, spec: SteerSpec) -> str:
    if condition.kind == NOTHING:
        return "untouched"
    kind = condition.kind if condition.kind == REAL else f"{condition.kind} {condition.draw + 1}"
    layers = "+".join(map(str, condition.layers))
    return f"{kind} at {layers}" + (f" x {condition.scale:g}" if spec.way == "add" else " taken out")


def _acting(condition: Condition, spec: SteerSpec) -> Acting | None:
    if condition.kind == NOTHING:
        return None
    digest = short([spec.way, spec.tokens, condition.layers, condition.scale, condition.digest])
    return Acting(digest, partial(acting, condition=condition, spec=spec))
