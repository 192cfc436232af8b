"""Small damage: to bytes, to JSON values, to settings."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from attack.texts import text


def broken_bytes(content: bytes, random: Random) -> bytes:
    """Return bytes with one fault: cut, flipped, zeroed, repeated, filled in, emptied."""
    if not content:
        return bytes(random.randrange(256) for _ in range(20))
    at = random.randrange(len(content))
    span = random.randrange(1, 64)
    return random.choice(
        (
            lambda: content[:at],
            lambda: content[at:],
            lambda: content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :],
            lambda: content[:at] + bytes(span) + content[at + span :],
            lambda: content[:at] + bytes(random.randrange(256) for _ in range(span)) + content[at:],
            lambda: content + content,
            lambda: content[:at] + content[at : at + span] * 50 + content[at + span :],
            lambda: content[:at] + b"\xff\xfe\x00\xd8" + content[at:],
            lambda: b"",
        )
    )()


def value(random: Random) -> Any:
    """Return a value of a kind that nobody expects at that place."""
    return random.choice(
        (
            lambda: None,
            lambda: True,
            lambda: random.choice((0, -1, 1, 7, 2**31, 2**63, 10**30, -(10**18))),
            lambda: random.choice((0.5, -1.0, 1e308, 1e-320)),
            lambda: random.choice((float("nan"), float("inf"), -float("inf"))),
            lambda: text(random),
            list,
            dict,
            lambda: [text(random), 3],
            lambda: {text(random)[:50]: 1},
            lambda: nested(random.choice((30, 900, 5000))),
            lambda: [[0] * 3] * 3,
        )
    )()


def nested(depth: int) -> Any:
    """Return lists inside of lists."""
    found: Any = []
    for _ in range(depth):
        found = [found]
    return found


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value inside plain values."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, one in inside:
        yield (*path, key)
        if len(path) < 20:  # what was made deep before is deep enough
            yield from places(one, (*path, key))


def broken_tree(tree: Any, random: Random) -> Any:
    """Return plain values in which one is another one, lacks, or has a new neighbour; now and then all are."""
    if random.random() < 0.05:
        return value(random)
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        ways = list(places(tree))
        if not ways:
            return value(random)
        way = random.choice(ways)
        inside = tree
        for key in way[:-1]:
            inside = inside[key]
        kind = random.random()
        if kind < 0.7:
            inside[way[-1]] = value(random)
        elif kind < 0.85:
            del inside[way[-1]]
        elif isinstance(inside, dict):
            inside[text(random)[:80]] = value(random)
        else:
            inside.append(value(random))
    return tree


def dumped(tree: Any) -> bytes:
    """Return JSON with whatever is in it; surrogates as escapes."""
    try:
        return json.dumps(tree).encode()
    except RecursionError:
        return b"[" * 100_000


def broken_json(tree: Any, random: Random) -> bytes:
    """Return JSON of broken values, or broken JSON."""
    if random.random() < 0.15:
        return broken_bytes(dumped(tree), random)
    return dumped(broken_tree(tree, random))


def cell(value: Any) -> str:
    """Return a value as a CSV writer would put it."""
    try:
        return "" if value is None else str(value)
    except RecursionError:
        return "[" * 5000
