"""What commands share: progress with time left on standard error, JSON on standard output."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from emscope.core.errors import spelled
from emscope.core.notes import Note
from emscope.core.progress import Progress
from emscope.core.visible import json_text

if TYPE_CHECKING:
    from rich.progress import TaskID

    from emscope.core.plain import Json

QUIET_SECONDS = 15.0
COUNTED_IN_TOKENS = 1000  # steps and models are fewer, tokens are more


@contextmanager
def notes_told(options: Mapping[str, str]) -> Iterator[None]:
    """Print the notes of what is done meanwhile, each once; fields are spelled as options."""
    told: set[str] = set()
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = spelled(str(message), options)
            if not issubclass(category, Note):
                others(message, category, filename, lineno, file, line)
            elif text not in told:
                told.add(text)
                print(f"note: {text}", file=sys.stderr)

        warnings.showwarning = show
        warnings.simplefilter("always", Note)
        yield


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws bars with time left on a terminal, and a line now and then elsewhere."""
    warnings.filterwarnings("ignore")
    warnings.simplefilter("always", Note)
    for chatty in ("transformers", "bitsandbytes"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                bars.update(tasks[what], description=what + _rate(total, bars.tasks[tasks[what]].elapsed or 0))

        yield show


def _lines() -> Progress:
    started: dict[str, float] = {}
    said: dict[str, float] = {}

    def show(what: str, done: float, total: float) -> None:
        now = time.monotonic()
        began = started.setdefault(what, now)
        if done == 0 or (done < total and now - said.get(what, began) < QUIET_SECONDS):
            return
        said[what] = now
        spent = now - began
        left = f", about {spent / done * (total - done):.0f} s left" if done < total and spent > 1 else ""
        rate = _rate(total, spent) if done >= total else ""
        print(f"{what}: {done / total if total else 1:.0%}, {spent:.0f} s{left}{rate}", file=sys.stderr, flush=True)

    return show


def _rate(total: float, spent: float) -> str:
    """Say how fast it went where work is counted in tokens."""
    return f" ({total / spent:.0f} tokens/s)" if total >= COUNTED_IN_TOKENS and spent > 1 else ""


def print_json(value: Json) -> None:
    """Print one JSON document on standard output."""
    print(json_text(value, indent=1))
