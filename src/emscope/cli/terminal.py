"""Only text reaches the terminal: untrusted names, answers and messages cannot control it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from emscope.core.visible import CONTROL, escaped, shown

TABLES = "rich"  # draws tables and bars; the texts that it is given are cleaned before it styles them
STYLE = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|\r)")  # colours and the places of a bar


class Cleaned:
    """A stream that shows control characters instead of passing them on; otherwise like the original."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, cleaned; of what draws tables, on a terminal or where colour is asked for, styles pass."""
        drawn = str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0] == TABLES
        if drawn and (self._stream.isatty() or os.environ.get("FORCE_COLOR")):
            self._stream.write("".join(p if STYLE.fullmatch(p) else shown(p) for p in STYLE.split(text)))
        else:
            self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self._stream.write(shown(line))

    def __getattr__(self, name: str) -> Any:
        _clean_tables()  # table drawing asks for the stream's kind first
        return getattr(self._stream, name)


@contextmanager
def cleaned() -> Iterator[None]:
    """Show control characters on standard output and standard error inside a block."""
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Cleaned(out), Cleaned(err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _clean_tables() -> None:
    """Have the library for tables, where it is in use, show control characters in texts that it is given."""
    control = sys.modules.get("rich.control")
    table = getattr(control, "_CONTROL_STRIP_TRANSLATE", None)
    if isinstance(table, dict) and 0x1B not in table:
        codes = [*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000), 0x061C, *range(0x2000, 0x2070)]
        table.update({n: escaped(chr(n)) for n in codes if CONTROL.match(chr(n))})
