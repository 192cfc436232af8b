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


def validator(result):
    schema = closed(maker().schema_of(type(result)))
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


def hold(result):
    """Hold a result to its schema, which must refuse it with a key too many in any object that is no mapping of names."""
    check, found = validator(result), json.loads(json.dumps(result.to_json()))
    check.validate(found)
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
    hold(inside.EVERY[name]())


@pytest.mark.parametrize("make", answers.MADE)
def test_results_of_judged_answers_hold_to_their_schema(make, tmp_path):
    hold(make(tmp_path))


def test_the_page_is_what_the_classes_say():
    assert (DOCS / "schemas.md").read_text(encoding="utf-8") == maker().document(), "run `make docs`"


def test_every_result_that_is_shown_is_on_the_page():
    made = {type(make()) for make in inside.EVERY.values()}
    assert made <= set(maker().RESULTS.values())
