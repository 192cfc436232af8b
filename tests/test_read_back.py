"""A result is read back from its documented JSON into the same class, or refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from emscope.core.errors import InputError
from emscope.core.estimate import Estimate
from emscope.core.outcomes import State
from emscope.core.plain import LEFT_OUT, Result, from_json, read_json
from emscope.study.decision.checked import Episode


@dataclass(frozen=True, slots=True)
class Part(Result):
    state: State
    episodes: tuple[Episode, ...]
    by_name: dict[str, Estimate]
    share: float | None
    note: str | None = field(default=None, metadata=LEFT_OUT)


@pytest.mark.parametrize("note", [None, "seen"])
def test_a_result_comes_back_equal(note):
    known = {"a": Estimate(0.1, 0.0, 0.2, 0.95, "t", 3, 2), "b": Estimate(None, None, None, 0.95, "t", 0, 0, "no items")}
    part = Part(State.SAFE, (Episode(3, 5),), known, None, note)
    text = json.dumps(part.to_json())
    again = from_json(Part, json.loads(text), "report.json", "run it again")
    assert again == part and type(again.state) is State and json.dumps(again.to_json()) == text
    assert from_json(Part, json.loads(text) | {"of a later version": 1}, "report.json", "run it again") == part


@pytest.mark.parametrize("change", [{"state": "odd"}, {"episodes": [{"from": 3}]}, {"by_name": None}, {"share": "much"}])
def test_what_does_not_fit_is_refused_with_its_place(change):
    row = Part(State.SAFE, (Episode(3, 5),), {}, None).to_json() | change
    with pytest.raises(InputError, match=rf"'report.json' is damaged \({next(iter(change))}.*; run it again"):
        from_json(Part, row, "report.json", "run it again")


def test_a_file_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "report.json", "run it first")
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        read_json(tmp_path / "report.json", "run it first")


@dataclass(frozen=True, slots=True)
class Twice(Result):
    first: Episode
    others: tuple[Episode, ...]
    by_name: dict[str, Episode]


def test_a_class_that_stands_in_several_places_is_read_in_all_of_them():
    twice = Twice(Episode(1, 2), (Episode(3, 4),), {"a": Episode(5, 6)})
    assert twice.to_json()["others"] == [{"from": 3, "to": 4}], "its keys are not its fields' names"
    assert from_json(Twice, twice.to_json(), "report.json", "run it again") == twice
