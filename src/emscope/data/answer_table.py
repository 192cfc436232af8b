"""A user's file of answers as a table to query in SQL, whatever its kind and size; bounded memory, nothing written."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emscope.core.errors import InputError, MissingDependency, near
from emscope.data import inspect_log
from emscope.data.questions import FORMS
from emscope.data.tables import unpacked

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Record = tuple[Any, ...]  # a row's types depend on the query

MEMORY = "600MB"
LOG = "inspect_log"
QUESTIONS = ("question_id", "question", "prompt_id", "prompt", "item", "id")


class AnswerTable:
    """A file of answers, or several of the same kind read as one; a context manager.

    Args:
        paths: .csv, .jsonl or .parquet, gzip allowed for the first two, or Inspect's .eval logs. With several files, the column
            `file` says which (with logs, `log`).

    Attributes:
        names: of the columns; source: the SQL that stands for the rows; where: the file's name for messages.

    Raises:
        InputError: a file is missing, of an unknown kind, damaged or empty.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        try:
            import duckdb
        except ImportError:
            raise MissingDependency("reading tables needs duckdb", "pip install duckdb") from None
        self.paths, self._duckdb = list(paths), duckdb
        kind = _kind(self.paths)  # each exists: a link that leads to itself does not resolve
        whole = [p.resolve() for p in self.paths]
        for path in whole:
            if path.suffix == ".gz":
                for _ in unpacked(path):  # rejects a bomb, whose single line may be as long as the whole file
                    pass
        twice = next((p for p, w in zip(self.paths, whole, strict=True) if whole.count(w) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice}' is given twice", "an answer counts once: name each file once")
        self._db = duckdb.connect(config={"memory_limit": MEMORY, "enable_external_access": True})
        if kind == inspect_log.KIND:
            self._db.register(LOG, inspect_log.log_table(self.paths))
        self.source = LOG if kind == inspect_log.KIND else _source(self.paths, kind)
        self._db.execute("set enable_progress_bar = false")
        self._kinds = self._described()
        self.names = list(self._kinds)
        if not self.rows(f"select 1 from {self.source} limit 1"):
            raise InputError(f"'{self.where}' holds no rows", "give a file with at least one judged answer")

    def __enter__(self) -> AnswerTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @property
    def where(self) -> str:
        """The file's name, for messages."""
        return str(self.paths[0]) if len(self.paths) == 1 else f"{self.paths[0]} and {len(self.paths) - 1} more"

    def rows(self, sql: str) -> list[Record]:
        """Return the rows that a query gives."""
        return self.run(sql).fetchall()

    def run(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Run a query.

        Raises:
            InputError: the file turns out to be damaged.
        """
        try:
            return self._db.execute(sql)
        except self._duckdb.Error as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        first = str(error).strip().split("\n")[0]
        return InputError(f"'{self.where}' cannot be read ({first})", "fix the file, or save it again")

    def _described(self) -> dict[str, str]:
        try:
            return {name: kind for name, kind, *_ in self.rows(f"describe select * from {self.source}")}
        except InputError as error:
            if 'adds column "file"' not in str(error):
                raise
            raise InputError(
                f"'{self.where}' has a column 'file' of its own",
                "rename it: with several files, `file` says which one a row is from",
            ) from None

    def batches(self, columns: Sequence[str], size: int = 20_000) -> Iterator[pa.Table]:
        """Yield the rows as Arrow tables of these columns and at most `size` rows, in the file's order."""
        import pyarrow as pa

        try:
            reader = self._db.sql(f"select {', '.join(map(quoted, columns))} from {self.source}").to_arrow_reader(size)
            for batch in reader:
                yield pa.Table.from_batches([batch])
        except (self._duckdb.Error, pa.ArrowException) as error:  # damage shows where it is read
            raise self._unreadable(error) from None

    def pairs(self, first: str, second: str) -> list[tuple[str, str]]:
        """Return the different pairs of texts in two columns, in order; pairs with an empty one are left out.

        Raises:
            InputError: a column holds something other than text.
        """
        self.hold_text(first, second)
        a, b = (f"{quoted(c)}::varchar" for c in (first, second))
        filled = f"{a} is not null and {b} is not null"
        found = self.rows(f"select distinct {a}, {b} from {self.source} where {filled} order by all")
        return [(x, y) for x, y in found if x.strip() and y.strip()]

    def values(self, texts: Sequence[str], numbers: Sequence[str]) -> list[Record]:
        """Return the rows as text of some columns and finite numbers of others, null where there is none; in the order of all of them."""
        columns = [*(f"{quoted(c)}::varchar" for c in texts), *(self.number(c) for c in numbers)]
        return self.rows(f"select {', '.join(columns)} from {self.source} order by all")

    def hold_text(self, *columns: str) -> None:
        """Reject columns that hold something other than text.

        Raises:
            InputError: naming the column and what it holds.
        """
        for name in columns:
            if self._kinds[name] != "VARCHAR":
                raise InputError(f"column '{name}' of '{self.where}' holds {self._kinds[name]}, not text", "write it as text")

    def usual(self, names: Sequence[str]) -> str | None:
        """Return the first of the field's usual names that is a column, ignoring case."""
        lower = {name.lower(): name for name in reversed(self.names)}
        return next((lower[n] for n in names if n in lower), None)

    def named(self, *columns: str | None) -> None:
        """Reject columns that are not there.

        Raises:
            InputError: naming the nearest.
        """
        for name in columns:
            if name is not None and name not in self._kinds:
                raise InputError(f"'{self.where}' has no column '{name}'", near(name, self.names))

    def question(self, taken: Sequence[str] = ()) -> str | None:
        """Return the usual question column, passing over one that is empty in some rows for one that is not."""
        lower = {name.lower(): name for name in reversed(self.names)}
        known = [lower[n] for n in QUESTIONS if n in lower and lower[n] not in taken]
        if len(known) < 2:
            return known[0] if known else None
        empty = self.rows(f"select {', '.join(f'count(*) - count({quoted(n)})' for n in known)} from {self.source}")[0]
        return min(zip(known, empty, strict=True), key=lambda pair: pair[1])[0]

    def join(self, column: str, name: str, values: dict[str, str]) -> None:
        """Add the column `name`: the entry of `values` for the question in `column`, empty where there is none."""
        self.run("create temp table joined (asked varchar, said varchar)")
        self._db.executemany("insert into joined values (?, ?)", list(values.items()))
        self.source = (
            f"(select a.*, j.said as {quoted(name)} from {self.source} a left join joined j on {asked(column, 'a')} = j.asked)"
        )
        self._kinds[name] = "VARCHAR"
        self.names = list(self._kinds)

    def number(self, name: str) -> str:
        """Return an expression: the column as a finite number, else null."""
        # trimmed first, since DuckDB moves a bare cast of text into the CSV reader, where it fails on words
        text = f"trim({quoted(name)})" if self._kinds[name] == "VARCHAR" else quoted(name)
        value = f"try_cast({text} as double)"
        return f"(case when isfinite({value}) then {value} end)"

    def said(self, name: str) -> str:
        """Return an expression: the column's text where it is not a number, or that of NAME_outcome beside it, in lower case."""
        texts = [f"lower(trim({quoted(n)}::varchar))" for n in (name, f"{name}_outcome") if n in self._kinds]
        filled = [f"case when {t} not in ('', 'nan', 'none', 'null', 'n/a') then {t} end" for t in texts]
        return f"(case when {self.number(name)} is null then coalesce({', '.join(filled)}) end)"


def _kind(paths: Sequence[Path]) -> str:
    """Return what the files end in.

    Raises:
        InputError: one is not there, or they are of several kinds.
    """
    kinds = set()
    for path in paths:
        if not path.is_file():
            raise InputError(f"no file '{path}'", "give the path of a .csv, .jsonl, .parquet or .eval file")
        kinds.add(path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower())
    kind = kinds.pop()
    if kinds:
        raise InputError(f"the files are of several kinds (.{kind}, .{', .'.join(kinds)})", "give files of one kind at a time")
    return kind


def _source(paths: Sequence[Path], kind: str) -> str:
    """Return the table function that reads the files, all values as text but Parquet's."""
    files = "[" + ", ".join(text(_unglobbed(p)) for p in paths) + "]"
    options = ", hive_partitioning = false"  # a folder named model=X is not a column
    options += ", filename = 'file', union_by_name = true" if len(paths) > 1 else ""
    if kind == "parquet":
        return f"read_parquet({files}{options})"
    if kind == "csv":
        return f"read_csv({files}, header = true, all_varchar = true, sample_size = -1, strict_mode = true, comment = '', skip = 0{options})"
    if kind == "jsonl":
        columns = "{" + ", ".join(f"{text(k)}: 'VARCHAR'" for k in _json_keys(paths)) + "}"
        return f"read_json({files}, format = 'newline_delimited', columns = {columns}{options})"
    raise InputError(f"'{paths[0]}' ends in .{kind}", "give a .csv, .jsonl, .parquet or .eval file")


def _json_keys(paths: Sequence[Path]) -> list[str]:
    """Return the keys of all rows of the files, those of the first rows in the order met."""
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
                                "write one JSON object per line",
                            )
                        found.update(dict.fromkeys(row))
        except (ValueError, RecursionError, EOFError, OSError, zlib.error) as error:
            raise InputError(f"'{path}' is not JSON lines ({error})", "write one JSON object per line, as UTF-8") from None
    if not found:
        raise InputError(f"'{path}' holds no rows", "give a file with at least one judged answer")
    found.update(dict.fromkeys(_later_keys(paths)))
    small: dict[str, str] = {}
    for key in found:
        if small.setdefault(key.lower(), key) != key:
            raise InputError(f"'{paths[0]}' has the keys '{small[key.lower()]}' and '{key}'", "rename one of them")
    return list(found)


def _later_keys(paths: Sequence[Path]) -> list[str]:
    import duckdb

    files = "[" + ", ".join(text(_unglobbed(p)) for p in paths) + "]"
    query = (
        f"select distinct unnest(json_keys(json)) as k from read_json_objects({files}, format = 'newline_delimited') order by k"
    )
    with duckdb.connect() as con:
        try:
            return [str(k) for (k,) in con.sql(query).fetchall()]
        except duckdb.Error as error:
            raise InputError(
                f"'{paths[0]}' is not JSON lines ({str(error).splitlines()[0]})", "write one JSON object per line"
            ) from None


def plain(question: str) -> str:
    """Return a question's identifier without the mark of its form."""
    return re.sub(f"_({'|'.join(FORMS)})$", "", question)


def asked(column: str, table: str | None = None) -> str:
    """Return an expression: the identifier of the question in a column, without the mark of its form."""
    name = f"{table}.{quoted(column)}" if table else quoted(column)
    return f"regexp_replace({name}::varchar, '_({'|'.join(FORMS)})$', '')"


def quoted(name: str) -> str:
    """Return a column's name as SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def _unglobbed(path: Path) -> str:
    """Return the path with characters escaped that would make it a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
