"""Cells of a study on disk: a finished one has its rows, one part per table, and a record, written last, that names them.

tables/TABLE/cell-KEY.parquet   its rows
cells/KEY.json                  its record; without one, or if a part does not match it, the cell is not finished
work/KEY/tables/                what an unfinished one has so far
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter

from emscope.core.digest import file_digest
from emscope.store.files import write_atomic, write_json
from emscope.store.rows import FOLDER, Rows, part, parts_of, read_table

CELLS, WORK, NAMED = "cells", "work", "cell-"
TABLES_OF_CELLS = ("runs", "checkpoints", "train_log", "geometry", "preferences", "responses", "answers")
Fault = Literal["diverged", "memory", "other"]


@dataclass(frozen=True, slots=True)
class Part:
    """One table's rows of a cell: the size of their file and its digest."""

    rows: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of a cell.

    Attributes:
        why, fault: for a failed one; None in a finished one.
        parts: its rows by table. samples: answers to each question; 0 where the questions set it themselves, or none were asked.
        seconds: wall-clock time. tokens: by use: trained, read, sampled. peak_bytes: the process's peak memory so far.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    key: str
    name: str
    parts: Mapping[str, Part]
    samples: int
    seconds: float
    tokens: Mapping[str, int]
    host: str
    threads: int
    peak_bytes: int
    why: str | None = None
    fault: Fault | None = None


def record_of(root: Path, key: str) -> Record | None:
    """Return a cell's record; None if it is missing or damaged."""
    try:
        found = _of_record().validate_json((root / CELLS / f"{key}.json").read_bytes(), strict=True)
    except (OSError, ValueError, RecursionError):
        return None
    return found if found.key == key and found.parts.keys() <= set(TABLES_OF_CELLS) else None


@cache
def _of_record() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def settled(root: Path, key: str, samples: int) -> Record | None:
    """Return the record of a cell that has failed, or is finished with enough answers to each question; None where there is something to do."""
    record = record_of(root, key)
    if record is None or record.why is not None:
        return record
    enough = record.samples >= samples if samples else record.samples == 0
    return record if enough and whole(root, record) else None


def write_record(root: Path, record: Record) -> None:
    """Write a cell's record: from now on it is finished, or has failed."""
    write_json(root / CELLS / f"{record.key}.json", asdict(record))


def reopen(root: Path, record: Record) -> None:
    """Have a cell done again: its rows are kept, except for parts that do not match the record."""
    for table, one in record.parts.items():
        path = part(root, table, NAMED + record.key)
        if path.is_file() and file_digest(path) != one.digest:
            path.unlink()
    (root / CELLS / f"{record.key}.json").unlink(missing_ok=True)


def whole(root: Path, record: Record, *, thorough: bool = False) -> bool:
    """True where all rows that a record names are there. `thorough`: compare their content, not only their size."""
    for table, one in record.parts.items():
        path = part(root, table, NAMED + record.key)
        try:
            if path.stat().st_size != one.bytes or (thorough and file_digest(path) != one.digest):
                return False
        except OSError:
            return False
    return True


def begun(root: Path, key: str) -> Rows:
    """Return the rows that an unfinished cell has so far, to continue with: those of earlier work, and of parts already in place."""
    rows = Rows(root / WORK / key)
    for table in TABLES_OF_CELLS:
        landed, there = part(root, table, NAMED + key), part(rows.root, table, NAMED + key)
        if landed.is_file() and not there.is_file():
            write_atomic(there, lambda temporary, landed=landed: shutil.copyfile(landed, temporary))  # type: ignore[misc]
    drop_damaged(rows)
    return rows


def drop_damaged(rows: Rows) -> None:
    """Delete parts that are not Parquet; they are then made again."""
    for table in TABLES_OF_CELLS:
        for path in parts_of(rows.root, table):
            try:
                pq.read_table(path)
            except Exception:  # whatever a broken file makes the reader say
                path.unlink()


def clear(rows: Rows) -> None:
    """Delete what an unfinished cell has so far."""
    shutil.rmtree(rows.root / FOLDER, ignore_errors=True)


def land(root: Path, key: str, rows: Rows) -> dict[str, Part]:
    """Put the rows of a cell in place, one part per table, and return what is there. A second call replaces the first's."""
    parts = {}
    for table in TABLES_OF_CELLS:
        content, path = read_table(rows.root, table), part(root, table, NAMED + key)
        if not len(content):
            path.unlink(missing_ok=True)
            continue
        write_atomic(path, lambda temporary, content=content: pq.write_table(content, temporary))  # type: ignore[misc]
        parts[table] = Part(len(content), path.stat().st_size, file_digest(path))
    return parts


def drop_work(root: Path, key: str) -> None:
    """Delete the rows of a cell's work, once they are in place or of no use."""
    shutil.rmtree(root / WORK / key, ignore_errors=True)


def sort_loose(root: Path, keys: Mapping[str, str]) -> None:
    """Give rows of an earlier layout, whose parts belong to no cell, to the cells that continue them.

    Args:
        keys: each cell's key by the name of its run. Parts that hold other runs stay as they are.
    """
    for table in TABLES_OF_CELLS:
        for path in parts_of(root, table):
            if path.stem.startswith(NAMED):
                continue
            try:
                content = pq.read_table(path).to_pylist()
                names = {row["run"] for row in content}
            except (pa.ArrowException, ValueError, OSError, KeyError):
                continue  # reading the table will report it
            if not names <= keys.keys():
                continue
            for name in names:
                Rows(root / WORK / keys[name]).append(table, [row for row in content if row["run"] == name])
            path.unlink()
