"""Write docs/schemas.md from the classes of the results: every object that `--json` prints and `save` writes, key by key.

    python docs/make_schemas.py

tests/test_schemas.py fails where the file is not what this makes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from emscope.answers.agreement_result import Agreement
from emscope.answers.bridge_result import Bridge
from emscope.answers.distil_result import Distilled
from emscope.answers.judge_result import JudgedFile
from emscope.answers.onset_result import Onsets
from emscope.answers.planning.power_result import PowerPlan
from emscope.answers.rates_result import Rates
from emscope.answers.runs.loss_result import Losses
from emscope.answers.runs.shifts_result import Shifts
from emscope.answers.runs.sizes_result import Sizes
from emscope.core.estimate import Estimate
from emscope.core.plain import Result
from emscope.inside.direction_results import Cosines, DataRisk, Direction, Shift, Steering
from emscope.inside.prompt_results import Probes, Subspaces
from emscope.inside.results import Diff, Solutions, Trajectories
from emscope.study.atlas_result import Atlas
from emscope.study.cells.foreseen import Foreseen
from emscope.study.cells.standing import Standing
from emscope.study.compare_result import Comparison
from emscope.study.doctor import Diagnosis
from emscope.study.reading.ladders import LadderResult
from emscope.study.report import FolderChecked, StudyReport
from emscope.train.audit_result import Audit

FILE = Path(__file__).with_name("schemas.md")
WIDTH = 120
RESULTS: dict[str, type[Result]] = {
    "rates": Rates,
    "agreement": Agreement,
    "onset": Onsets,
    "loss": Losses,
    "shifts": Shifts,
    "power": PowerPlan,
    "sizes": Sizes,
    "judge": JudgedFile,
    "bridge": Bridge,
    "distil": Distilled,
    "data check": Audit,
    "data risk": DataRisk,
    "direction extract": Direction,
    "direction steer, ablate": Steering,
    "direction compare": Cosines,
    "direction shift": Shift,
    "diff": Diff,
    "probe": Probes,
    "subspaces": Subspaces,
    "trajectories": Trajectories,
    "solutions": Solutions,
    "check": FolderChecked,
    "run": StudyReport,
    "run, dry": Foreseen,
    "status": Standing,
    "compare": Comparison,
    "ladder": LadderResult,
    "atlas show": Atlas,
    "doctor": Diagnosis,
}
PLAIN = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`", "null": "null"}
HEAD = """# JSON of the results

Made by `docs/make_schemas.py` from the classes of the results (`make docs`). Do not edit it by hand.

Each section is what a command prints with `--json`, and what `save` of the Python result writes as `result.json`. Results
in Python have attributes of the same names. A key is always there unless the table says "may be missing"; what is not known
is `null`. How to read the reports of studies and checks is in [concepts.md](concepts.md). For a validator, the JSON Schema of
a result:

```python
from pydantic import TypeAdapter
from emscope.answers.rates_result import Rates

TypeAdapter(Rates).json_schema(mode="serialization")
```
"""

Schema = Mapping[str, Any]  # a JSON Schema is JSON of any shape
Places = dict[tuple[str, str], str]  # anchors of the tables of classes


def schema_of(result: type[Result]) -> Schema:
    """Return the JSON Schema of what a result writes."""
    return TypeAdapter(result).json_schema(mode="serialization")


def document() -> str:
    """Return the whole of docs/schemas.md; a class that several results hold has its table in the first of them."""
    parts = [HEAD, "## estimate\n", *_object(schema_of(Estimate), {}, {})]
    places: Places = {_identity(schema_of(Estimate), ""): "estimate"}
    for name, result in RESULTS.items():
        schema = schema_of(result)
        named, fresh = schema.get("$defs", {}), []
        for title, shape in _objects(schema, named):
            if _identity(shape, title) not in places:
                heading = f"{name}: {title}" if fresh else name
                places[_identity(shape, title)] = _anchor(heading)
                fresh.append((heading, shape))
        for n, (heading, shape) in enumerate(fresh):
            parts += [f"{'###' if n else '##'} {heading}\n", *_object(shape, named, places)]
    return "\n".join(parts).rstrip() + "\n"


def _objects(schema: Schema, named: Schema, key: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield (title, schema) of an object and of all inside it, in the order of their keys."""
    schema = _resolved(schema, named)
    if "properties" in schema:
        yield _title(schema, key), schema
    for inner, value in schema.get("properties", {}).items():
        yield from _objects(value, named, inner)
    for one in (
        *schema.get("anyOf", []),
        *schema.get("prefixItems", []),
        schema.get("items"),
        schema.get("additionalProperties"),
    ):
        if isinstance(one, Mapping):
            yield from _objects(one, named, key)


