"""Labels of groups: values of the columns that the user named, by column."""

from __future__ import annotations

from collections.abc import Mapping

from emscope.core.plain import Json, JsonObject

Label = Mapping[str, str | None]


def beside(label: Label, row: Mapping[str, Json]) -> JsonObject:
    """Return the label's columns and then the row's, in one flat row; a column that both have is `group_...` in the label."""
    kept = {k: v for k, v in row.items() if k != "group"}
    return {f"group_{k}" if k in kept else k: v for k, v in label.items()} | kept
