"""Where training conversations come from: bundled domains and users' files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from emscope.core.digest import canonical, short
from emscope.core.errors import InputError
from emscope.core.plain import JsonObject
from emscope.core.records import Conversation
from emscope.core.spec import Spec
from emscope.data import bundled
from emscope.data.conversations import read_conversations
from emscope.models.hooks.directions import direction_at
from emscope.models.loading.checkpoints import last
from emscope.models.loading.source import Model, beside_digest, locate
from emscope.models.remote.hosted import model_at
from emscope.study.judged_spec import JudgedSpec
from emscope.study.spec import StudySpec
from emscope.train.spec import KlSpec, LdifsSpec, TrainSpec


def base_of(spec: StudySpec) -> Model:
    """Return the base of a study: on this machine, or the local stand-in for one at a host.

    Raises:
        InputError, WorldError: as `locate` and `model_at`.
    """
    if spec.host is None:
        return locate(spec.model)
    return model_at(spec.host.name, spec.model, spec.host.tokenizer or spec.model)


def conversations(file: str | None, domain: str | None, answers: str | None) -> list[Conversation]:
    """Return the conversations of a file, or of a bundled domain with one kind of answer.

    Raises:
        InputError: no such file, domain or kind of answer, or a broken row.
    """
    return read_conversations(Path(file)) if file else bundled.domain(domain or "", answers or "")


def held_near(held: KlSpec | LdifsSpec | None) -> list[Conversation]:
    """Return the conversations of a term that restrains the model; with several kinds of answers, each question of a domain once per kind.

    Raises:
        InputError: as `conversations`, or a conversation's id appears twice.
    """
    if held is None:
        return []
    if held.file:
        rows = read_conversations(Path(held.file))
    else:
        rows = [replace(c, id=f"{c.id}/{a}") for a in held.answers for c in bundled.domain(held.domain or "", a)]
    id, times = Counter(c.id for c in rows).most_common(1)[0] if rows else ("", 0)
    if times > 1:
        raise InputError(f"{held.name}: the id '{id}' appears {times} times in the conversations", "give each its own id")
    return rows


def digests(base: Model, texts: Mapping[str, Sequence[Conversation]], trains: Iterable[TrainSpec]) -> dict[str, str]:
    """Return digests of what the names in settings currently refer to: the base, conversations, directions and adapters."""
    found = {f"data {name}": short([c.content() for c in rows]) for name, rows in texts.items()}
    for train in trains:
        directions = {train.prevent.direction} if train.prevent else set()
        directions |= set(train.readings.directions.values()) if train.readings else set()
        found |= {f"direction {path}": direction_at(path).digest() for path in directions}
        if train.adapter:
            found[f"adapter {train.adapter.folder}"] = last(train.adapter.folder).digest
    beside = {} if base.held else {"base's tokenizer": beside_digest(base.folder)}
    return dict(sorted(found.items())) | {"base": base.digest} | beside


def asked_of(judged: JudgedSpec | None) -> JsonObject | None:
    """Return the judged settings that decide the answers; verdicts have keys of their own, so that judges may change."""
    if judged is None:
        return None
    found: JsonObject = {"at": judged.at, "ask": judged.ask.model_dump(mode="json", exclude={"samples", "rows"})}
    if judged.conditions:
        found["conditions"] = {name: one.model_dump(mode="json") for name, one in judged.conditions.items()}
    return found


def frozen(spec: Spec, named: dict[str, str]) -> JsonObject:
    """Return settings as a folder's ledger freezes them, with `digests` of what their names currently refer to."""
    values = spec.model_dump(mode="json")
    train: TrainSpec | None = getattr(spec, "train", None)
    judged = asked_of(getattr(spec, "judged", None))
    values = {k: v for k, v in values.items() if k != "judged"} | ({"judged": judged} if judged else {})
    values |= {"train": train.deciding()} if train else {}
    values.get("measure", {}).pop("skip_float32", None)
    values.pop("weights", None)
    for name in ("threads", "host"):  # added later, and change nothing unless given
        if values.get(name) is None:
            values.pop(name, None)
    for arm in values.get("arms", {}).values():
        if arm["domain"] is None:
            del arm["domain"]
    if isinstance(values.get("host"), dict):
        values["host"] = values["host"]["name"]  # not its cost, nor the number of concurrent requests
    if values.get("methods"):
        values["methods"] = {
            name: {k: v for k, v in changes.items() if k != "report_to"} for name, changes in values["methods"].items()
        }
    found: JsonObject = json.loads(canonical(values | {"digests": named}))
    return found
