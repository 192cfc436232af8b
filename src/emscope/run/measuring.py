"""Reading checkpoints into the store: what is there by key is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emscope.core.digest import short
from emscope.core.progress import Progress
from emscope.core.records import Item
from emscope.core.seeds import derive
from emscope.elicit import preference
from emscope.elicit.sampling import sample
from emscope.models.checkpoints import Checkpoint, applied
from emscope.models.load import Loaded
from emscope.run.sets import ItemSets
from emscope.run.spec import SampleSpec
from emscope.store.study import Study


@dataclass(frozen=True, slots=True)
class Reading:
    """One checkpoint to read: `wanted` maps a set's name to the options to score (None: all)."""

    run: str
    step: int
    checkpoint: Checkpoint | None
    wanted: dict[str, tuple[int, ...] | None]
    scale: float = 1.0
    questions: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """What determines the reading besides the base: the adapter's hash and its scale."""
        return "base" if self.checkpoint is None else f"{self.checkpoint.digest}x{self.scale:g}"


@dataclass(slots=True)
class Tally:
    """How far a whole job is, in tokens."""

    progress: Progress
    total: float
    done: float = 0.0

    def advance(self, tokens: float) -> None:
        """Count tokens as done."""
        self.done += tokens
        self.progress("reading checkpoints", self.done, self.total)


def measure(
    study: Study,
    loaded: Loaded,
    sets: ItemSets,
    readings: Sequence[Reading],
    samples: SampleSpec,
    seed: int,
    batch_tokens: int,
    progress: Progress,
) -> None:
    """Bring the tables `preferences` and `responses` up to `readings`; each reading is written as soon as it is done."""
    present = study.keys("preferences") | study.keys("responses")
    jobs = [(r, _missing(loaded, sets, r, present), _unasked(loaded, r, samples, seed, present)) for r in readings]
    cost = sum(e.cost for _, missing, _ in jobs for e in missing.values()) or 1
    tally = Tally(progress, cost)
    for reading, missing, questions in jobs:
        if not missing and not questions:
            continue
        if reading.checkpoint is None:
            _read(study, loaded, loaded.net, sets, reading, missing, questions, samples, seed, batch_tokens, tally)
        else:
            with applied(loaded.net, reading.checkpoint, scale=reading.scale) as net:
                _read(study, loaded, net, sets, reading, missing, questions, samples, seed, batch_tokens, tally)


def _read(
    study: Study,
    loaded: Loaded,
    net: Any,
    sets: ItemSets,
    reading: Reading,
    missing: dict[tuple[str, str], preference.Encoded],
    questions: list[str],
    samples: SampleSpec,
    seed: int,
    batch_tokens: int,
    tally: Tally,
) -> None:
    before = tally.done
    by_set = {name: [e for (s, _), e in missing.items() if s == name] for name in dict.fromkeys(s for s, _ in missing)}
    rows = []
    for name, encoded in by_set.items():
        start = tally.done
        scores = preference.score(
            net,
            encoded,
            batch_tokens=batch_tokens,
            progress=lambda _w, done, _t, start=start: tally.advance(start + done - tally.done),  # type: ignore[misc]
        )
        items = {item.id: item for item in sets.of(name)}
        rows += [_preference_row(loaded, reading, name, items[s.item], s) for s in scores]
    study.append("preferences", rows)
    tally.done = before + sum(e.cost for e in missing.values())
    if questions:
        answers = sample(
            net,
            loaded.chat,
            questions,
            samples=1,
            max_tokens=samples.max_tokens,
            seed=derive(seed, "sample", reading.subject),
            temperature=samples.temperature,
        )
        study.append("responses", [_response_row(loaded, reading, a, samples, seed) for a in answers])


def _missing(loaded: Loaded, sets: ItemSets, reading: Reading, present: set[str]) -> dict[tuple[str, str], preference.Encoded]:
    """Return what is not in the store yet, tokenized, by (set, item)."""
    found = {}
    for name, which in reading.wanted.items():
        for item in sets.of(name):
            options = tuple(range(len(item.options))) if which is None else which
            if any(preference_key(loaded, reading, name, item, k) not in present for k in options):
                found[(name, item.id)] = preference.encode(loaded.chat, [item], context=loaded.context, which=options)[0]
    return found


def _unasked(loaded: Loaded, reading: Reading, samples: SampleSpec, seed: int, present: set[str]) -> list[str]:
    return [q for q in reading.questions if response_key(loaded, reading, q, samples, seed) not in present]


def preference_key(loaded: Loaded, reading: Reading, name: str, item: Item, option: int) -> str:
    """Return the content key of one score: model, adapter and scale, format, set, texts."""
    return short(
        [
            loaded.model.digest,
            reading.subject,
            reading.run,
            reading.step,
            loaded.chat.digest,
            name,
            item.id,
            item.question,
            item.options[option],
        ]
    )


def response_key(loaded: Loaded, reading: Reading, question: str, samples: SampleSpec, seed: int) -> str:
    """Return the content key of one sampled answer."""
    return short(
        [
            loaded.model.digest,
            reading.subject,
            reading.run,
            reading.step,
            loaded.chat.digest,
            question,
            samples.model_dump(mode="json"),
            seed,
        ]
    )


def _preference_row(loaded: Loaded, reading: Reading, name: str, item: Item, score: Any) -> dict[str, Any]:
    return {
        "key": preference_key(loaded, reading, name, item, score.option),
        "run": reading.run,
        "step": reading.step,
        "scale": reading.scale,
        "set": name,
        "item": item.id,
        "category": item.category,
        "half": item.half,
        "option": score.option,
        "logprob": score.logprob,
        "tokens": score.tokens,
        "chat": loaded.chat.digest,
    }


def _response_row(loaded: Loaded, reading: Reading, answer: Any, samples: SampleSpec, seed: int) -> dict[str, Any]:
    return {
        "key": response_key(loaded, reading, answer.question, samples, seed),
        "run": reading.run,
        "step": reading.step,
        "scale": reading.scale,
        "question": answer.question,
        "sample": answer.sample,
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": str(answer.finish),
        "seed": answer.seed,
        "chat": loaded.chat.digest,
    }
