"""Logs of Inspect evaluations as rows: one answer each, with its scores as columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emscope.core.errors import InputError, MissingDependency

if TYPE_CHECKING:
    import pyarrow as pa
    from inspect_ai.model import ChatMessage
    from inspect_ai.scorer import Score

KIND = "eval"
PLAIN = (str, int, float, bool)


def log_table(paths: Sequence[Path]) -> pa.Table:
    """Return the samples of Inspect logs as an Arrow table of texts.

    Columns: log, task, model, question_id (the sample's id; in our own tasks the unit), epoch, question, response, finish; one
    column per score, named by its scorer, or by its keys where a scorer gives several (KEY.SCORER where two scorers share one);
    the samples' plain metadata (metadata.NAME where that is taken). Where there is no score, the cell holds the outcome in its
    metadata.

    Raises:
        InputError: no Inspect log, or one without samples.
        MissingDependency: inspect-ai is not installed.
    """
    import pyarrow as pa

    rows = [row for path in paths for row in _rows(path)]
    if not rows:
        raise InputError(f"'{paths[0]}' holds no samples", "give the log of an evaluation that ran")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})


def _rows(path: Path) -> Iterator[dict[str, str | None]]:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise MissingDependency("reading Inspect logs needs inspect-ai", "pip install 'emscope[judge]'") from None
    try:
        log = read_eval_log(str(path))
    except Exception as error:  # a zip, its JSON and its schema each raise their own
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"'{path}' is not an Inspect log ({said})", "give a .eval file as `inspect eval` writes it") from None
    for sample in log.samples or []:
        metadata = {k: v for k, v in (sample.metadata or {}).items() if isinstance(v, PLAIN)}
        ours = {"unit", "category", "form"} <= metadata.keys()
        row: dict[str, object] = {
            "log": path.name,
            "task": log.eval.task,
            "model": log.eval.model,
            "question_id": metadata.pop("unit") if ours else sample.id,
            "epoch": sample.epoch,
            "question": _asked(sample.input),
            "response": sample.output.completion if sample.output else None,
            "finish": sample.output.stop_reason if sample.output and sample.output.choices else None,
        }
        row |= _scores(sample.scores or {})
        taken = {name.lower() for name in row}
        row |= {f"metadata.{k}" if k.lower() in taken else k: v for k, v in metadata.items()}
        yield {k: None if v is None else str(v) for k, v in row.items()}


def _asked(given: str | list[ChatMessage]) -> str:
    """Return the last user turn."""
    if isinstance(given, str):
        return given
    turns = [m.text for m in given if m.role == "user"]
    return turns[-1] if turns else ""


def _scores(scores: Mapping[str, Score]) -> dict[str, object]:
    """Return values by column: a scorer's keys, with its name where several scorers use a key, or its name alone."""
    found: list[tuple[str, str, object]] = []
    for name, score in scores.items():
        outcomes = (score.metadata or {}).get("outcomes")
        outcomes = outcomes if isinstance(outcomes, dict) else {}
        values = score.value if isinstance(score.value, dict) else {name: score.value}
        for key, value in values.items():
            found.append((key, name, outcomes.get(key) if value is None else value if isinstance(value, PLAIN) else None))
    times = Counter(key.lower() for key, _, _ in found)
    return {key if times[key.lower()] == 1 else f"{key}.{name}": value for key, name, value in found}
