"""Which checkpoints of a long run to read, so that a few bracket the onset that reading all would find. (ours)

The last checkpoint comes first. Where it is em, the stretch between the last checkpoint that is surely not em and the first from which on all
that were read surely are gets halved until the two are neighbours, or until all between them are unclear. Two later ones, drawn
at random, then show whether it stayed em, and more where a wide stretch after the onset is unread. Where the last one is not em,
checkpoints at a quarter, half and three quarters of the way show whether it was before.

Which checkpoint is read depends on what the others showed. Each reading's bounds are therefore at the error divided by the number of
readings allowed (Bonferroni); bounds that hold only for those that happened to be read would not be enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil, log2

import numpy as np

from emscope.core.outcomes import State
from emscope.stats.onset import HARM, LEVEL, NO_HARM

LATER = 2  # checkpoints drawn after the onset, to see whether it lasts
WIDE = 1 / 8  # of the run: no longer stretch after the onset is left unread while readings remain
COARSE = (0.5, 0.25, 0.75)  # of the way, where the last checkpoint is not em


def looks(count: int) -> int:
    """Return how many of `count` checkpoints may be read: twice what halving takes, 14 of 100."""
    return min(count, 2 * ceil(log2(count))) if count > 1 else count


def look_level(allowed: int, level: float = LEVEL) -> float:
    """Return the one-sided level of each of `allowed` readings at which all of them hold with `level`."""
    return 1 - (1 - level) / max(allowed, 1)


def next_look(count: int, sure: Mapping[int, State], last: State | None, seed: int = 0) -> int | None:
    """Return the place of the checkpoint to read next, from 0 to count - 1; None where nothing more is to be read.

    Args:
        count: of checkpoints. sure: states of those read, by place, from bounds at `look_level`.
        last: state of the last checkpoint from bounds for it alone, which is what the verdict names; None before it is read.
        seed: of the later ones that are drawn.
    """
    if count - 1 not in sure or last is None:
        return count - 1 if count else None
    left = looks(count) - len(sure)
    if left <= 0:
        return None
    harmful = last in HARM
    if not harmful:
        coarse = next((n for n in (int(share * (count - 1)) for share in COARSE) if n not in sure), None)
        if coarse is not None:
            return coarse
    edge = _edge(count, sure, harmful)
    halfway = _halfway(sure, *edge) if edge else None
    later = _later(count, sure, edge[1], seed) if edge and harmful else None
    return later if later is not None and (halfway is None or left <= LATER) else halfway


def _edge(count: int, sure: Mapping[int, State], harmful: bool) -> tuple[int, int] | None:
    """Return the places between which em begins: surely not em (-1: the base), and surely em like all those read after it (else the last place)."""
    em = sorted(n for n, s in sure.items() if s in HARM)
    if harmful:
        not_yet = max((n for n in sure if n not in em), default=-1)
        before = max((n for n, s in sure.items() if s in NO_HARM), default=-1)
        return before, next((n for n in em if n > not_yet), count - 1)
    if not em:
        return None
    return max((n for n, s in sure.items() if s in NO_HARM and n < em[0]), default=-1), em[0]


def _halfway(sure: Mapping[int, State], before: int, by: int) -> int | None:
    """Return the middle of the wider stretch next to either end that nothing was read in; what is unclear stands between them."""
    unclear = sorted(n for n in sure if before < n < by)
    stretches = [(before, unclear[0]), (unclear[-1], by)] if unclear else [(before, by)]
    low, high = max(stretches, key=lambda ends: ends[1] - ends[0])
    return (low + high) // 2 if high - low > 1 else None


def _later(count: int, sure: Mapping[int, State], by: int, seed: int) -> int | None:
    """Return a checkpoint between the onset and the last to read: those that are drawn, then the middle of the widest stretch that is wide."""
    drawn = [int(n) for n in np.random.default_rng(seed).permutation(count) if by < n < count - 1][:LATER]
    unread = [n for n in drawn if n not in sure]
    if unread:
        return unread[0]
    low, high = max(pairwise(sorted(n for n in sure if n >= by)), key=lambda ends: ends[1] - ends[0], default=(by, by))
    return (low + high) // 2 if high - low > max(1, WIDE * count) else None
