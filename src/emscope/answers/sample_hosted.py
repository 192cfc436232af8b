"""Questions asked to a base and checkpoints whose weights are at a host."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from emscope.answers.sample import AnswerRow, Local, Prompt, answer_keys, answer_row
from emscope.answers.sample_spec import AskSpec
from emscope.core.progress import Progress
from emscope.core.seeds import derive
from emscope.elicit.hosted import Ask, Weights, sample_hosted
from emscope.models.loading.load import Loaded
from emscope.models.remote.hosted import HostedCheckpoint
from emscope.models.remote.tinker import Tinker
from emscope.store.study import Study

FLUSH_ROWS, FLUSH_SECONDS = 200, 20.0
Place = tuple[Local, str, int]


def weights_of(base: str, checkpoint: object) -> Weights:
    """Return where a checkpoint is read; the base where there is none."""
    assert checkpoint is None or isinstance(checkpoint, HostedCheckpoint)
    return Weights(base, checkpoint.path if checkpoint else None)


def asking_at(tinker: Tinker) -> Callable[[Study, Loaded, AskSpec, dict[str, Prompt], Sequence[Local], Progress], None]:
    """Return what draws answers at a host, as `ask_subjects` draws them here: what is missing, written as it comes."""

    def ask(
        study: Study,
        loaded: Loaded,
        spec: AskSpec,
        prompts: dict[str, Prompt],
        subjects: Sequence[Local],
        progress: Progress,
    ) -> None:
        present = study.keys("answers")
        keys = {
            (one, *place): key
            for one in subjects
            for place, key in answer_keys(loaded.model.digest, one, prompts, spec).items()
        }
        wanted = [place for place, key in keys.items() if key not in present]
        asks = [_ask(loaded, spec, prompts, place) for place in wanted]
        rows, done, written = list[AnswerRow](), 0, time.monotonic()
        try:
            for n, answer in sample_hosted(tinker, loaded.chat, asks, max_tokens=spec.max_tokens, temperature=spec.temperature):
                subject, name, _ = place = wanted[n]
                rows.append(answer_row(keys[place], subject, prompts[name], answer))
                done += 1
                progress("sampling", done, len(wanted))
                if len(rows) >= FLUSH_ROWS or time.monotonic() - written > FLUSH_SECONDS:
                    study.append("answers", rows, present)
                    rows, written = [], time.monotonic()
        finally:
            study.append("answers", rows, present)

    return ask


def _ask(loaded: Loaded, spec: AskSpec, prompts: Mapping[str, Prompt], place: Place) -> Ask:
    subject, name, number = place
    seed = derive(derive(spec.seed, subject.digest), name, number)
    return Ask(weights_of(loaded.model.reference, subject.checkpoint), name, prompts[name].ids, number, seed)
