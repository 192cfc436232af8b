"""A file of answers judged: its rows come back with a score and an outcome for each criterion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emscope.answers.anchors import Anchors, judge_drift, read_anchors
from emscope.answers.drawing import Draw, DrawSpec, draw
from emscope.answers.judge_result import AnchorDrift, Cost, JudgedFile, RubricUsed, TokensBilled, VerdictCounts
from emscope.answers.judging import JudgeSpec, Tally, estimated, judge_answers, verdict_key
from emscope.answers.predicted_rates import DRAWN, DRAWN_FROM
from emscope.core.errors import InputError, near
from emscope.core.outcomes import Outcome
from emscope.core.plain import JsonObject
from emscope.core.progress import Progress, silent
from emscope.core.records import Answered
from emscope.core.versions import versions
from emscope.data.answer_table import AnswerTable
from emscope.data.answers import text_columns
from emscope.judging.rubrics import Rubric
from emscope.store.files import write_atomic, write_json
from emscope.store.study import Study, read_table


@dataclass(frozen=True, slots=True)
class FileJob:
    """A file of answers to judge: columns of the question and the answer, the folder for the results, and which answers
    the reference judge gets; a file of anchor answers with trusted labels to judge as well, and how many points a judge may be
    off them.
    """

    paths: tuple[Path, ...]
    question: str | None
    answer: str | None
    out: Path
    draw: DrawSpec | None = None
    anchors: Path | None = None
    slack: float = 5.0


def judge_file(
    job: FileJob,
    judges: Sequence[JudgeSpec],
    rubrics: Sequence[Rubric],
    *,
    max_cost: float | None = None,
    progress: Progress = silent,
) -> JudgedFile:
    """Judge the answers in files; write `judged.parquet` beside the tables: the file's rows with a score and an outcome a criterion.

    Raises:
        InputError, WorldError: as `judge_answers`, and for a file that does not fit.
    """
    with AnswerTable(job.paths) as table:
        columns = text_columns(table, job.question, job.answer)
        _check(table, columns, judges, rubrics, max_cost, job.draw)
        drawn = draw(table, job.draw) if job.draw else None
        asked = _asked(table, columns, judges, job.draw, drawn)
        anchors = read_anchors(job.anchors, rubrics) if job.anchors else None
        if anchors is not None:
            asked += [(judge, anchors.answers) for judge in judges]
        settings: JsonObject = {"files": [str(p.resolve()) for p in job.paths], "columns": list(columns)}  # they may grow
        with Study(job.out, settings, versions()) as study:
            try:
                tally = judge_answers(study, asked, rubrics, max_cost=max_cost, progress=progress)
            finally:
                path = _write_judged(study, table, columns, judges, rubrics, drawn) if study.keys("verdicts") else None
                if drawn is not None:
                    write_json(study.root / "draw.json", drawn.design.to_json())
            return _result(tally, path, judges, rubrics, drawn, _drifts(study, anchors, judges, rubrics, job.slack))


def _drifts(
    study: Study, anchors: Anchors | None, judges: Sequence[JudgeSpec], rubrics: Sequence[Rubric], slack: float
) -> tuple[AnchorDrift, ...]:
    """Return whether each judge is off the anchors' labels; () without anchors."""
    if anchors is None:
        return ()
    table = read_table(study.root, "verdicts", columns=["key", "score"])
    scores = dict(zip(table.column("key").to_pylist(), table.column("score").to_pylist(), strict=True))
    return tuple(row for judge in judges for row in judge_drift(anchors, judge, rubrics, scores, slack))


def estimate_file(job: FileJob, judges: Sequence[JudgeSpec], rubrics: Sequence[Rubric]) -> JudgedFile:
    """Return what `judge_file` would ask for in a new folder and what it would cost; nothing is asked or written."""
    with AnswerTable(job.paths) as table:
        columns = text_columns(table, job.question, job.answer)
        _check(table, columns, judges, rubrics, None, job.draw)
        drawn = draw(table, job.draw) if job.draw else None
        asked = _asked(table, columns, judges, job.draw, drawn)
    tally = Tally(sum(len(answers) for _, answers in asked) * len(rubrics))
    costs = [estimated(j, [(r, a) for r in rubrics for a in answers]) for j, answers in asked]
    tally.estimated_dollars = sum(c for c in costs if c is not None) if any(c is not None for c in costs) else None
    return _result(tally, None, judges, rubrics, drawn)


def _asked(
    table: AnswerTable,
    columns: tuple[str, str],
    judges: Sequence[JudgeSpec],
    spec: DrawSpec | None,
    drawn: Draw | None,
) -> list[tuple[JudgeSpec, Sequence[Answered]]]:
    """Return each judge with the answers it gets: all, or those drawn; duplicates only once."""
    every = [Answered(q, a) for q, a in table.pairs(*columns)]
    if spec is None or drawn is None:
        return [(judge, every) for judge in judges]
    keys: set[str | None] = set()
    start = 0
    for batch in table.batches(list(columns)):
        texts = zip(*(batch.column(c).to_pylist() for c in columns), strict=True)
        keys.update(_text_key(q, a) for n, (q, a) in enumerate(texts, start) if drawn.chosen[n])
        start += batch.num_rows
    few = [a for a in every if a.key in keys]
    return [(judge, few if spec.judge in (None, judge.name) else every) for judge in judges]


