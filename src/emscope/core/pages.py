"""The head of every page that is written: it loads nothing from anywhere, whatever its texts say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:\">"
)


def guarded(page: str) -> str:
    """Return a whole HTML page with the policy right after `<head>`, which is added if missing."""
    before, head, behind = page.partition("<head>")
    if head:
        return f"{before}{head}{POLICY}{behind}"
    start, html, rest = page.partition(">") if page.lstrip().lower().startswith("<!doctype") else ("", "", page)
    return f"{start}{html}<head>{POLICY}</head>{rest}"


def drawn(figure: go.Figure, *, whole_page: bool = True, with_plotly: bool = True) -> str:
    """Return a figure as HTML."""
    with own_json():
        return str(figure.to_html(full_html=whole_page, include_plotlyjs=with_plotly))


def plot_data(figure: go.Figure | None) -> str | None:
    """Return a figure's data, safe in an attribute or a script of a page; None without a figure."""
    return str(figure.to_json(engine="json")).replace("<", "\\u003c") if figure is not None else None


@contextmanager
def own_json() -> Iterator[None]:
    """Have plotly write with Python's own json: if it finds orjson it uses that, which rejects half characters in models' answers."""
    from plotly.io import json as writing

    before, writing.config.default_engine = writing.config.default_engine, "json"
    try:
        yield
    finally:
        writing.config.default_engine = before
