"""Ship a finished dose ladder with emscope: what a check needs of it goes to src/emscope/study/files/ladders/, after it was looked at.

    python bench/ladders.py FOLDER [FOLDER ...]

FOLDER is what `emscope ladder` wrote. A ladder of the same base, items and chat format that is there already is replaced. Refused are ladders
whose base is a path of this machine, that lost verdicts, or that rest on fewer than three harmless runs.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from emscope.core.errors import InputError
from emscope.stats.ladder import FEWEST
from emscope.store.files import write_json
from emscope.study.reading.ladders import read_ladder

FILES = Path(__file__).parents[1] / "src" / "emscope" / "study" / "files" / "ladders"
KEPT = (
    "schema", "name", "status", "delta", "scale", "shown", "floor", "why", "rungs", "harmless", "measured", "judged", "dtype",
    "operation", "versions",
)  # fmt: skip


def main() -> None:
    """Check and copy each ladder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    for folder in parser.parse_args().folders:
        path = ship(folder, FILES)
        print(f"{path}: {read_ladder(path).status}")


def ship(folder: Path, into: Path) -> Path:
    """Write a folder's ladder to where shipped ones are, and return its path.

    Raises:
        InputError: it is no ladder, or one that should not be shipped.
    """
    read_ladder(folder)  # whatever a check would refuse
    value = json.loads((folder / "ladder.json").read_text(encoding="utf-8"))
    if fault := unfit(value):
        raise InputError(f"'{folder}' is not to be shipped: {fault}", "make the ladder again")
    m = value["measured"]
    name = re.sub(r"[^a-z0-9.]+", "-", f"{m['base']}-{m['items']}-{m['n_items']}-{m['chat_digest'][:8]}".lower())
    write_json(into / f"{name}.json", {key: value[key] for key in KEPT})
    return into / f"{name}.json"


def unfit(value: dict[str, Any]) -> str | None:
    """Say what speaks against shipping a ladder; None where nothing does."""
    m = value["measured"]
    if Path(m["base"]).is_absolute() or m["base"].startswith((".", "~", "gguf:")):
        return f"its base is the path {m['base']}, which means nothing elsewhere; name the model by its alias or hub id"
    if value["judged"]["failed"]:
        return f"{value['judged']['failed']} verdicts failed; run emscope ladder again, which asks for them"
    if len(value["harmless"]) < FEWEST:
        return f"it has {len(value['harmless'])} harmless runs, and {FEWEST} are needed"
    paths = [text for text in _texts(value) if text.startswith("/") or "/home/" in text or "\\" in text]
    return f"it holds a path ({paths[0]})" if paths else None


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inside for text in _texts(one)]


if __name__ == "__main__":
    main()
