"""Rows as files that other programs open: CSV, in which no text is a formula, and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from emscope.core.plain import Json
from emscope.core.visible import whole
from emscope.store.files import write_atomic, write_text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes text that begins with one of these
LARGE = 2**63


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Json]]) -> None:
    """Write rows of plain values into NAME.csv and NAME.parquet; a column that a row lacks is empty there.

    The CSV has numbers with all their digits, and an apostrophe before text that a spreadsheet would compute.

    Raises:
        InputError, WorldError: as `store.files.write_atomic`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([_safe(column) for column in columns])
    lines.writerows([_safe(row.get(column)) for column in columns] for row in rows)
    write_text(folder / f"{name}.csv", text.getvalue())
    table = pa.table({column: pa.array([_stored(row.get(column)) for row in rows]) for column in columns})
    write_atomic(folder / f"{name}.parquet", lambda temporary: pq.write_table(table, temporary))


def _safe(value: Json) -> str:
    """Return a value as a CSV cell."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _stored(value: Json) -> Json:
    """Return a value as Parquet has it: text that every encoding holds, whole numbers of 64 bits."""
    if isinstance(value, int) and abs(value) >= LARGE:
        return float(value)
    return whole(value) if isinstance(value, str) else value
