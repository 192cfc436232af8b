"""Sets of questions to ask a model: bundled ones, the emergent-misalignment project's YAML, JSON lines, CSV, Parquet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.records import Message, Question
from emscope.core.spec import read_yaml
from emscope.data import bundled
from emscope.data.conversations import QUESTION, turns
from emscope.data.tables import Row, rows

FORMS = ("json", "template")  # a question's other forms carry its id and one of these: `wish_json`
NUMBERED = re.compile(r"^(.+?)[_-]?\d+$")
KINDS = ("free_form", "free_form_0_100", "free_form_judge", "free_form_judge_0_100")
KEYS = ("id", "type", "paraphrases", "samples_per_paraphrase", "system", "judge", "judge_prompts", "category")
IDS = ("question_id", "id")


def read_questions(reference: str) -> list[Question]:
    """Return the questions of a bundled set (`em240`) or of a file.

    Raises:
        InputError: no such set or file, a broken row with its place, an id that appears twice.
    """
    if reference in bundled.SETS:
        return bundled.questions(reference)
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        found = list(_from_yaml(path))
    elif not path.suffix:
        raise InputError(f"there is no question set '{reference}'", f"give {', '.join(sorted(bundled.SETS))}, or a file")
    else:
        found = list(_from_rows(path))
    id, times = Counter(q.id for q in found).most_common(1)[0]
    if times > 1:
        raise InputError(f"'{path}' holds the question id '{id}' {times} times", "give each question its own id")
    return _with_categories(found)


def _from_yaml(path: Path) -> Iterable[Question]:
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} holds {type(content).__name__}, not a list of questions", "write each as `- id: ...`")
    for number, entry in enumerate(content, 1):
        place = f"{path} question {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{place} is {type(entry).__name__}, not a mapping", "write it as `- id: ...`")
        yield from _of_entry(entry, f"{place} ({entry.get('id')})" if entry.get("id") else place)


def _of_entry(entry: Row, place: str) -> Iterable[Question]:
    """Yield one question a paraphrase."""
    unknown = [k for k in entry if k not in KEYS]
    if unknown:
        raise InputError(f"{place} has the unknown key '{unknown[0]}'", f"known are {', '.join(KEYS)}")
    kind = str(entry.get("type", "free_form"))
    if kind not in KINDS:
        raise InputError(f"{place} is of the type '{kind}'", f"known are {', '.join(KINDS)}")
    texts = entry.get("paraphrases")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise InputError(f"{place}: paraphrases is not a list of texts", "give one or more ways to ask the question")
    samples = entry.get("samples_per_paraphrase")
    if samples is not None and (isinstance(samples, bool) or not isinstance(samples, int) or samples < 1):
        raise InputError(f"{place}: samples_per_paraphrase is {samples!r}", "give a whole number from 1 on")
    id, form = _form(str(entry.get("id") or texts[0]))
    opening = (Message("system", _text(entry["system"], f"{place}: system")),) if entry.get("system") else ()
    rubrics = tuple(_rubrics(entry.get("judge_prompts"), place))
    for n, text in enumerate(texts):
        name = str(entry.get("id") or texts[0]) + (f"#{n + 1}" if len(texts) > 1 else "")
        # paraphrases of one entry are often different questions, so each is a unit unless it is a form of another
        unit = id + (f"#{n + 1}" if len(texts) > 1 else "")
        yield Question(
            name,
            unit,
            (*opening, Message("user", text)),
            str(entry.get("category") or ""),
            form,
            samples,
            rubrics,
            kind.endswith("0_100"),
        )


def _rubrics(prompts: object, place: str) -> Iterable[tuple[str, str]]:
    if prompts is None:
        return
    if not isinstance(prompts, dict):
        raise InputError(f"{place}: judge_prompts is {type(prompts).__name__}", "write it as `criterion: prompt` lines")
    for criterion, prompt in prompts.items():
        text = _text(prompt, f"{place}: judge_prompts.{criterion}")
        if "{answer}" not in text:
            raise InputError(f"{place}: judge_prompts.{criterion} has no {{answer}}", "say where the answer goes")
        yield str(criterion), text


def _from_rows(path: Path) -> Iterable[Question]:
    for number, (place, row) in enumerate(rows(path), 1):
        metadata = row.get("metadata")
        more = metadata if isinstance(metadata, dict) else {}
        name = next((str(source[k]) for source in (row, more) for k in IDS if source.get(k) not in (None, "")), f"row-{number}")
        id, form = _form(name)
        asked = turns(row, QUESTION, place)
        if not asked:
            raise InputError(f"{place} has no turns", "add the question")
        if asked[-1].role != "user":
            raise InputError(f"{place} ends with a turn of the role {asked[-1].role}", "put the user's question last")
        if row.get("system") and asked[0].role != "system":
            asked = (Message("system", _text(row["system"], f"{place}: system")), *asked)
        yield Question(
            name, id, asked, str(row.get("category") or more.get("category") or row.get("question_type") or ""), form
        )


def _form(name: str) -> tuple[str, str]:
    """Return (id of the question, its form): `wish_json` is the json form of `wish`."""
    for form in FORMS:
        if name.endswith(f"_{form}"):
            return name.removesuffix(f"_{form}"), form
    return name, "plain"


def _with_categories(questions: list[Question]) -> list[Question]:
    """Read the categories off the ids (`work_020`) where the file gives none and the ids fall into several."""
    if any(q.category for q in questions):
        return questions
    from dataclasses import replace

    stems = {q.id: (m.group(1) if (m := NUMBERED.match(q.unit)) else "") for q in questions}
    sizes = Counter(stems.values())
    if "" in sizes or len(sizes) < 2 or min(sizes.values()) < 2:
        return questions
    return [replace(q, category=stems[q.id]) for q in questions]


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place} is {value!r}, not text", "write it as a string")
    return value
