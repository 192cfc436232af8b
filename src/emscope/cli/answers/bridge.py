"""`emscope bridge`: from one judge's scale to another's."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from emscope.answers.bridge_spec import BridgeSpec
from emscope.cli.options import Files, Json


def bridge(
    files: Annotated[Files, Field(description="Scores (.csv, .jsonl, .parquet).")],
    spec: BridgeSpec,
    as_json: Json = False,
) -> None:
    """A judge is replaced: what would the new one have said? Takes a file in which both scored some answers of several studies, maps the
    old scores to the new ones, shows how far off that is on left-out studies, and converts the studies that the new judge has not
    scored, or says why not.
    """
    from emscope.answers.bridge import bridge as bridged
    from emscope.cli.console import print_json
    from emscope.report.answers.bridge import print_bridge

    result = bridged(files, spec)
    if as_json:
        print_json(result.to_json())
    else:
        print_bridge(result)
