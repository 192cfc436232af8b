"""Judged answers as Inspect logs, which `inspect view` opens and Inspect's own tools read."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, SupportsFloat

from emscope.core.digest import short
from emscope.core.errors import InputError, MissingDependency
from emscope.core.progress import Progress, silent
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import text_columns
from emscope.data.tables import Row
from emscope.version import __version__

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample, EvalScore
    from inspect_ai.model import ChatMessage

LONGEST_ID = 1000
SYSTEMS = ("none", "template")
TOLD = ("system", "trigger", "category", "form", "step", "run", "seed", "tokens", "key")


def export_logs(
    paths: Sequence[Path],
    out: Path,
    *,
    by: Sequence[str] = (),
    scores: Sequence[str] = (),
    question: str | None = None,
    answer: str | None = None,
    task: str = "emscope",
    progress: Progress = silent,
) -> list[Path]:
    """Write one Inspect log for each group of a file of judged answers; return their paths.

    A row is a sample: its question's text, its answer, each score with its outcome where the file has one. Answers to one question
    are its epochs.

    Args:
        by: columns whose values make the groups. scores: columns of scores; those with a column `NAME_outcome` by default.

    Raises:
        InputError: a column is not there, no score is found, or `out` holds logs already.
        MissingDependency: inspect-ai is not installed.
    """
    with AnswerTable(paths) as table:
        table.named(*by, *scores)
        texts = text_columns(table, question, answer)
        found = list(scores) or [n for n in table.names if f"{n}_outcome" in table.names]
        if not found:
            raise InputError(f"'{table.where}' has no scores with outcomes", "name the columns of scores with `scores`")
        if any(out.glob("*.eval")):
            raise InputError(f"'{out}' holds logs already", "choose a new folder with `out`")
        asked = table.question(by) or texts[0]
        groups: dict[tuple[str, ...], list[Row]] = {}
        for batch in table.batches(table.names):
            for row in batch.to_pylist():
                groups.setdefault(tuple(str(row[c]) for c in by), []).append(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=".logs-"))  # either all of them appear or none
    try:
        written = []
        for n, (label, rows) in enumerate(groups.items(), 1):
            group = dict(zip(by, label, strict=True))
            log = _log(rows, group, task, texts, asked, found)
            name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join([f"{n:04d}", task, *label]))[:120]
            written.append(_write(log, work / f"{name}.eval").name)
            progress("writing logs", n, len(groups))
        out.mkdir(exist_ok=True)
        for name in written:
            (work / name).rename(out / name)
        return [out / name for name in written]
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _log(
    rows: list[Row], group: dict[str, str], task: str, texts: tuple[str, str], asked: str, scores: Sequence[str]
) -> EvalLog:
    try:
        from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalResults, EvalSpec
    except ImportError:
        raise MissingDependency("writing Inspect logs needs inspect-ai", "pip install 'emscope[judge]'") from None

    epochs: dict[str, int] = {}
    samples = []
    for row in rows:
        name = _id(str(row[asked] if row[asked] is not None else row[texts[0]]))
        epochs[name] = epochs.get(name, 0) + 1
        samples.append(_sample(row, name, epochs[name], texts, scores, group))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    model = "/".join(["emscope", *group.values()]) if group else "emscope/answers"
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=now,
            task=task,
            dataset=EvalDataset(name=task, samples=len(epochs), sample_ids=list(epochs)),
            model=model,
            config=EvalConfig(epochs=max(epochs.values())),
            packages={"emscope": __version__},
            metadata=group,
        ),
        plan=EvalPlan(),
        results=EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=_results(rows, scores)),
        samples=samples,
    )


def _sample(
    row: Row, name: str, epoch: int, texts: tuple[str, str], scores: Sequence[str], group: dict[str, str]
) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    question, answer = (str(row[c] or "") for c in texts)
    turns: list[ChatMessage] = [ChatMessageUser(content=question)]
    if row.get("system") and row["system"] not in SYSTEMS:
        turns.insert(0, ChatMessageSystem(content=str(row["system"])))
    values = {s: _number(row[s]) for s in scores}
    outcomes = {s: str(row[f"{s}_outcome"]) for s in scores if row.get(f"{s}_outcome") is not None}
    output = ModelOutput.from_content("emscope", answer, stop_reason="max_tokens" if row.get("finish") == "length" else "stop")
    return EvalSample(
        id=name,
        epoch=epoch,
        input=turns,
        target="",
        messages=[*turns, ChatMessageAssistant(content=answer)],
        output=output,
        metadata=group | {k: _plain(row[k]) for k in TOLD if row.get(k) is not None and k not in group},
        scores={"judged": Score(value=values, answer=answer, metadata={"outcomes": outcomes})},
    )


def _id(name: str) -> str:
    """Return the id of a sample, of which Inspect makes the name of a file in its archive; archives take names of 65,535 bytes."""
    return name if len(name) <= LONGEST_ID else f"{name[:LONGEST_ID]} {short(name)}"


def _results(rows: list[Row], scores: Sequence[str]) -> list[EvalScore]:
    from inspect_ai.log import EvalMetric, EvalScore

    found = []
    for name in scores:
        known = [v for row in rows if (v := _number(row[name])) is not None]
        mean = sum(known) / len(known) if known else math.nan
        metrics = {
            "known_mean": EvalMetric(name="known_mean", value=mean),
            "share_known": EvalMetric(name="share_known", value=len(known) / len(rows)),
        }
        found.append(EvalScore(name=name, scorer="judged", metrics=metrics))
    return found


def _plain(value: object) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)


def _number(value: object) -> float | None:
    if not isinstance(value, str | SupportsFloat):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _write(log: EvalLog, path: Path) -> Path:
    from inspect_ai.log import write_eval_log

    write_eval_log(log, str(path), format="eval")
    return path
