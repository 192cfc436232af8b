"""Being asked to end is being interrupted: what is done is written first, whichever signal it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | int | None  # of a signal
ASKED = ("SIGTERM", "SIGHUP")  # of a queue's time limit, of a terminal that closes


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Take the signals that ask a program to end for an interrupt, as Ctrl-C is; in the main thread alone.

    A signal that is ignored (nohup) or handled by somebody else stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Handler] = {}
    for name in ASKED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
