"""What results write is what the reference says: JSON Schemas made from the classes hold for real results, and no key is undocumented."""

from __future__ import annotations

import copy
import importlib.util
import json
from functools import cache
from pathlib import Path

import jsonschema
import pytest

import test_answer_results as answers
import test_inside_results as inside
from emscope import study
from emscope.core.plain import from_json
from emscope.models.sizing.memory import Counted
from emscope.models.sizing.needs import Need
from emscope.study.decision.shipping import Shipping
from emscope.study.doctor import Diagnosis, Room, Speed
from emscope.study.examining import Finding, Passed
from emscope.study.reading.ladders import LadderResult
from emscope.study.report import TARGET, RunChecked, StudyReport
from test_headline import report_of

DOCS = Path(__file__).parents[1] / "docs"


@cache
def maker():
    """Return docs/make_schemas.py as a module."""
    spec = importlib.util.spec_from_file_location("make_schemas", DOCS / "make_schemas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def closed(schema):
    """Return a schema in which no object has a key besides those that it names."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return found | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) and "type" in schema else found


def validator(kind):
    schema = closed(maker().schema_of(kind))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def places(value, place=()):
    """Yield the place of every object in a JSON value."""
    if isinstance(value, dict):
        yield place
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*place, key))


def at(value, place):
    for key in place:
        value = value[key]
    return value


def hold(kind, found):
    """Hold what a result of a kind writes to its schema, which must refuse a key too many in any object, and an object without keys.

    Read back it must write the same.
    """
    check = validator(kind)
    check.validate(found)
    again = from_json(kind, found, "result.json", "write it again")
    assert type(again) is kind and json.dumps(again.to_json()) == json.dumps(found)
    refused = 0
    for place in places(found):
        more = copy.deepcopy(found)
        at(more, place)["undocumented"] = {"of": ["no", "kind"]}
        refused += not check.is_valid(more)
        fewer = copy.deepcopy(found)
        for key in list(at(fewer, place)):
            del at(fewer, place)[key]
        if place == ():
            assert not check.is_valid(fewer)
    assert refused == len(list(places(found))), "a mapping of names takes no such value, and an object no such key"


@pytest.mark.parametrize("name", inside.EVERY)
def test_results_from_inside_a_model_hold_to_their_schema(name):
    made = inside.EVERY[name]()
    hold(type(made), json.loads(json.dumps(made.to_json())))


@pytest.mark.parametrize("make", answers.MADE)
def test_results_of_judged_answers_hold_to_their_schema(make, tmp_path):
    made = make(tmp_path)
    hold(type(made), json.loads(json.dumps(made.to_json())))


@pytest.mark.parametrize("path", sorted(Path(study.__file__).parent.glob("files/ladders/*.json")), ids=lambda p: p.name)
def test_bundled_ladders_hold_to_their_schema(path):
    hold(LadderResult, json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("role", ["target", "style"])
def test_reports_hold_to_their_schema(role):
    folder = report_of(Shipping(TARGET, 8, "no", ()))
    shared = {name: getattr(folder, name) for name in ("name", "distributions", "spec", "versions", "base", "judged", "ship")}
    study_ = StudyReport(**shared, runs=(RunChecked("r", "a", "sft", role, 0, None, folder.check),))
    for report in (folder, study_):
        found = json.loads(json.dumps(report.to_json()))
        check = validator(type(report))
        check.validate(found)
        for key in found:
            assert key == "precision" or not check.is_valid({k: v for k, v in found.items() if k != key}), key
        assert not check.is_valid(found | {"undocumented": 1})
        assert json.dumps(from_json(type(report), found, "report.json", "run it again").to_json()) == json.dumps(found)


def test_a_diagnosis_holds_to_its_schema():
    rooms = (
        Room("reading", "float32", Need("reading", "float32", {"weights": 3}), True),
        Room("training", "nf4", None, None, "no CUDA"),
    )
    found = (Finding("logits", Passed.FAIL, "They differ.", {"largest": 0.5}), Finding("merge", Passed.PASS, "It does."))
    counted = Counted(*range(1, 11))
    made = Diagnosis(
        "m",
        "LlamaForCausalLM",
        "weights",
        "they fit",
        "cpu",
        None,
        counted,
        found,
        rooms,
        Speed(1.0, None, 2.5),
        (),
        ("reading",),
    )
    said = json.loads(json.dumps(made.to_json()))
    check = validator(Diagnosis)
    check.validate(said)
    assert said["passed"] is False and said["memory"][0]["need"]["bytes"] == 3
    for key in said:
        assert not check.is_valid({k: v for k, v in said.items() if k != key}), key
    assert json.dumps(from_json(Diagnosis, said, "doctor.json", "run it again").to_json()) == json.dumps(said)


def test_the_page_is_what_the_classes_say():
    assert (DOCS / "schemas.md").read_text(encoding="utf-8") == maker().document(), "run `make docs`"


def test_every_result_that_is_shown_is_on_the_page():
    made = {type(make()) for make in inside.EVERY.values()}
    assert made <= set(maker().RESULTS.values())
