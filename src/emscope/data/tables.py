"""Rows of a user's file (JSONL, JSON, CSV, Parquet; gzip allowed), each with the place to name in an error."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError

Row = dict[str, Any]


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield `("FILE line N", row)` for each row of a file.

    Raises:
        InputError: missing file, unknown ending, broken line (with its number), or a row that is no mapping.
    """
    if not path.is_file():
        raise InputError(f"no file '{path}'", "give the path of a .jsonl, .csv or .parquet file")
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
    if kind not in readers:
        raise InputError(f"'{path}' ends in .{kind}", f"give one of .{', .'.join(readers)}")
    count = 0
    for place, row in readers[kind](path):
        if not isinstance(row, dict):
            raise InputError(f"{place} holds {type(row).__name__}, not an object", "write one JSON object a line")
        count += 1
        yield place, row
    if not count:
        raise InputError(f"'{path}' holds no rows", "give a file with at least one")


def text(path: Path) -> str:
    """Return a UTF-8 text file's content, unpacked where it ends in .gz.

    Raises:
        InputError: where it is not UTF-8 or not gzip.
    """
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"'{path}' cannot be read ({error})", "save it as UTF-8 text") from None


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            yield f"{path} line {number}", _decode(line, f"{path} line {number}")


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    content = _decode(text(path), str(path))
    if not isinstance(content, list):
        raise InputError(f"'{path}' holds {type(content).__name__}, not a list of objects", "write a JSON list, or use .jsonl")
    for number, row in enumerate(content, 1):
        yield f"{path} row {number}", row


def _decode(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error})", "mend or delete that line") from None


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(io.StringIO(text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path} line {reader.line_num} has another number of fields than the header", "mend that line"
                )
            yield f"{path} line {reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error})", "mend that line") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"'{path}' is not Parquet ({error})", "give an undamaged file") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path} row {number}", row
