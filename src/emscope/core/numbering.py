"""Texts as numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def numbered(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different texts, ascending, and the place of each in them [N].

    What `numpy.unique` does, without room for as many copies of the longest text.
    """
    names = sorted(set(texts))
    place = {name: n for n, name in enumerate(names)}
    return names, np.array([place[t] for t in texts], int)
