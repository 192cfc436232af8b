"""Tables of rows in a folder: each part is one Parquet file, whole or absent, and each key counts once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emscope.core.digest import short
from emscope.core.errors import InputError
from emscope.core.visible import whole
from emscope.store.files import write_atomic
from emscope.store.schemas import TABLES

FOLDER = "tables"


class Rows:
    """The tables below `root`, written by this process alone.

    Attributes:
        shared: other processes write to the same tables; a piece of work is then done by whoever claims it first (`claimed`).
    """

    shared = False

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def claimed(self, work: str) -> Iterator[bool]:
        """Yield whether this process may do a piece of work: always, where nobody shares the tables."""
        yield True

    def keys(self, table: str) -> set[str]:
        """Return the keys already in a table; a row whose key is here need not be computed again."""
        return set(read_table(self.root, table, columns=["key"]).column("key").to_pylist())

    def append(self, table: str, rows: Sequence[Mapping[str, object]], present: set[str] | None = None) -> None:
        """Add rows to a table as one new part; rows whose key is present are left out. All of them appear or none.

        Args:
            present: the keys in the table, where the caller knows them; reading them takes as long as the table is.
        """
        present = self.keys(table) if present is None else present
        fresh = {row["key"]: row for row in rows if row["key"] not in present}
        if fresh:
            self._write_part(table, list(fresh.values()))

    def replace(self, table: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Put `rows` in place of a table's content (for tables that are derived again, such as estimates)."""
        old = list(parts_of(self.root, table))
        new = self._write_part(table, rows) if rows else None
        for path in old:
            if path != new:
                path.unlink()

    def _write_part(self, table: str, rows: Sequence[Mapping[str, object]]) -> Path:
        schema = TABLES[table]
        content = pa.Table.from_pylist([{name: _kept(row.get(name)) for name in schema.names} for row in rows], schema=schema)
        path = part(self.root, table, short(sorted(str(row["key"]) for row in rows)))
        write_atomic(path, lambda temporary: pq.write_table(content, temporary))
        return path


def _kept(value: object) -> object:
    """Return a value as a table holds it: half characters escaped, which no text encoding has."""
    return whole(value) if isinstance(value, str) else value


def read_table(root: Path, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a table of a study, parts joined, each key once, in the order of the keys.

    Raises:
        InputError: where a part is damaged.
    """
    schema = TABLES[table] if columns is None else pa.schema([TABLES[table].field(c) for c in columns])
    try:
        parts = [pq.read_table(path, columns=list(schema.names)).cast(schema) for path in parts_of(root, table)]
    except (pa.ArrowException, ValueError, OSError, KeyError) as error:
        raise InputError(
            f"table '{table}' of '{root}' is damaged ({error})", "delete the damaged part; the next run will make it again"
        ) from None
    joined = pa.concat_tables([schema.empty_table(), *parts]).sort_by("key")
    keys = joined.column("key").to_pylist()
    first = [n for n, key in enumerate(keys) if n == 0 or key != keys[n - 1]]
    return joined.take(first) if len(first) < len(keys) else joined


def part(root: Path, table: str, name: str) -> Path:
    """Return the path of a part of a table."""
    return root / FOLDER / table / f"{name}.parquet"


def parts_of(root: Path, table: str) -> list[Path]:
    """Return the parts of a table that are there."""
    return sorted((root / FOLDER / table).glob("[!.]*.parquet"))
