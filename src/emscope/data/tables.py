"""Rows of a user's file (JSONL, JSON, CSV, Parquet; gzip allowed), each with the place to name in an error."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from emscope.core.errors import InputError
from emscope.core.visible import HALF

MOST_PACKED = 200  # how many times smaller text gets; a bomb shrinks a thousand times
PIECE = 2**22
HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")

Row = Mapping[str, object]  # from an untrusted file: nothing is known about a value before it is checked


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield `("FILE line N", row)` for each row of a file.

    Raises:
        InputError: missing file, unknown ending, broken line (with its number), or a row that is not a mapping.
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
            raise InputError(f"{place} holds {type(row).__name__}, not an object", "write one JSON object per line")
        count += 1
        yield place, row
    if not count:
        raise InputError(f"'{path}' holds no rows", "give a file with at least one")


def text(path: Path) -> str:
    """Return a UTF-8 text file's content, unpacked if it ends in .gz.

    Raises:
        InputError: where it is not UTF-8 or not gzip.
    """
    try:
        raw = b"".join(unpacked(path)) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"'{path}' cannot be read ({error})", "save it as UTF-8 text") from None


def unpacked(path: Path) -> Iterator[bytes]:
    """Yield the content of a gzip file piece by piece.

    Raises:
        InputError: damaged, or so much larger when unpacked that it cannot be text.
    """
    size, most = 0, MOST_PACKED * path.stat().st_size + PIECE
    try:
        with gzip.open(path) as file:
            while piece := file.read(PIECE):
                size += len(piece)
                if size > most:
                    raise InputError(f"'{path}' unpacks to more than {MOST_PACKED} times its size", "unpack it yourself")
                yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"'{path}' is damaged ({error})", "pack it again") from None


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text(path).split("\n"), 1):
        if line.strip():
            yield f"{path} line {number}", _decode(line, f"{path} line {number}")


def _json(path: Path) -> Iterator[tuple[str, object]]:
    content = _decode(text(path), str(path))
    if not isinstance(content, list):
        raise InputError(f"'{path}' holds {type(content).__name__}, not a list of objects", "write a JSON list, or use .jsonl")
    for number, row in enumerate(content, 1):
        yield f"{path} row {number}", row


def _decode(line: str, place: str) -> object:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error})", "fix or delete that line") from None
    if HALF_ESCAPED.search(line) and HALF.search(json.dumps(found, ensure_ascii=False)):
        raise InputError(f"{place} holds half a character (a lone surrogate such as \\ud800)", "fix or delete that line")
    return found


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader(io.StringIO(text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{path} line {reader.line_num} has a different number of fields than the header", "fix that line"
                )
            yield f"{path} line {reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not CSV ({error})", "fix that line") from None


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        about, size = pq.ParquetFile(path).metadata, path.stat().st_size
        unpacked_size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
        if max(unpacked_size, 4 * about.num_rows) > MOST_PACKED * size + 16 * PIECE:
            raise InputError(f"'{path}' unpacks to more than {MOST_PACKED} times its size", "write it again")
        table = pq.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"'{path}' is not Parquet ({error})", "give an undamaged file") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path} row {number}", row
