"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from emscope.models.sizing.heap import give_back


def resident() -> int:
    """Return the resident memory of this process [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep nothing, or say not how to give it back")
def test_gaps_between_what_lasts_are_given_back():
    blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]  # below the size that malloc maps by itself
    last = blocks[-1]  # the end of the heap stays in use, so that nothing is given back by itself
    before = resident()
    del blocks
    give_back()
    assert before - resident() > 150_000_000 and last


def test_it_is_asked_once_where_there_is_a_way_and_not_otherwise(monkeypatch):
    from emscope.models.sizing import heap

    asked = []
    monkeypatch.setattr(heap, "_trim", lambda: asked.append)
    give_back()
    assert asked == [0]
    monkeypatch.setattr(heap, "_trim", lambda: None)
    give_back()
    assert asked == [0]
