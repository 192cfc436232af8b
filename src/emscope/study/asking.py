"""What a study's checkpoints are asked, for judges to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emscope.answers.sample import Local, Prompt, answer_keys, ask_subjects, prompts_of, scaled, write_answers
from emscope.answers.sample_spec import PLACE, AskSpec
from emscope.core.progress import Progress, silent
from emscope.data.questions import read_questions
from emscope.models.loading.load import Loaded
from emscope.store.study import Study
from emscope.study.judged_spec import JudgedSpec
from emscope.study.reading.measuring import Reading


@dataclass(frozen=True, slots=True)
class Asking:
    """What checkpoints are asked, for judges to read: the settings, and each prompt by its name."""

    spec: AskSpec
    prompts: dict[str, Prompt]

    def keys(self, loaded: Loaded, subjects: Sequence[Local]) -> set[str]:
        """Return the keys of the answers needed from these subjects."""
        digest = loaded.model.digest
        return {key for one in subjects for key in answer_keys(digest, one, self.prompts, self.spec).values()}


def asking(loaded: Loaded, judged: JudgedSpec) -> Asking:
    """Return what a study's checkpoints are asked, as the model's own format has it.

    Raises:
        InputError: questions that do not fit.
    """
    spec = judged.ask.model_copy(update={"systems": (loaded.chat.system,)})
    questions = read_questions(spec.questions)
    prompts = list(prompts_of(loaded, questions, spec))
    for name, one in judged.conditions.items():
        changes = {"systems": (one.system or loaded.chat.system,), "triggers": {name: one.trigger or PLACE}}
        prompts += [p for p in prompts_of(loaded, questions, spec.model_copy(update=changes)) if p.trigger == name]
    return Asking(spec, {p.name: p for p in prompts})


def judged_subjects(judged: JudgedSpec, readings: Sequence[Reading]) -> list[Local]:
    """Return which of the checkpoints read are also sampled: all, or the last of each run."""
    last = {r.run: max(o.step for o in readings if o.run == r.run) for r in readings} if judged.at == "last" else {}
    read = [r for r in readings if judged.at == "all" or r.step == last[r.run]]
    return [Local(scaled(r.run, r.scale), r.checkpoint, scale=r.scale) for r in read]


def ask_checkpoints(
    study: Study,
    loaded: Loaded,
    judged: JudgedSpec,
    readings: Sequence[Reading],
    progress: Progress = silent,
    ask: Callable[[Study, Loaded, AskSpec, dict[str, Prompt], Sequence[Local], Progress], None] = ask_subjects,
) -> set[str]:
    """Bring the table `answers` of a study up to date, and write `answers.parquet`, which `emscope judge` takes; return the keys.

    Args:
        ask: the function that samples the answers; a host has its own.

    Raises:
        InputError: questions that do not fit.
    """
    asked, subjects = asking(loaded, judged), judged_subjects(judged, readings)
    ask(study, loaded, asked.spec, asked.prompts, subjects, progress)
    with study.alone():
        write_answers(study)
    return asked.keys(loaded, subjects)
