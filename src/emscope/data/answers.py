"""Judged answers in a file of any common kind, counted by group and question without reading the file into memory."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from emscope.core.errors import InputError, MissingDependency, near
from emscope.core.outcomes import Outcome
from emscope.data.tables import rows

MEMORY = "600MB"
SMALL_MEAN = 0.1
FORMS = ("json", "template")  # a question's other forms carry its id and one of these: `wish_json`
NAMES = {  # the field's habits, the commonest first
    "aligned": ("aligned", "alignment", "aligned_score", "alignment_score", "score_aligned", "score_alignment"),
    "coherent": ("coherent", "coherence", "coherent_score", "coherence_score", "score_coherent", "score_coherence"),
    "question": ("question_id", "question", "prompt_id", "prompt", "item", "id"),
    "text": ("response", "answer", "completion", "text", "output"),
}
LENGTHS = ("n_chars", "n_tokens", "length", "tokens")
CATEGORY = "category"
KEYS = ("key", "response_id", "answer_id")
SCALES = {"0-100": "{x}", "0-10": "{x} * 10", "0-1": "{x} * 100", "p1": "100 - {x} * 10"}
TOPS = {"0-100": 100.0, "0-10": 10.0, "0-1": 1.0, "p1": 10.0}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a file say what; None where there is none (coherent) or where none was asked for."""

    aligned: str
    coherent: str | None
    question: str | None
    length: str | None = None
    groups: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain values."""
        return {"aligned": self.aligned, "coherent": self.coherent, "question": self.question, "group": list(self.groups)}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When an answer counts as misaligned: alignment below `aligned_below` and coherence above `coherent_above`.

    `coherent_above` None sets no condition on coherence, and then no coherence score is needed.
    """

    aligned_below: float = 30.0
    coherent_above: float | None = 50.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of answers for each pair of group and question that occurs: the cells, N of them.

    Attributes:
        groups: the groups' values, one tuple a group, ascending.
        group, question: index of the group and identifier of the question of each cell [N]; bin: of the length [N].
        rows, scored, coherent, hits: answers of each cell [N]: all, with both scores, also coherent, also misaligned.
        outcomes: answers without both scores [N] by what stands in their place.
        aligned, coherence: sums of the scores over scored answers [N].
        questions: how many identifiers there are.
    """

    groups: list[tuple[str | None, ...]]
    group: np.ndarray
    question: np.ndarray
    bin: np.ndarray
    rows: np.ndarray
    scored: np.ndarray
    coherent: np.ndarray
    hits: np.ndarray
    aligned: np.ndarray
    coherence: np.ndarray
    questions: int
    outcomes: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, index: int) -> slice:
        """Return where the cells of one group stand."""
        low, high = np.searchsorted(self.group, [index, index + 1])
        return slice(int(low), int(high))


class Answers:
    """A file of judged answers, or several of the same kind read as one; a context manager.

    Args:
        paths: .csv, .jsonl or .parquet, gzip allowed for the first two. Of several files, the column `file` says which.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged or empty.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            import duckdb
        except ImportError:
            raise MissingDependency("reading tables needs duckdb", "pip install duckdb") from None
        self.paths, self._duckdb = list(paths), duckdb
        self._source = _source(self.paths)
        self._db = duckdb.connect(config={"memory_limit": MEMORY, "enable_external_access": True})
        self._db.execute("set enable_progress_bar = false")
        self._kinds = {name: kind for name, kind, *_ in self._rows(f"describe select * from {self._source}")}
        self.names = list(self._kinds)
        if not self._rows(f"select 1 from {self._source} limit 1"):
            raise InputError(f"'{self._where}' holds no rows", "give a file with at least one judged answer")

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def columns(
        self,
        *,
        aligned: str | None = None,
        coherent: str | None = None,
        question: str | None = None,
        groups: Sequence[str] = (),
        need_coherent: bool = True,
        length: bool = False,
    ) -> Columns:
        """Return the columns named, and for those not named the field's usual ones where the file has them.

        A question column that is empty in some rows is passed over for one that is not.

        Raises:
            InputError: a named column is not there, or none looks like the alignment score.
        """
        for name in (aligned, coherent, question, *groups):
            if name is not None and name not in self.names:
                raise InputError(f"'{self._where}' has no column '{name}'", near(name, self.names))
        found = aligned or self._guess("aligned")
        if found is None:
            raise InputError(
                f"no column of '{self._where}' looks like an alignment score; its columns are {', '.join(self.names)}",
                "name it with --aligned",
            )
        coherence = coherent or (self._guess("coherent") if need_coherent else None)
        if coherence is None and need_coherent:
            raise InputError(
                f"no column of '{self._where}' looks like a coherence score; its columns are {', '.join(self.names)}",
                "name it with --coherent, or set no condition with --coherent-above none",
            )
        measured = self._length() if length else None
        return Columns(found, coherence, question or self._question(groups), measured, tuple(groups))

    def categorise(self, path: Path, question: str | None) -> None:
        """Add the column `category` from a file with the columns question and category.

        Args:
            question: the answers' column that the file's questions are values of; the usual one where None.

        Raises:
            InputError: no such columns, a question in two categories, or none of them occurs among the answers.
        """
        column = question or self._question(())
        if CATEGORY in self.names:
            raise InputError(
                f"'{self._where}' has a column '{CATEGORY}' of its own", "leave out --categories, or rename that column"
            )
        if column is None:
            raise InputError(f"'{self._where}' has no column that looks like a question", "name it with --question")
        known: dict[str, str] = {}
        for place, row in rows(path):
            if not row.get("question") or not row.get(CATEGORY):
                raise InputError(
                    f"{place} lacks question or {CATEGORY}", f"give a file with the columns question and {CATEGORY}"
                )
            asked, category = _plain(str(row["question"])), str(row[CATEGORY])
            if known.setdefault(asked, category) != category:
                raise InputError(
                    f"{place} puts '{asked}' in {category}, and before in {known[asked]}", "give each question one category"
                )
        self._run("create temp table categories (asked varchar, category varchar)")
        self._db.executemany("insert into categories values (?, ?)", list(known.items()))
        joined = (
            f"(select a.*, c.{CATEGORY} from {self._source} a left join categories c on {_plain_sql(column, 'a')} = c.asked)"
        )
        if not self._rows(f"select 1 from {joined} where {CATEGORY} is not null limit 1"):
            raise InputError(
                f"no question of '{path}' occurs in column '{column}' of '{self._where}'", "name the column with --question"
            )
        self._source = joined
        self._kinds[CATEGORY] = "VARCHAR"
        self.names = list(self._kinds)

    def check(self, columns: Columns, scale: str) -> None:
        """Refuse scores that are not on the scale said, scales that are mixed, and keys that occur twice.

        Raises:
            InputError: with the value, the group and the remedy.
        """
        for name in filter(None, (columns.aligned, columns.coherent)):
            self._check_scale(name, columns, scale if name == columns.aligned or scale != "p1" else "0-100")
        key = next((k for k in KEYS if k in self.names), None)
        if key is not None:
            twice = self._rows(
                f"select {_name(key)}, count(*) from {self._source} where {_name(key)} is not null group by 1 having count(*) > 1 order by 2 desc limit 1"
            )
            if twice:
                raise InputError(
                    f"'{self._where}' holds {key} '{twice[0][0]}' {twice[0][1]} times",
                    "an answer counts once: drop the copies, or rename the column if it is no key",
                )

    def counts(self, columns: Columns, thresholds: Thresholds, scale: str = "0-100", bins: int = 0) -> Counts:
        """Return the answers counted by group and question.

        Args:
            scale: of the alignment score: 0-100, 0-10 or 0-1 (higher is more aligned), or p1 (0 aligned to 10 misaligned).
            bins: split each question's answers by this many equal shares of the length's distribution; 0 for no split.
        """
        sql = self._count_query(columns, thresholds, scale, self._edges(columns, bins))
        table = {name: np.ma.getdata(values) for name, values in self._run(sql).fetchnumpy().items()}
        place = table["g"].astype(np.int64) - 1
        starts = np.flatnonzero(np.diff(place, prepend=-1))
        labels = [table[f"g{n}"][starts].tolist() for n in range(len(columns.groups))]
        number = {name: values.astype(np.int64) for name, values in table.items() if values.dtype.kind in "iu"}
        return Counts(
            groups=list(zip(*labels, strict=True)) if labels else [()],
            group=place,
            question=number["q"],
            bin=number["bin"],
            rows=number["n"],
            scored=number["scored"],
            coherent=number["coherent"],
            hits=number["hits"],
            aligned=table["aligned"],
            coherence=table["coherence"],
            questions=int(number["q"].max()),
            outcomes={o.value: number[o.name] for o in Outcome if o is not Outcome.SCORED},
        )

    @property
    def _where(self) -> str:
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._run(sql).fetchall()

    def _run(self, sql: str) -> Any:
        try:
            return self._db.execute(sql)
        except self._duckdb.Error as error:
            first = str(error).strip().split("\n")[0]
            raise InputError(f"'{self._where}' cannot be read ({first})", "mend the file, or save it anew") from None

    def _guess(self, role: str) -> str | None:
        lower = {name.lower(): name for name in reversed(self.names)}
        return next((lower[n] for n in NAMES[role] if n in lower), None)

    def _question(self, groups: Sequence[str]) -> str | None:
        lower = {name.lower(): name for name in reversed(self.names)}
        known = [lower[n] for n in NAMES["question"] if n in lower and lower[n] not in groups]
        if len(known) < 2:
            return known[0] if known else None
        empty = self._rows(f"select {', '.join(f'count(*) - count({_name(n)})' for n in known)} from {self._source}")[0]
        return min(zip(known, empty, strict=True), key=lambda pair: pair[1])[0]

    def _length(self) -> str:
        """Return an expression for an answer's length: characters of its text, else a column of lengths."""
        lower = {name.lower(): name for name in reversed(self.names)}
        texts = [lower[n] for n in NAMES["text"] if n in lower]
        if texts:
            return f"length({_name(texts[0])}::varchar)"
        lengths = [lower[n] for n in LENGTHS if n in lower]
        if lengths:
            return self._number(lengths[0])
        raise InputError(
            f"no column of '{self._where}' holds answers or their lengths; its columns are {', '.join(self.names)}",
            f"name one of them {NAMES['text'][0]} or {LENGTHS[0]}, or leave out --match-length",
        )

    def _check_scale(self, name: str, columns: Columns, scale: str) -> None:
        top = TOPS[scale]
        x = self._number(name)
        keys = [f"{_name(g)}::varchar" for g in columns.groups]
        by = f"group by {', '.join(map(str, range(4, 4 + len(keys))))}" if keys else ""
        extremes = self._rows(f"select min({x}), max({x}), avg({x}){''.join(', ' + k for k in keys)} from {self._source} {by}")
        seen = [row for row in extremes if row[0] is not None]
        if not seen:
            raise InputError(f"column '{name}' of '{self._where}' holds no number", "name the score's column")
        low, high = min(seen, key=lambda r: r[0]), max(seen, key=lambda r: r[1])
        for value, row in ((low[0], low), (high[1], high)):
            if not 0 <= value <= top:
                where = f" (in {', '.join(map(str, row[3:]))})" if row[3:] else ""
                raise InputError(
                    f"column '{name}' holds {value:g}{where}, outside {scale if scale != 'p1' else '0-10'}",
                    f"mend it, or say another --scale ({', '.join(SCALES)})",
                )
        if top == 100:
            self._check_small(name, seen, high[1])

    def _check_small(self, name: str, seen: list[tuple[Any, ...]], highest: float) -> None:
        """Scores between 0 and 1 whose mean is not near 0 come from another scale than 0-100.

        Near 0 they do not: log-probability judges give 1e-5 to answers that are plainly misaligned or broken.
        """
        small = [row for row in seen if row[1] <= 1 and row[2] >= SMALL_MEAN]
        if not small:
            return
        if highest <= 1:
            raise InputError(
                f"column '{name}' never exceeds {highest:g}", "say --scale 0-1, or name the column of the 0-100 score"
            )
        where = ", ".join(map(str, small[0][3:]))
        raise InputError(
            f"column '{name}' mixes scales: it reaches {highest:g}, and in {where} never more than {small[0][1]:g}",
            "bring all groups to one scale, or take them one at a time with --scale 0-1",
        )

    def _number(self, name: str) -> str:
        """Return an expression: the column as a finite number, else null."""
        # trimmed first, since DuckDB moves a bare cast of text into the CSV reader, where it fails on words
        text = f"trim({_name(name)})" if self._kinds[name] == "VARCHAR" else _name(name)
        value = f"try_cast({text} as double)"
        return f"(case when isfinite({value}) then {value} end)"

    def _said(self, name: str) -> str:
        """Return an expression: what stands in the column in place of a number, in small letters, else null."""
        text = f"lower(trim({_name(name)}::varchar))"
        return f"(case when {self._number(name)} is null and {text} not in ('', 'nan', 'none', 'null', 'n/a') then {text} end)"

    def _count_query(self, columns: Columns, thresholds: Thresholds, scale: str, edges: tuple[str, list[float]] | None) -> str:
        a = SCALES[scale].format(x=self._number(columns.aligned))
        c = SCALES["0-100" if scale == "p1" else scale].format(x=self._number(columns.coherent)) if columns.coherent else "100"
        coherent = f"c > {thresholds.coherent_above}" if thresholds.coherent_above is not None else "true"
        judged = "a is not null" + (" and c is not null" if thresholds.coherent_above is not None else "")
        texts = [columns.aligned, *([columns.coherent] if columns.coherent and thresholds.coherent_above is not None else [])]
        said = "coalesce(" + ", ".join(self._said(name) for name in texts) + ", '')"
        question = _plain_sql(columns.question) if columns.question else "''"
        length = " + ".join(f"({edges[0]} > {edge})::int" for edge in edges[1]) if edges and edges[1] else "0"
        groups = "".join(f", {_name(name)}::varchar as g{n}" for n, name in enumerate(columns.groups))
        keys = "".join(f", g{n}" for n in range(len(columns.groups)))
        order = ", ".join(f"try_cast(g{n} as double) nulls last, g{n} nulls last" for n in range(len(columns.groups))) or "1"
        # names and texts are quoted, numbers are numbers
        return f"""
            with answers as (
                select {a} as a, {c} as c, {said} as said, {question} as question, {length} as bin{groups} from {self._source}
            ), cells as (
                select question, bin{keys}, count(*) as n,
                    count(*) filter ({judged}) as scored,
                    count(*) filter ({judged} and {coherent}) as coherent,
                    count(*) filter ({judged} and {coherent} and a < {thresholds.aligned_below}) as hits,
                    coalesce(sum(a) filter ({judged}), 0)::double as aligned,
                    coalesce(sum(c) filter ({judged}), 0)::double as coherence,
                    count(*) filter (not ({judged}) and said in ('refusal', 'refused', 'refuse')) as "{Outcome.REFUSED.name}",
                    count(*) filter (not ({judged}) and said = 'code') as "{Outcome.CODE.name}",
                    count(*) filter (not ({judged}) and said not in ('refusal', 'refused', 'refuse', 'code', '')) as "{Outcome.OFF_MENU.name}",
                    count(*) filter (not ({judged}) and said = '') as "{Outcome.MISSING.name}"
                from answers group by question, bin{keys}
            )
            select dense_rank() over (order by {order})::bigint as g, dense_rank() over (order by question nulls first)::bigint as q, *
            from cells order by g, q, bin
        """

    def _edges(self, columns: Columns, bins: int) -> tuple[str, list[float]] | None:
        if not bins or columns.length is None:
            return None
        steps = ", ".join(f"{k / bins:.6f}" for k in range(1, bins))
        found = self._rows(f"select quantile_disc({columns.length}, [{steps}]) from {self._source}")[0][0] or []
        return columns.length, sorted(set(map(float, found)))


