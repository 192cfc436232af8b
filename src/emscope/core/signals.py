"""A request to end is handled as an interrupt, whichever signal it was: finished work is written first."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType

Handler = Callable[[int, FrameType | None], object] | int | None  # of a signal
AGAIN = 0.01  # seconds, by which what dropped an interrupt has usually ended
ASKED = ("SIGTERM", "SIGHUP")  # of a queue's time limit, of a terminal that closes


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Treat the signals that ask a program to end as an interrupt, like Ctrl-C; only in the main thread.

    A signal that is ignored (nohup) or handled elsewhere stays so. One that arrives while Python clears up, where it drops every
    error, is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = sys.unraisablehook
    last = [int(signal.SIGINT)]  # which signal interrupted

    def interrupt(number: int, _: FrameType | None) -> None:
        last[0] = number
        raise KeyboardInterrupt

    def dropped(found: sys.UnraisableHookArgs) -> None:
        if found.exc_type is KeyboardInterrupt:
            threading.Thread(target=again, daemon=True).start()
        else:
            others(found)

    def again() -> None:
        time.sleep(AGAIN)
        while _is_in(dropped.__code__):  # on a busy machine; there, too, it would be dropped
            time.sleep(AGAIN)
        os.kill(os.getpid(), last[0])

    before: dict[int, Handler] = {}
    for name in ASKED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, interrupt)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = others
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in(code: CodeType) -> bool:
    """True while the main thread is in a function."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
