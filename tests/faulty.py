"""What goes wrong at a server of the tests: in a share of all requests, by a seed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

CODES = ("408", "410", "425", "429", "500", "503", "400", "cut")
LATER = ("410", "425")  # said of results alone


@dataclass
class Faults:
    """What goes wrong, in which share of all requests, by a seed; `cut` ends the connection before or after the request was heeded."""

    kinds: Sequence[str] = ()
    rate: float = 0.0
    seed: int = 0
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = Random(self.seed), threading.Lock()

    def of(self, path: str) -> str | None:
        """Return the fault of a request, None for most."""
        with self._lock:
            kinds = [k for k in self.kinds if k not in LATER or path.endswith("/retrieve_future")]
            if not kinds or self._random.random() >= self.rate:
                return None
            kind = self._random.choice(kinds)
            kind = self._random.choice(["cut before", "cut after"]) if kind == "cut" else kind
            self.happened[kind] += 1
            return kind
