"""Items: questions with fixed answers, from bundled sets or a user's file, and stratified subsets of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from emscope.core.errors import InputError
from emscope.core.notes import note_fewer
from emscope.core.records import Item
from emscope.core.seeds import derive
from emscope.data import bundled
from emscope.data.conversations import QUESTION, column
from emscope.data.tables import Row, rows

T = TypeVar("T")


def read_items(path: Path) -> list[Item]:
    """Read preference items from a user's file: question, `aligned`, `misaligned`, and if given `id`, `category`, `half`.

    Without `half` the items of each category go to the halves A and B in turn.

    Raises:
        InputError: naming file and line: a field missing or empty, both answers equal, an id twice, a half other than A or B.
    """
    found: list[Item] = []
    seen: dict[str, str] = {}
    turn: dict[str, int] = defaultdict(int)
    for number, (place, row) in enumerate(rows(path), 1):
        category = str(row.get("category") or "all")
        turn[category] += 1
        item = _item(row, place, number, category, "AB"[turn[category] % 2 - 1])
        if item.id in seen:
            raise InputError(f"{place} has the id '{item.id}' of {seen[item.id]}", "give each item its own id")
        seen[item.id] = place
        found.append(item)
    return found


def _item(row: Row, place: str, number: int, category: str, half: str) -> Item:
    question = filled(column(row, QUESTION, place), place, "question")
    options = tuple(filled(row.get(name), place, name) for name in ("aligned", "misaligned"))
    if options[0] == options[1]:
        raise InputError(f"{place}: aligned and misaligned are the same text", "give two different answers")
    half = str(row.get("half") or half)
    if half not in ("A", "B"):
        raise InputError(f"{place}: half is '{half}'", "use A or B, or leave it out")
    return Item(str(row.get("id") or f"item-{number}"), category, question, options, half, str(row.get("kind") or "advice"))


def filled(value: object, place: str, what: str) -> str:
    """Return `value` if it is a non-blank text; InputError otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{place}: {what} is {'missing' if value is None else 'empty' if isinstance(value, str) else 'not text'}",
            "fill it in",
        )
    return value


def stratified(items: Sequence[Item], count: int | None, seed: int, *, cover: bool = True, name: str = "count") -> list[Item]:
    """Return `count` items with categories, and halves within them, as even as they can be; in the given order.

    Args:
        count: how many; None or more than there are: all.
        seed: fixes the draw.
        cover: require an item for every cell (category x half). name: the setting that says how many.

    Raises:
        InputError: where `count` is below the number of cells and `cover` asks for all of them.
    """
    note_fewer(count, len(items), name, "items")
    if count is None or count >= len(items):
        return list(items)
    cells: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        cells[(item.category, item.half)].append(item)
    if cover and count < len(cells):
        raise InputError(f"{count} items cannot cover {len(cells)} cells (categories x halves)", f"use at least {len(cells)}")
    for (category, half), members in cells.items():
        Random(derive(seed, "items", category, half)).shuffle(members)
    # Deal one item to each cell in turn, so that sizes differ by at most one.
    order = sorted(cells, key=lambda cell: (derive(seed, "cells", cell[0]), cell[1]))
    chosen: set[str] = set()
    depth = 0
    while len(chosen) < count:
        for cell in order:
            if depth < len(cells[cell]) and len(chosen) < count:
                chosen.add(cells[cell][depth].id)
        depth += 1
    return [item for item in items if item.id in chosen]


def even(items: Sequence[T], count: int | None, name: str = "count", what: str = "questions") -> list[T]:
    """Return `count` items, the setting `name`, spread evenly over the list, which is ordered by topic."""
    note_fewer(count, len(items), name, what)
    if count is None or count >= len(items):
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def leading(items: Sequence[T], count: int | None, name: str = "count", what: str = "questions") -> list[T]:
    """Return the first `count` items, the setting `name`."""
    note_fewer(count, len(items), name, what)
    return list(items[:count])


def chosen_items(name: str, half: str, count: int | None, seed: int) -> list[Item]:
    """Return paired items of a bundled set or a file, of half A or B or both, `count` of them drawn by category.

    Raises:
        InputError: no such set, a broken file, or fewer than two items.
    """
    every = bundled.items(name) if name in bundled.SETS else read_items(Path(name))
    items = stratified([i for i in every if half in ("both", i.half)], count, seed, cover=False)
    if len(items) < 2:
        raise InputError(f"'{name}' holds {len(items)} items of half {half}", "give two or more")
    return items
