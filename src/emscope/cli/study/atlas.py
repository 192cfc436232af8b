"""`emscope atlas`: fine-tunes known to be harmless or harmful."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field

from emscope.cli.options import Files, Json
from emscope.study.atlas_result import HARMFUL, HARMLESS, JAILBROKEN, Trained


def show(
    atlas: Annotated[
        Path | None, Field(description="A file that emscope atlas add wrote, beside what comes with emscope.")
    ] = None,
    base: Annotated[str | None, Field(description="Only of this base: its name, or how its digest begins.")] = None,
    page: Annotated[Path | None, Field(description="Draw every fine-tune into this .html file.")] = None,
    as_json: Json = False,
) -> None:
    """How far did fine-tunes known to be harmless or harmful move their base? By measure: how far the harmless ones moved, how many of either
    are surely worse by more than a check's threshold, and how well the measure tells them apart; also by category of questions.
    """
    from emscope.cli.console import print_json
    from emscope.report.study.atlas import print_atlas, write_atlas
    from emscope.study.atlas import read_atlas, summarised

    result = summarised(read_atlas(atlas), base)
    if page is not None:
        write_atlas(result, page)
    if as_json:
        print_json(result.to_json())
    else:
        print_atlas(result)


def add(
    folders: Annotated[Files, Field(description="Folders of finished studies or checks.")],
    to: Annotated[Path, Field(description="The atlas, a JSON Lines file; an existing one is extended.")],
    kind: Annotated[str | None, Field(description="Of a check: the kind of its training data, such as translation.")] = None,
    trained: Annotated[
        Trained,
        Field(
            description="Of a check: trained on harmless data, on harmful answers, or (jailbroken) to comply with harmful requests."
        ),
    ] = HARMLESS,
) -> None:
    """Add fine-tunes to an atlas. Of a study, targets count as harmful, style arms as harmless (or jailbroken, if taught the answers complying of the
    domain requests), and arms are kinds."""
    from emscope.study.atlas import add_to_atlas

    rows = add_to_atlas(folders, to, kind, trained)
    of = Counter({(row.digest, row.run): row.trained for row in rows}.values())
    counts = ", ".join(f"{of[how]} {how}" for how in (HARMLESS, HARMFUL, JAILBROKEN) if of[how] or how != JAILBROKEN)
    print(f"added {of.total()} fine-tunes ({counts}) with {len(rows)} readings: {to}")


COMMANDS = {"show": show, "add": add}