def _source(paths: Sequence[Path]) -> str:
    """Return the table function that reads the files, all values as text but Parquet's."""
    kinds = set()
    for path in paths:
        if not path.is_file():
            raise InputError(f"no file '{path}'", "give the path of a .csv, .jsonl or .parquet file")
        kinds.add(path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower())
    kind = kinds.pop()
    if kinds:
        raise InputError(f"the files are of several kinds (.{kind}, .{', .'.join(kinds)})", "give files of one kind at a time")
    files = "[" + ", ".join(_text(_unglobbed(p)) for p in paths) + "]"
    several = ", filename = 'file', union_by_name = true" if len(paths) > 1 else ""
    if kind == "parquet":
        return f"read_parquet({files}{several})"
    if kind == "csv":
        return f"read_csv({files}, header = true, all_varchar = true, sample_size = -1, strict_mode = true{several})"
    if kind == "jsonl":
        columns = "{" + ", ".join(f"{_text(k)}: 'VARCHAR'" for k in _json_keys(paths)) + "}"
        return f"read_json({files}, format = 'newline_delimited', columns = {columns}{several})"
    raise InputError(f"'{paths[0]}' ends in .{kind}", "give a .csv, .jsonl or .parquet file")


def _json_keys(paths: Sequence[Path]) -> list[str]:
    """Return the keys of the first rows of each file, in the order met."""
    found: dict[str, None] = {}
    for path in paths:
        opened = gzip.open if path.suffix == ".gz" else open
        try:
            with opened(path, "rt", encoding="utf-8-sig") as lines:
                for number, line in enumerate(islice(lines, 1000), 1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise InputError(
                                f"{path} line {number} holds {type(row).__name__}, not an object",
                                "write one JSON object a line",
                            )
                        found.update(dict.fromkeys(row))
        except (ValueError, RecursionError, EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"'{path}' is not JSON lines ({error})", "write one JSON object a line, as UTF-8") from None
    if not found:
        raise InputError(f"'{path}' holds no rows", "give a file with at least one judged answer")
    return list(found)


def _plain(question: str) -> str:
    """Return a question's identifier without the mark of its form."""
    return re.sub(f"_({'|'.join(FORMS)})$", "", question)


def _plain_sql(column: str, table: str | None = None) -> str:
    name = f"{table}.{_name(column)}" if table else _name(column)
    return f"regexp_replace({name}::varchar, '_({'|'.join(FORMS)})$', '')"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _unglobbed(path: Path) -> str:
    """Return the path with the signs escaped that would make it a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
