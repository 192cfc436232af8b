"""What sessions at all hosts have in common: concurrent requests, repeated after temporary failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from emscope.core.errors import WorldError
from emscope.models.remote.metering import Meter
from emscope.models.remote.outcomes import LATER, Host, asked_to_wait, fault_of, said

K = TypeVar("K")
V = TypeVar("V")
ATTEMPTS = 12  # of one request, each of which the client itself repeats
LONGEST_PAUSE = 10.0  # seconds


class Unanswered(WorldError):
    """A host that keeps failing with temporary errors."""


class Session:
    """A session at a host.

    Args:
        host: for sentences. meter: counts what is sent. requests: concurrent readings and samples.
    """

    def __init__(self, host: Host, meter: Meter, requests: int) -> None:
        self.host, self.meter, self.requests = host, meter, requests
        self._stopped = threading.Event()

    def each(self, jobs: Iterable[K], do: Callable[[K], V]) -> Iterator[tuple[K, V]]:
        """Yield each job with what `do` returns of it, as they end, `requests` at a time.

        After the first error no job is started; those under way are paid for, and yielded before the error is raised.
        """
        waiting, running, fault = iter(jobs), dict[Future[V], K](), None
        with ThreadPoolExecutor(self.requests) as pool:
            try:
                while True:
                    while fault is None and len(running) < self.requests and (job := next(waiting, None)) is not None:
                        running[pool.submit(do, job)] = job
                    if not running:
                        break
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for one in ended:
                        job = running.pop(one)
                        if (error := one.exception()) is None:
                            yield job, one.result()
                        fault = fault or error
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if fault is not None:
            raise fault

    def again(self, what: str, ask: Callable[[], V]) -> V:
        """Return what `ask` returns, retrying until it does: for requests that change nothing at the host.

        Raises:
            InputError, WorldError: it cannot be obtained.
        """
        last, wait = "", 0.0
        for attempt in range(ATTEMPTS):
            try:
                return ask()
            except Exception as error:
                if (fault := fault_of(error, what, self.host)) is not None:
                    raise fault from None
                last, wait = said(error), asked_to_wait(error)
            self.pause(attempt, wait)
        raise Unanswered(f"{self.host.name} failed {ATTEMPTS} times in a row at {what} ({last})", LATER)

    def pause(self, attempt: int, least: float = 0.0) -> None:
        """Wait at least `least` seconds, longer after every failed attempt, unless cancelled."""
        self._stopped.wait(max(pause_after(attempt), least))


def pause_after(attempt: int) -> float:
    """Return how long to wait after a failed attempt [seconds]; the first is 0."""
    return min(0.05 * 2**attempt, LONGEST_PAUSE)
