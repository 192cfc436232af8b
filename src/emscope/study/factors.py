"""What the runs of a study differ in: their method, and the values of its grid."""

from __future__ import annotations

from collections.abc import Mapping

from emscope.core.errors import InputError
from emscope.core.plain import Json
from emscope.core.spec import parse
from emscope.study.spec import StudySpec, grid_cells

METHOD = "method"


def factors(spec: Mapping[str, Json]) -> dict[str, dict[str, str]]:
    """Return for each method, by the name in its runs, the values of the settings in which methods differ.

    Args:
        spec: a study's settings as its report has them; nothing is returned for settings that this version does not read.
    """
    try:
        study = parse(StudySpec, dict(spec), "the study")
    except InputError:
        return {}
    found: dict[str, dict[str, str]] = {}
    for method in study.methods or {"": {}}:
        for labels, _ in grid_cells(study.grid or {}):
            name = "-".join([*([method] if method else []), *labels])
            values = {key: label.removeprefix(key) for key, label in zip(study.grid or {}, labels, strict=True)}
            found[name] = ({METHOD: method} if method else {}) | values
    return found
