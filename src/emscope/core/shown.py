"""Results of whole jobs: each is a table, draws itself, is saved, and shows itself in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from emscope.core.errors import MissingDependency
from emscope.core.pages import drawn, guarded
from emscope.core.plain import Json, JsonObject, Result
from emscope.core.visible import json_text, whole

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

MOST = 200  # rows that a notebook shows


@dataclass(frozen=True, slots=True)
class Shown(Result):
    """Base of what a job returns.

    Attributes:
        drawn_by: "module:function" from the result to figures by name, loaded when a figure is asked for; "" where there is none.
        told_by: "module:function" from the result to sentences; "" where there is none.
    """

    drawn_by: ClassVar[str] = ""
    told_by: ClassVar[str] = ""

    def rows(self) -> list[JsonObject]:
        """Return the result as flat rows, one a checkpoint, group, layer or pair: what its main table shows."""
        raise NotImplementedError

    def sentences(self) -> list[str]:
        """Return the result in sentences, the answer first."""
        return list(_loaded(self.told_by)(self)) if self.told_by else []

    def figures(self) -> dict[str, go.Figure]:
        """Return plotly figures by name."""
        return dict(_loaded(self.drawn_by)(self)) if self.drawn_by else {}

    def to_frame(self) -> pandas.DataFrame:
        """Return `rows` as a pandas DataFrame.

        Raises:
            MissingDependency: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingDependency("a data frame needs pandas, which is not installed", "pip install pandas") from None
        return pandas.DataFrame(self.rows())

    def save(self, folder: str | Path) -> Path:
        """Write `result.json` and a page for each figure into a folder, and return it; the folder is made where it does not exist."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json_text(self.to_json(), indent=1), encoding="utf-8")
        for name, figure in self.figures().items():
            page = guarded(drawn(figure))
            (out / f"{name}.html").write_text(whole(page), encoding="utf-8")
        return out

    def __str__(self) -> str:
        return "\n".join(self.sentences()) or repr(self)

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
        return f"<div>{said}{_table(self.rows())}</div>"


def flat(row: Mapping[str, Json]) -> JsonObject:
    """Return a row in which estimates are three columns, `name`, `name_low` and `name_high`; what else is nested is left out."""
    found: JsonObject = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and "value" in value:
            found |= {name: value["value"], f"{name}_low": value.get("low"), f"{name}_high": value.get("high")}
        elif not isinstance(value, Mapping | Sequence) or isinstance(value, str):
            found[name] = value
    return found


def _loaded(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def _table(rows: Sequence[Mapping[str, Json]]) -> str:
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{html.escape(str(n))}</th>" for n in names)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(row.get(n))}</td>' for n in names)}</tr>" for row in rows[:MOST])
    more = f"<p>… and {len(rows) - MOST} more rows</p>" if len(rows) > MOST else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _cell(value: Json) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(text)
