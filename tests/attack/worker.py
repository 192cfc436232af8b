"""A process that lives long and runs one command of emscope after the other; a line of JSON in, a line of JSON out.

python -m attack.worker          with tests/ in PYTHONPATH
"""

from __future__ import annotations

import json
import os
import resource
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

MOST = 6 * 2**30  # bytes of address space beyond what the worker begins with: the machine outlives a bomb


def memory(what: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def one(words: list[str]) -> dict[str, Any]:
    """Run a command; return its exit code, what it said, and how far memory rose at its fullest [bytes]."""
    from emscope.cli.app import run_arguments

    out, err = StringIO(), StringIO()
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    before = memory("VmRSS")
    code: int | str
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = run_arguments(words)
    except SystemExit as leave:
        code = f"SystemExit {leave.code}"
    except BaseException as error:
        code = f"{type(error).__name__}: {error}"[:300]
    return {"code": code, "out": out.getvalue()[-20_000:], "err": err.getvalue()[-20_000:], "rise": memory("VmHWM") - before}


def main() -> None:
    """Answer lines until there are no more."""
    import torch

    torch.set_num_threads(1)
    import bitsandbytes  # noqa: F401  (what commands import late is no rise of memory of theirs)
    import duckdb  # noqa: F401
    import inspect_ai.log  # noqa: F401
    import peft  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import emscope.study.check
    import emscope.study.run  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MOST, pages + MOST))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job["cwd"])
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        print(json.dumps(one(job["words"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