def _write_judged(
    study: Study,
    table: AnswerTable,
    columns: tuple[str, str],
    judges: Sequence[JudgeSpec],
    rubrics: Sequence[Rubric],
    drawn: Draw | None,
) -> Path:
    """Write the rows of the file with the known verdicts on each; a few thousand rows at a time."""
    verdicts = read_table(study.root, "verdicts", columns=["key", "outcome", "score"])
    known = {k: (o, s) for k, o, s in zip(*(verdicts.column(c).to_pylist() for c in ("key", "outcome", "score")), strict=True)}
    lost = study.keys("failures")
    named = dict(_named(judges, rubrics))
    kept = [n for n in table.names if n not in named and n.removesuffix("_outcome") not in named]
    kept = [n for n in dict.fromkeys([*kept, *columns]) if drawn is None or n.lower() not in (DRAWN, DRAWN_FROM)]
    path = study.root / "judged.parquet"

    def write(temporary: Path) -> None:
        writer, start = None, 0
        for batch in table.batches(kept):
            keys = [_text_key(q, a) for q, a in zip(*(batch.column(c).to_pylist() for c in columns), strict=True)]
            for name, (judge, rubric) in named.items():
                mine = [verdict_key(judge, rubric, k) if k else None for k in keys]
                found = [known.get(k or "", (Outcome.FAILED if k in lost else None, None)) for k in mine]
                batch = batch.append_column(name, pa.array([s for _, s in found], pa.float64()))
                batch = batch.append_column(
                    f"{name}_outcome", pa.array([None if o is None else str(o) for o, _ in found], pa.string())
                )
            if drawn is not None:
                part = slice(start, start + batch.num_rows)
                batch = batch.append_column(DRAWN, pa.array(drawn.chosen[part]))
                batch = batch.append_column(DRAWN_FROM, pa.array(drawn.stratum[part], pa.string()))
            start += batch.num_rows
            writer = writer or pq.ParquetWriter(temporary, batch.schema)
            writer.write_table(batch)
        if writer is not None:
            writer.close()

    write_atomic(path, write)
    return path


def _named(judges: Sequence[JudgeSpec], rubrics: Sequence[Rubric]) -> list[tuple[str, tuple[JudgeSpec, Rubric]]]:
    """Return the column that each judge's verdict on each criterion gets."""
    return [(f"{r.criterion}{f'.{j.name}' if len(judges) > 1 else ''}", (j, r)) for j in judges for r in rubrics]


def _check(
    table: AnswerTable,
    columns: tuple[str, str],
    judges: Sequence[JudgeSpec],
    rubrics: Sequence[Rubric],
    max_cost: float | None,
    drawn: DrawSpec | None,
) -> None:
    """Reject, before anything is asked, duplicate column names and a cost limit without prices."""
    if not judges or not rubrics:
        raise InputError("there is no judge or no criterion", "name at least one of each")
    if max_cost is not None and not 0 <= max_cost < float("inf"):
        raise InputError(f"`max_cost` is {max_cost:g}", "give dollars, 0 or more")
    if max_cost is not None and any(j.prices is None for j in judges):
        raise InputError("`max_cost` needs the price of each judge", "give `prices=IN,OUT` in dollars per million tokens")
    if drawn is not None and drawn.judge is not None and drawn.judge not in {j.name for j in judges}:
        raise InputError(
            f"`draw` names '{drawn.judge}', which is not among `judges`", near(drawn.judge, [j.name for j in judges])
        )
    own = [*columns, *(r.criterion for r in rubrics)] if drawn is not None else []
    taken = next((name for name in own if name.lower() in (DRAWN, DRAWN_FROM)), None)
    if taken is not None:
        raise InputError(f"`draw` writes the columns {DRAWN} and {DRAWN_FROM}, but '{taken}' already exists", "rename it")
    made = [name for column, _ in _named(judges, rubrics) for name in (column, f"{column}_outcome")]
    lower = [name.lower() for name in made]
    for name in made:
        if lower.count(name.lower()) > 1:
            raise InputError(f"two verdicts would be called '{name}'", "name each judge and each criterion once")
        if name.lower() in {c.lower() for c in columns}:
            raise InputError(
                f"a criterion's column would be called '{name}', like the text that is judged", "rename the criterion"
            )
        other = next((c for c in table.names if c.lower() == name.lower() and c != name), None)
        if other is not None:
            raise InputError(f"the file's column '{other}' clashes with the new column '{name}'", "rename the column")


def _text_key(question: object, answer: object) -> str | None:
    q, a = (None if v is None else str(v) for v in (question, answer))
    return Answered(q, a).key if q and a and q.strip() and a.strip() else None


def _result(
    tally: Tally,
    path: Path | None,
    judges: Sequence[JudgeSpec],
    rubrics: Sequence[Rubric],
    drawn: Draw | None,
    anchors: tuple[AnchorDrift, ...] = (),
) -> JudgedFile:
    return JudgedFile(
        judges=tuple(judges),
        rubrics=tuple(RubricUsed(r.criterion, r.version, r.key) for r in rubrics),
        verdicts=VerdictCounts(tally.wanted, tally.before, tally.outcomes, tally.failed),
        tokens=TokensBilled(tally.tokens_in, tally.tokens_out),
        dollars=Cost(tally.dollars, tally.estimated_dollars),
        complete=not tally.stopped and not tally.failed,
        stopped_at_cost=tally.stopped,
        judged=str(path) if path else None,
        draw=drawn.design if drawn else None,
        anchors=anchors,
    )
