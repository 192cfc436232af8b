"""Limits on what an untrusted file may cost: seconds and memory of a block, size and depth of plain values."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from emscope.core.errors import EmscopeError, InputError

PANIC = "PanicException"  # what libraries written in Rust raise, outside of Exception
DEEPEST, MOST_VALUES = 200, 2_000_000


class TooMuch(Exception):
    """A block ran beyond its limits."""


@contextmanager
def strangers(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises over an untrusted file into one sentence; deliberate errors pass through.

    Args:
        what: of the sentence, such as "'x' cannot be loaded"; the reason follows in brackets. remedy: what to do.

    Raises:
        InputError: with the first line of what was raised, and its class where it says nothing.
    """
    try:
        yield
    except EmscopeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise InputError(f"{what} ({reason(error)})", remedy) from None


@contextmanager
def consistent(what: str, remedy: str, *also: type[Exception]) -> Iterator[None]:
    """Turn faults of values that are valid one by one but not together into one sentence.

    Args:
        what: was read from a file. remedy: what to do. also: what a library raises over such values.

    Raises:
        InputError: with the class of the fault.
    """
    kinds: tuple[type[Exception], ...] = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, *also)
    try:
        yield
    except kinds as error:
        raise InputError(f"{what} is inconsistent ({type(error).__name__}: {reason(error)})", remedy) from None


def reason(error: BaseException) -> str:
    """Return the first line of an error, after its class unless that is a plain value error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:200] if lines else ""
    plain = isinstance(error, ValueError | OSError | TooMuch | RuntimeError) and not isinstance(error, RecursionError)
    return said if said and plain else ": ".join(one for one in (type(error).__name__, said) if one)


@contextmanager
def bounded(seconds: float, more_bytes: int | None = None) -> Iterator[None]:
    """End a block that computes too long, or takes more memory than it may.

    It works in the main thread of a POSIX system, on what Python runs and on its regular expressions; elsewhere the block runs
    without limits.

    Args:
        seconds: of processor time, so that a busy machine rejects nothing. more_bytes: address space beyond what the process has;
            None for no limit.

    Raises:
        TooMuch: with what was too much.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TooMuch(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGVTALRM, ring)
    earlier, _ = signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        with _memory(more_bytes) if more_bytes else nullcontext():
            yield
    except MemoryError:
        raise TooMuch("it takes too much memory") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, earlier)  # an earlier timer fires late rather than never
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory(more_bytes: int) -> Iterator[None]:
    """Lower the limit of the address space inside a block."""
    import resource

    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except OSError:
        yield
        return
    wanted = used + more_bytes
    free = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([wanted, *free]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_size(value: object) -> None:
    """Reject plain values that contain themselves, are nested too deep, or would take too much memory once shared parts are expanded.

    Raises:
        TooMuch: with what was too much.
    """
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(one: object, depth: int) -> int:
        if not isinstance(one, dict | list | tuple | set):
            return 1
        if id(one) in open_:
            raise TooMuch("a part of it contains itself")
        if depth > DEEPEST:
            raise TooMuch(f"it is nested deeper than {DEEPEST}")
        if id(one) not in sizes:
            open_.add(id(one))
            inside = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            sizes[id(one)] = 1 + sum(size(part, depth + 1) for part in inside)
            open_.discard(id(one))
        if sizes[id(one)] > MOST_VALUES:
            raise TooMuch(f"it expands to more than {MOST_VALUES} values")
        return sizes[id(one)]

    size(value, 0)
