"""Commands one after the other in one process: torchrun starts two of these, which takes longer than the commands themselves.

Usage: in_turn.py JOBS.json, a list of [name, words]; words are emscope's arguments, or the path of a script. What each printed and its exit
code are left in NAME-RANK.json beside it.
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from emscope.cli.app import run_arguments


def do(jobs: Path) -> None:
    """Do the jobs of a file."""
    for name, words in json.loads(jobs.read_text()):
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            code = run_arguments(words) if isinstance(words, list) else bool(runpy.run_path(words)) - 1
        left = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        jobs.with_name(f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(left))


if __name__ == "__main__":
    do(Path(sys.argv[1]))
