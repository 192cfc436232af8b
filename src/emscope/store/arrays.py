"""Large arrays on disk that fill up row by row: a safetensors file, memory-mapped, that records which rows are there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from emscope.core.errors import InputError
from emscope.store.files import disk_error, write_atomic

VALUES, DONE = "values", "done"


class ArrayFile:
    """Rows of float32 on disk.

    Attributes:
        values: [N, ...], memory-mapped. done: which rows are there [N], uint8, memory-mapped.
    """

    def __init__(self, path: Path, values: np.memmap, done: np.memmap) -> None:
        self.path, self.values, self.done = path, values, done

    def missing(self) -> list[int]:
        """Return the rows that are not there yet."""
        return np.flatnonzero(self.done == 0).tolist()

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Put rows in place; they count only once their values are on disk.

        Raises:
            WorldError: the disk is full.
        """
        try:
            self.values[list(rows)] = values
            self.values.flush()
            self.done[list(rows)] = 1
            self.done.flush()
        except OSError as error:
            raise disk_error(self.path, error) from None


@contextmanager
def array_file(path: Path, shape: tuple[int, ...], about: Mapping[str, str]) -> Iterator[ArrayFile]:
    """Open, or make, the file of an array of this shape; it can be read as safetensors at any time.

    Args:
        about: what the rows describe; kept in the file's metadata.

    Raises:
        InputError: the file is there and holds something else.
    """
    if not path.is_file():
        write_atomic(path, lambda temporary: _make(temporary, shape, about))
    found, known, start, offset = _read(path)
    if found != shape or known != dict(about):
        raise InputError(f"'{path}' holds something else ({list(found)}, {known})", "delete it, or choose another folder")
    values = np.memmap(path, np.float32, "r+", start, shape)
    done = np.memmap(path, np.uint8, "r+", start + offset, (shape[0],))
    try:
        yield ArrayFile(path, values, done)
    finally:
        values.flush()
        done.flush()


def _make(path: Path, shape: tuple[int, ...], about: Mapping[str, str]) -> None:
    size = int(np.prod(shape)) * 4
    header = json.dumps(
        {
            "__metadata__": dict(about),
            VALUES: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]},
            DONE: {"dtype": "U8", "shape": [shape[0]], "data_offsets": [size, size + shape[0]]},
        }
    ).encode()
    header += b" " * (-len(header) % 64)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.flush()
        _allocate(file.fileno(), 8 + len(header) + size + shape[0])


def _allocate(handle: int, size: int) -> None:
    """Give a file its size, and reserve its disk space where the system can: writing to a mapped page without space kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.ftruncate(handle, size)


def _read(path: Path) -> tuple[tuple[int, ...], dict[str, str], int, int]:
    """Return shape, metadata, and where values and, from there, the marks begin [bytes]."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            entry = header[VALUES]
            return tuple(entry["shape"]), header.get("__metadata__", {}), 8 + length, header[DONE]["data_offsets"][0]
        except (ValueError, KeyError, TypeError, MemoryError) as error:
            raise InputError(f"'{path}' is damaged ({error})", "delete it; it will be made again") from None
