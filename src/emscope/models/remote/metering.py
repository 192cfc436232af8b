"""What a host costs, counted before each request is sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from emscope.core.errors import WorldError
from emscope.models.remote.host_spec import Prices
from emscope.models.remote.hosted import Spent

MILLION = 1e6
KEEP_SECONDS = 1.0  # what a kill may leave uncounted


class OverBudget(WorldError):
    """The next request would cost more than allowed; earlier work stays."""


class Meter:
    """Counts tokens sent to a host, including repeated ones, and rejects requests beyond `max_cost` dollars.

    Args:
        before: what earlier calls spent from the same budget. keep: is given what was spent, `before` included, with the first request
            and then at most once a second.
    """

    def __init__(
        self,
        prices: Prices | None = None,
        max_cost: float | None = None,
        before: Spent = Spent(),
        keep: Callable[[Spent], None] | None = None,
    ) -> None:
        self.prices, self.max_cost, self.spent = prices, max_cost, before
        self._keep, self._kept = keep, float("-inf")
        self._lock = threading.Lock()

    @property
    def cost(self) -> float | None:
        """Dollars so far; None without prices."""
        return None if self.prices is None else dollars_for(self.prices, self.spent)

    def charge(self, more: Spent) -> None:
        """Count a request.

        Raises:
            OverBudget: it must not be sent.
        """
        with self._lock:
            after = self.spent + more
            if self.max_cost is not None and self.prices is not None and dollars_for(self.prices, after) > self.max_cost:
                raise OverBudget(
                    f"stopped at {dollars_for(self.prices, self.spent):.4g} dollars: the next request would exceed max_cost "
                    f"{self.max_cost:g}",
                    "raise it and run the same command again to continue",
                )
            self.spent = after
            if self._keep and time.monotonic() - self._kept > KEEP_SECONDS:
                self._keep(after)
                self._kept = time.monotonic()

    def refund(self, unused: int, unread: int = 0) -> None:
        """Take back tokens that were allowed but not sampled, or counted but not read."""
        with self._lock:
            self.spent = self.spent + Spent(read=-unread, sampled=-unused)


def charge_for_training(sequences: Iterable[Sequence[int]]) -> Spent:
    """Return what a training on token sequences is charged: every token but the first of each, which nothing predicts."""
    return Spent(trained=sum(len(ids) - 1 for ids in sequences))


def charge_for_reading(prompt: Sequence[int], answer: Sequence[int]) -> Spent:
    """Return what the log-probability of a fixed answer is charged: both are read, and every reading also samples one token."""
    return Spent(read=len(prompt) + len(answer), sampled=1)


def charge_for_sample(prompt: Sequence[int], max_tokens: int) -> Spent:
    """Return what an answer to sample is charged at first; tokens that it does not have are refunded."""
    return Spent(read=len(prompt), sampled=max_tokens)


def dollars_for(prices: Prices, spent: Spent) -> float:
    """Return what tokens cost."""
    trained, read, sampled = prices
    return (trained * spent.trained + read * spent.read + sampled * spent.sampled) / MILLION