def _identity(schema: Schema, title: str) -> tuple[str, str]:
    """Return what tells a class from others of its name: its docstring too."""
    return str(schema.get("title", title)), str(schema.get("description", ""))


def _title(schema: Schema, key: str) -> str:
    """Return the name of an object's class; pydantic leaves it out inside a mapping, where its docstring tells."""
    told = (kind.__name__ for kind in _below(Result) if inspect.getdoc(kind) == schema.get("description"))
    return str(schema.get("title") or next(told, key))


def _below(kind: type[Result]) -> Iterator[type[Result]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _below(inner)


def _object(schema: Schema, named: Schema, places: Places) -> list[str]:
    """Return what an object is and its keys, as a table."""
    about, meant = _documented(schema)
    rows = ["| key | what it is | meaning |", "|---|---|---|"]
    for key, value in schema["properties"].items():
        notes = [
            meant.get(key) or value.get("description", "")
            if "properties" not in _resolved(value, named)
            else meant.get(key, "")
        ]
        notes += ["may be missing"] * (key not in schema.get("required", []))
        said = "; ".join(n for n in notes if n).replace("|", "\\|")
        rows.append(f"| `{key}` | {kind(value, named, places, key)} | {said} |")
    return [textwrap.fill(about, WIDTH, break_long_words=False, break_on_hyphens=False), "", *rows, ""]


def kind(schema: Schema, named: Schema, places: Places, key: str) -> str:
    """Return a type in words; objects are links to their tables."""
    schema = _resolved(schema, named)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(one, named, places, key) for one in schema["anyOf"]))
    if "properties" in schema:
        title = _title(schema, key)
        return f"[{'estimate' if title == 'Estimate' else title}](#{places[_identity(schema, title)]})"
    if "prefixItems" in schema:
        return f"[{', '.join(kind(one, named, places, key) for one in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'], named, places, key)}"
    if schema.get("type") == "object":
        return f"{{name: {kind(schema['additionalProperties'], named, places, key)}}}"
    return PLAIN[schema["type"]] if "type" in schema else "any value"


def _documented(schema: Schema) -> tuple[str, dict[str, str]]:
    """Return what a class is, and what its docstring says of single keys."""
    text = str(schema.get("description", "")).replace("None", "`null`").replace("()", "`[]`").replace("``", "`")
    about, _, attributes = text.partition("\n\nAttributes:\n")
    found: dict[str, str] = {}
    pieces = re.split(r"(?:^|(?<=[.;] ))([a-z][a-z0-9_]*(?:, [a-z][a-z0-9_]*)*): ", " ".join(attributes.split()))
    for names, said in zip(pieces[1::2], pieces[2::2], strict=True):
        found |= dict.fromkeys(names.split(", "), said.strip().rstrip(".;"))
    return " ".join(about.split()), found


def _resolved(schema: Schema, named: Schema) -> Schema:
    if schema.get("$ref") == "#/$defs/Json":
        return {}  # JSON of any shape, which holds itself
    return named[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema


def _anchor(heading: str) -> str:
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
