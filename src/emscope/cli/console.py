"""What commands share: progress with time left on standard error, JSON on standard output."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from emscope.core.progress import Progress

QUIET_SECONDS = 15.0
COUNTED_IN_TOKENS = 1000  # steps and models are fewer, tokens are more


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a Progress that draws bars with time left on a terminal, and a line now and then elsewhere."""
    warnings.filterwarnings("ignore")
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
        tasks: dict[str, Any] = {}

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


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the numbers of a comma list such as `1,2,5`.

    Raises:
        InputError: where one is no number above zero.
    """
    from math import isfinite

    from emscope.core.errors import InputError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(not isfinite(v) or v <= 0 for v in values) or len(set(values)) < len(values):
        raise InputError(f"{option} is '{text}'", "give different numbers above 0 with commas between, such as 1,2,5")
    return values


def real_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return the different numbers of a comma list such as `-1,0.5,2`.

    Raises:
        InputError: where one is no finite number, or stands twice.
    """
    from math import isfinite

    from emscope.core.errors import InputError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(isfinite, values)) or len(set(values)) < len(values):
        raise InputError(f"{option} is '{text}'", "give different numbers with commas between, such as -1,0.5,2")
    return values


def whole_numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return the whole numbers of a comma list such as `8,12,16`; None where there is none.

    Raises:
        InputError: where one is no whole number.
    """
    from emscope.core.errors import InputError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} is '{text}'", "give whole numbers with commas between, such as 8,12,16") from None


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """Return the names and values of `name=value` texts.

    Raises:
        InputError: where one is no such text, or a name stands twice.
    """
    from emscope.core.errors import InputError

    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name or name in found:
            raise InputError(f"{option} is '{text}'", "give column=value, each column once")
        found[name] = value
    return found


def listed(text: str | None) -> tuple[str, ...] | None:
    """Return the names in a comma list such as `model,dataset`."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def two_prices(text: str | None, what: str) -> tuple[float, float] | None:
    """Return the two numbers of --prices.

    Raises:
        InputError: where they are not two numbers.
    """
    from emscope.core.errors import InputError

    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--prices is '{text}'", f"give two numbers, {what}") from None
    return first, second


def number_or_none(text: str, option: str) -> float | None:
    """Return a number, or None for `none`.

    Raises:
        InputError: where it is neither.
    """
    from emscope.core.errors import InputError

    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise InputError(f"{option} is '{text}'", "give a number from 0 to 100, or none") from None


def dtype_named(name: str) -> str:
    """Return the dtype that --dtype names.

    Raises:
        InputError: where there is none of that name.
    """
    from emscope.core.errors import InputError
    from emscope.models.loading.load import DTYPES

    if name not in DTYPES:
        raise InputError(f"--dtype is '{name}'", f"use one of {', '.join(DTYPES)}")
    return name
